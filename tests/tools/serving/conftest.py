"""A server without training: an encoder whose pictures are a few pixels and whose texts are numbers of their hash."""

import hashlib
import io

import numpy as np
import PIL.Image
import pytest

from eval.search import build_index
from tools.workflow.embedding import load_encoder
from tools.workflow.query_encoder import QueryEncoder

SIZE = "pixels:2x2"  # 12 numbers


def text_vectors(texts):
    hashes = [hashlib.sha256(text.encode()).digest()[:12] for text in texts]
    return np.array([list(each) for each in hashes], np.float32) + 1


@pytest.fixture
def make_encoder():
    """make_encoder(encode=...) -> a QueryEncoder; `encode` is called with each batch, of texts or pixels, before it."""

    def make(before=lambda rows: None):
        network = load_encoder(SIZE)

        class Watched(QueryEncoder):
            def encode_pixels(self, rows):
                before(rows)
                return super().encode_pixels(rows)

            def encode_texts(self, texts):
                before(texts)
                return super().encode_texts(texts)

        return Watched(network, text_vectors, SIZE, network.description)

    return make


@pytest.fixture
def save_index():
    """save_index(folder, seed, count=30) -> the index of random vectors that was saved there."""

    def save(folder, seed, *, count=30, dimension=12, encoder=SIZE):
        vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
        index = build_index(vectors, [f"i{row}" for row in range(count)])
        index.encoder = {"model": load_encoder(encoder).description}
        index.save(folder)
        return index

    return save


@pytest.fixture
def picture():
    """picture(seed) -> the bytes of a PNG."""

    def make(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make
