"""Items and queries of any number and width, made from real vectors, and what exact search says of them.

An item is a real vector plus a part of the difference of two others, so that the made ones spread as the real ones do:
noise of equal strength in every direction would have no neighbours. Fewer items than real vectors are real ones. The
queries are made alike and are not among the items.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from eval.embeddings import reduction
from eval.embeddings.stored_vectors import open_vectors
from eval.embeddings.vectors import unit_rows
from eval.search.scans import Scan, exact_best
from siglip_jax.errors import UserError

ITEMS, QUERIES, WORST = "items.npy", "queries.npy", "worst.npy"
NOISE = 0.5  # of the difference of two vectors
_CHECKED = 4  # queries that are searched in float64 as well
_BLOCK = 50_000


def make(folder: pathlib.Path, *, vectors: str | None, items: int, dim: int, queries: int, k: int) -> dict[str, Any]:
    """Writes items.npy and queries.npy, float32 of unit norm, and worst.npy, the score of the k-th best of each query.

    Returns what was made: {"vectors": where from, "real", "dimension", "kept": share of variance in `dim` numbers,
    "made": whether with noise}.

    Raises:
      UserError: fewer numbers than `dim`, too few real vectors.
    """
    random = np.random.default_rng(0)
    real, said = (_pixels(), "pixels of the synthetic catalogue") if vectors is None else (_read(vectors), vectors)
    about = {"vectors": said, "real": len(real), "dimension": real.shape[1], "kept": 1.0}
    if dim > real.shape[1] or len(real) < 100:
        raise UserError(f"--vectors: {len(real)} of {real.shape[1]} numbers; expected at least 100, of {dim} or more")
    real = unit_rows(real, what="vector")
    if dim < real.shape[1]:
        fitted = reduction.fit(reduction.Spec("pca", dim, False), real)
        about["kept"] = round(float(fitted.explained[-1]), 4)  # type: ignore[index]
        real = fitted(real)
    made = items + queries > len(real)
    if made:
        out = np.lib.format.open_memmap(folder / ITEMS, "w+", np.float32, (items, dim))
        for lo in range(0, items, _BLOCK):
            out[lo : lo + _BLOCK] = _noisy(real, min(_BLOCK, items - lo), random)
        out.flush()
        asked = _noisy(real, queries, random)
    else:
        order = random.permutation(len(real))
        np.save(folder / ITEMS, real[order[:items]])
        asked = real[order[items : items + queries]]
    np.save(folder / QUERIES, asked)
    there = np.load(folder / ITEMS, mmap_mode="r")
    _, scores = exact_best(Scan(there), there, asked, k=k)
    _check(there, asked[:_CHECKED], scores[:_CHECKED])
    np.save(folder / WORST, scores[:, -1])
    return about | {"made": made}


def _noisy(real: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    base, one, other = (real[random.integers(0, len(real), count)] for _ in range(3))
    return unit_rows(base + np.float32(NOISE) * (one - other), what="vector")


def _read(path: str) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float32) for part in open_vectors(path).parts])


def _pixels(count: int = 1200, side: int = 16) -> np.ndarray:
    """Pictures of products at random: float32 [count, side x side x 3], centred."""
    from input_pipeline.synthetic.product_images import COLOURS, MARKS, PATTERNS, Look, photograph
    from input_pipeline.synthetic.product_shapes import SHAPES

    random = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        kind, colour, pattern, mark = (str(random.choice(list(names))) for names in (SHAPES, COLOURS, PATTERNS, MARKS))
        look = Look(kind, colour, pattern, mark, float(random.random()), float(random.uniform(0.1, 0.3)), "light")
        pictures.append(np.asarray(photograph(look, rng=random, size=side), np.float32).ravel())
    values = np.stack(pictures)
    return values - values.mean(axis=0)


def _check(items: np.ndarray, queries: np.ndarray, scores: np.ndarray) -> None:
    """Raises where float64 finds other scores."""
    exact = np.concatenate(
        [
            queries.astype(np.float64) @ items[lo : lo + _BLOCK].T.astype(np.float64)
            for lo in range(0, len(items), _BLOCK)
        ],
        axis=1,
    )
    best = -np.sort(-exact, axis=1)[:, : scores.shape[1]]
    if np.abs(best - scores).max() > 1e-5:
        raise RuntimeError("exact search and float64 differ; nothing is measured")
