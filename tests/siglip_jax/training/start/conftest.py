"""Embeddings to fit temperature and bias to."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def embeddings():
    """embeddings(n=48, d=12, *, noise, seed=0, titles=40) -> unit image and text float32 [n, d], groups int32 [n]."""

    def embeddings(n=48, d=12, *, noise, seed=0, titles=40):
        """Pairs that belong together up to noise; some titles occur twice."""
        rng = np.random.default_rng(seed)
        groups = np.concatenate([np.arange(titles), np.arange(n - titles)]).astype(np.int32)
        text = rng.normal(size=(titles, d))[groups]
        image = text + noise * rng.normal(size=(n, d))
        unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)]
        return unit[0], unit[1], groups

    return embeddings
