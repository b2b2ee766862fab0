"""Titles that are one title: equal after case folding and with runs of white space made one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from input_pipeline.duplicates.groups import value_codes


def normalise_title(title: str) -> str:
    """Case folded, runs of white space made one blank: titles equal after this are one title."""
    return " ".join(title.casefold().split())


def title_groups(titles: Sequence[str]) -> np.ndarray:
    """int64 [n]: equal numbers for equal normalised titles, 0, 1, 2, ... in order of first appearance."""
    return value_codes(pa.array([normalise_title(title) for title in titles], pa.string()))[0].astype(np.int64)
