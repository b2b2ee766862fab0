"""Fits (t, b) to the embeddings that a model makes of batches of one size.

b carries the share of positives among the pairs of a batch, p = 1 / batch, so that a b learned at 32,768 is far too
low for a batch of 256: near log(p / (1 - p)) every pair begins at its prior, as the SigLIP paper asks for (arXiv
2303.15343, section 3.2). With the similarities fixed the sigmoid loss is convex in (exp t, b), so two bisections on its
derivatives find the one minimum, in float64, the same on every process.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

BINS = 1 << 14  # over [-1, 1]; a bin is stood for by its own mean, so the error is of second order in its width
MAX_PAIRS = 1 << 22  # similarities looked at in one batch: rows of a larger one are sampled evenly
SCALES = (
    1.0,
    200.0,
)  # of exp(t): the published models have 110 to 120; without bounds, separable pairs have no minimum


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Similarities of sampled rows of one batch.

    Attributes:
      similarity: float64 [rows, n].
      positive: float64 [rows, n], what each pair weighs as a positive, 0 for others.
      negative: bool [rows, n].
    """

    similarity: np.ndarray
    positive: np.ndarray
    negative: np.ndarray

    def losses(self, scale: float, bias: float) -> np.ndarray:
        """The sigmoid loss of each row: float64 [rows], as `losses.sigmoid_loss` sums it."""
        logits = scale * self.similarity + bias
        return (self.positive * np.logaddexp(0, -logits) + self.negative * np.logaddexp(0, logits)).sum(axis=1)

    def shuffled(self) -> Labelled:
        """The same pictures and titles, each picture paired with the title of another row."""
        shift = self.positive.shape[1] // 2
        return Labelled(self.similarity, np.roll(self.positive, shift, axis=1), np.roll(self.negative, shift, axis=1))


def labelled(image: np.ndarray, text: np.ndarray, groups: np.ndarray, *, same_group: str = "positive") -> Labelled:
    """Embeddings [n, d] twice and int [n] groups of one batch -> its pairs, at most about MAX_PAIRS of them."""
    n = len(image)
    rows = np.arange(0, n, max(1, math.ceil(n * n / MAX_PAIRS)))
    similarity = image[rows].astype(np.float64) @ text.astype(np.float64).T
    if same_group == "negative":
        groups = np.arange(n)
    same = groups[rows][:, None] == groups
    positive = (rows[:, None] == np.arange(n) if same_group == "ignore" else same).astype(np.float64)
    if same_group == "mean":
        positive /= same.sum(axis=1, keepdims=True)
    return Labelled(similarity, positive, ~same)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Similarities of positive and negative pairs: mean and count of each bin, float64 [bins]; rows they came from.

    A pair counts for its weight.
    """

    positives: tuple[np.ndarray, np.ndarray]
    negatives: tuple[np.ndarray, np.ndarray]
    rows: int

    @classmethod
    def of(cls, batches: Iterable[Labelled]) -> Histogram:
        sums, counts, rows = np.zeros((2, BINS)), np.zeros((2, BINS)), 0
        for batch in batches:
            rows += len(batch.similarity)
            number = np.clip(((batch.similarity + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
            for kind, weight in enumerate((batch.positive, batch.negative)):
                chosen = weight > 0
                counts[kind] += np.bincount(number[chosen], weight[chosen], minlength=BINS)
                sums[kind] += np.bincount(number[chosen], (batch.similarity * weight)[chosen], minlength=BINS)
        positives, negatives = ((s[n > 0] / n[n > 0], n[n > 0]) for s, n in zip(sums, counts, strict=True))
        return cls(positives, negatives, rows)

    def loss(self, scale: float, bias: float) -> float:
        """Mean over rows."""
        (x, count), (y, other) = self.positives, self.negatives
        positive = (count * np.logaddexp(0, -scale * x - bias)).sum()
        return float((positive + (other * np.logaddexp(0, scale * y + bias)).sum()) / self.rows)

    def constant_loss(self) -> float:
        """Of the best constant logit, log(p / (1 - p)): what a calibrated model that sees nothing reaches."""
        positive, negative = self.positives[1].sum(), self.negatives[1].sum()
        total = positive + negative
        parts = [k * math.log(total / k) for k in (positive, negative) if k]
        return float(sum(parts) / self.rows)

    def gradient(self, scale: float, bias: float) -> tuple[float, float]:
        """d loss / d scale, d loss / d bias, times the rows."""
        (x, count), (y, other) = self.positives, self.negatives
        missing = count * _sigmoid(-scale * x - bias)
        wrong = other * _sigmoid(scale * y + bias)
        return float((wrong * y).sum() - (missing * x).sum()), float(wrong.sum() - missing.sum())


def fit(histogram: Histogram, *, scale: float, which: str) -> tuple[float, float]:
    """(scale, bias) of the smallest loss, scale = exp(t).

    Args:
      scale: the model's.
      which: "bias" keeps that scale, "both" looks for it within SCALES, or up to the given one where that is larger.

    Raises:
      ValueError: no positive or no negative pairs, for which no bias is best.
    """
    if not histogram.positives[1].size or not histogram.negatives[1].size:
        raise ValueError("t and b cannot be fitted: the batches hold no positive or no negative pairs")

    def best_bias(scale: float) -> float:
        # Beyond these every pair is one-sided, whatever its similarity in [-1, 1].
        return _root(lambda bias: histogram.gradient(scale, bias)[1], -scale - 60, scale + 60)

    if which == "both":
        low, high = math.log(SCALES[0]), math.log(max(SCALES[1], scale))
        scale = math.exp(_root(lambda t: histogram.gradient(math.exp(t), best_bias(math.exp(t)))[0], low, high))
    return scale, best_bias(scale)


def _root(increasing: Callable[[float], float], low: float, high: float) -> float:
    """Where an increasing function changes its sign; the nearer end where it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return (low + high) / 2


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
