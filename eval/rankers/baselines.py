"""Rows every comparison carries, so that a number has a floor to stand on: chance, popularity, titles, raw pixels."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from eval.rankers.sparse_products import row_products
from siglip_jax.errors import UserError

_BLOCK = 512  # images converted at once
# Words, and in scripts that put no space between them (kana, Han, Thai) every two neighbouring letters.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_TOKENS = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")


class RandomRanker:
    """A blind guess: every pair of query and item has a number of its own, a hash of both and the seed."""

    def __init__(self, items: int, *, name: str = "random", seed: int = 0):
        if items < 1:
            raise UserError(f"random row of {items} items: expected at least 1")
        self.name, self._items, self._seed = name, items, seed

    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """See `eval.rankers.ranker.Ranker`; in (-1, 0]. Equal on every machine, in any block."""
        columns = np.arange(self._items)[None] if candidates is None else candidates
        with np.errstate(over="ignore"):
            key = _mix(np.asarray(queries).astype(np.uint64) + _mix(np.uint64(self._seed) + _GOLDEN))[:, None]
            hashed = _mix(key ^ (columns.astype(np.uint64) * _GOLDEN))
        # Towards 0 float32 grows finer, so that the best of millions do not tie.
        scores = -(hashed.astype(np.float64) * 2.0**-64).astype(np.float32)
        return scores if candidates is None else np.where(candidates >= 0, scores, np.float32(-np.inf))


class PopularityRanker:
    """The same order for every query: items by a count, taps in a log of the training window, say.

    What a shop's front page does, and the bar that a "more like this" list has to clear.
    """

    def __init__(self, counts: np.ndarray, *, name: str = "popularity"):
        """counts: real [n], higher is more popular; of an earlier window than the queries', or it knows the answers."""
        counts = np.asarray(counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iuf" or np.isnan(counts).any():
            raise UserError(f"popularity: {counts.dtype} {list(counts.shape)}; expected a number for each item")
        self.name = name
        # Ranks, since float32 would make large counts equal.
        self._score = np.unique(counts, return_inverse=True)[1].reshape(-1).astype(np.float32)

    @classmethod
    def of_column(cls, values: Sequence[str], *, column: str, ids: Sequence[str]) -> "PopularityRanker":
        """From a catalogue's attribute. UserError names the item whose value is no number."""
        counts = np.empty(len(values))
        for row, value in enumerate(values):
            try:
                counts[row] = float(value)
            except (TypeError, ValueError):
                counts[row] = np.nan
            if not np.isfinite(counts[row]):
                raise UserError(f"popularity: {column} of item {ids[row]!r} is {value!r}; expected a number")
        return cls(counts)

    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """See `eval.rankers.ranker.Ranker`; how many distinct counts are lower."""
        if candidates is None:
            return np.tile(self._score, (len(queries), 1))
        return np.where(candidates >= 0, self._score[candidates], np.float32(-np.inf))


class TitleRanker:
    """Cosine of titles by TF-IDF: what can be had without looking at a picture.

    Where relevance comes from attributes that titles name, this is a hint of the ceiling and no rival. Words are case
    folded and counted; weight = count * (ln((1 + n) / (1 + df)) + 1), then unit norm (Salton and Buckley 1988, with
    scikit-learn's smoothing). df is over the titles given. A title without words scores 0 with everything.
    """

    def __init__(self, titles: Sequence[str], *, name: str = "title TF-IDF"):
        if not titles:
            raise UserError("title row: no titles; expected one for each item")
        self.name = name
        vocabulary: dict[str, int] = {}
        counted = [[vocabulary.setdefault(token, len(vocabulary)) for token in _tokens(title)] for title in titles]
        ends = np.cumsum([0, *map(len, counted)])
        columns = np.fromiter((token for tokens in counted for token in tokens), np.int32, ends[-1])
        shape = (len(titles), max(1, len(vocabulary)))
        weights = scipy.sparse.csr_array((np.ones(len(columns)), columns, ends), shape=shape)
        weights.sum_duplicates()
        df = np.bincount(weights.indices, minlength=shape[1])
        weights.data *= (np.log((1 + shape[0]) / (1 + df)) + 1)[weights.indices]
        norm = np.sqrt(weights.power(2).sum(axis=1))
        weights.data /= np.repeat(norm, np.diff(weights.indptr))
        self._weights = weights

    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """See `eval.rankers.ranker.Ranker`; 0 to 1, added up in float64."""
        return row_products(self._weights, queries, candidates)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels as an embedding: centred per feature over the set, then unit norm.

    Without the centring all pictures on white ground look alike to a cosine. Works in place on its one output (4 bytes
    a pixel and channel: 9,000 images of 64x64x3 are 442 MB) and converts few images at a time, so `images` may be a
    memmap. Byte-identical images come out byte-identical.

    Args:
      images: uint8 [n, height, width, 3].

    Returns:
      float32 [n, height * width * 3].

    Raises:
      UserError: another shape or dtype, or an image equal to the mean of all (it has no direction; all equal, say).
    """
    if not isinstance(images, np.ndarray):
        raise UserError(f"images are {type(images).__name__}: expected uint8 [n, height, width, 3], all of one size")
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(f"images are {images.dtype} {list(images.shape)}: expected uint8 [n, height, width, 3]")
    n = len(images)
    total = np.zeros(images.shape[1:], np.int64)
    for lo in range(0, n, _BLOCK):
        total += images[lo : lo + _BLOCK].sum(axis=0, dtype=np.int64)
    mean = (total / max(n, 1)).astype(np.float32).reshape(-1)
    out = np.empty((n, mean.size), np.float32)
    for lo in range(0, n, _BLOCK):
        block = out[lo : lo + _BLOCK]
        np.subtract(images[lo : lo + _BLOCK].reshape(len(block), -1), mean, out=block)
        norm = np.sqrt(np.square(block).sum(axis=1))[:, None]  # row by row, so equal rows get equal norms
        # A picture that only rounding separates from the mean has no direction either.
        flat = np.flatnonzero(norm[:, 0] <= 1e-4 * np.sqrt(mean.size))
        if flat.size:
            raise UserError(
                f"image {lo + flat[0]} equals the mean of the {n} images: raw pixels need a set of different pictures"
            )
        block /= norm
    return out


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Any) -> Any:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of a uint64 or an array: each bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _tokens(title: str) -> Iterator[str]:
    for run in _TOKENS.findall(title.casefold()):
        if len(run) > 1 and re.match(f"[{_UNSPACED}]", run):
            yield from (run[i : i + 2] for i in range(len(run) - 1))
        else:
            yield run
