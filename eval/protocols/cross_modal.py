"""Retrieval between pictures and titles of one split, both ways: recall@k and mean reciprocal rank.

A query's matches are all items of its title group, so that a second listing of the same title is no error. recall@k is,
as everywhere in the image-text literature, the share of queries with a match among the first k (what
`eval.metrics.ranking` calls hit@k).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.embeddings.vectors import Scorer
from eval.metrics import mean_metrics, rank_metrics
from siglip_jax.errors import UserError

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")


def retrieval_names(cutoffs: Sequence[int] = CUTOFFS) -> list[str]:
    """What `cross_modal_retrieval` reports, such as "image_to_text/recall@1"."""
    return [f"{way}/{name}" for way in DIRECTIONS for name in (*(f"recall@{k}" for k in cutoffs), "MRR")]


def cross_modal_retrieval(
    image: np.ndarray,
    text: np.ndarray,
    groups: np.ndarray,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    ties: str = "expected",
    chunk: int = 512,
) -> dict[str, float]:
    """Every picture looks for its title among all titles, and every title for its picture among all pictures.

    Returns:
      {"image_to_text/recall@1": ..., "image_to_text/MRR", "text_to_image/..."}, means over the n queries of what
      `retrieval_of_queries`, with the same arguments, finds.
    """
    found = retrieval_of_queries(image, text, groups, cutoffs=cutoffs, ties=ties, chunk=chunk)
    return {name: mean["mean"] for name, mean in mean_metrics(found).items()}


def retrieval_of_queries(
    image: np.ndarray,
    text: np.ndarray,
    groups: np.ndarray,
    *,
    cutoffs: Sequence[int] = CUTOFFS,
    ties: str = "expected",
    chunk: int = 512,
) -> dict[str, np.ndarray]:
    """What each of the n pictures and n titles finds: {"image_to_text/recall@1": float64 [n], ...}.

    Equal vectors score exactly equal, whatever the BLAS, so that the tie rule applies to titles listed twice.

    Args:
      image, text: real [n, d] embeddings of the same n items, any norm but 0.
      groups: int [n]; items of one number match each other.
      ties: "expected", the mean over all orders of equal scores, or "stable", see `eval.metrics.ranking.rank_metrics`.
      chunk: queries scored at once; memory is about 30 bytes * chunk * n beside the vectors.

    Raises:
      UserError: sizes that differ, no item, a NaN, infinite or zero vector, a cutoff below 1, unknown ties.
    """
    image, text, groups = np.asarray(image), np.asarray(text), np.asarray(groups)
    if image.ndim != 2 or image.shape != text.shape or groups.shape != image.shape[:1] or not len(image):
        raise UserError(
            f"retrieval: image {list(image.shape)}, text {list(text.shape)}, groups {list(groups.shape)}; expected "
            "[n, d], [n, d] and [n] with at least one item"
        )
    if chunk < 1:
        raise UserError(f"retrieval: chunk={chunk}; expected at least 1")
    metrics = {**{f"hit@{k}": f"recall@{k}" for k in cutoffs}, "MRR": "MRR"}
    sides = (Scorer(image), Scorer(text))
    per_query: dict[str, np.ndarray] = {}
    for way, (asked, searched) in zip(DIRECTIONS, (sides, sides[::-1]), strict=True):
        values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
        for low in range(0, len(image), chunk):
            rows = np.arange(low, min(low + chunk, len(image)))
            matches = groups[rows][:, None] == groups
            scores = searched.scores(asked.rows(rows))
            for name, found in rank_metrics(scores, matches, metrics=tuple(metrics), ties=ties).items():
                values[name].append(found)
        per_query |= {f"{way}/{metrics[name]}": np.concatenate(found) for name, found in values.items()}
    return per_query
