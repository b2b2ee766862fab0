"""Train and test splits that share no title and no picture.

Shops list one product many times: colours and sizes under one title, one photo under several titles. A split by row
would put copies of test items into training and make every encoder look better than it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from siglip_jax.errors import UserError

MAX_NAME = 64  # letters of a split's name, which becomes part of file names


def normalise_title(title: str) -> str:
    """Case folded, runs of white space made one blank: titles equal after this are one title."""
    return " ".join(title.casefold().split())


def title_groups(titles: Sequence[str]) -> np.ndarray:
    """int64 [n]: equal numbers for equal normalised titles, 0, 1, 2, ... in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(normalise_title(title), len(numbers)) for title in titles], np.int64)


def connected_groups(titles: Sequence[str], image_hashes: Sequence[str]) -> np.ndarray:
    """int64 [n]: rows linked by an equal normalised title or an equal picture, directly or through others.

    The number of a group is the index of its first row.
    """
    parent = list(range(len(titles)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]  # halving the path keeps this near constant time
        return row

    first: dict[tuple[str, str], int] = {}
    for row, (title, image_hash) in enumerate(zip(titles, image_hashes, strict=True)):
        for key in (("title", normalise_title(title)), ("image", image_hash)):
            a, b = root(first.setdefault(key, row)), root(row)
            parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(len(titles))], np.int64)


def split_groups(
    titles: Sequence[str], image_hashes: Sequence[str], *, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """A split name for each row; rows linked by title or picture (`connected_groups`) get the same one.

    A group goes where the hash of (seed, its smallest normalised title) falls among the cumulative fractions. So the
    order of rows does not matter, and rows added later move no group they are not linked to. Fractions are met on
    average over groups, not exactly.

    Args:
      titles, image_hashes: [n] each.
      fractions: split name -> share, positive, summing to 1.
      seed: another seed, another split.
    """
    check_fractions(fractions)
    normalised = [normalise_title(title) for title in titles]
    groups = connected_groups(normalised, image_hashes).tolist()
    smallest: dict[int, str] = {}
    for group, title in zip(groups, normalised, strict=True):
        smallest[group] = min(title, smallest.get(group, title))
    names = list(fractions)
    bounds = np.cumsum([fractions[name] for name in names])[:-1]
    split = {
        group: names[int(np.searchsorted(bounds, _uniform(seed, title), side="right"))]
        for group, title in smallest.items()
    }
    return [split[group] for group in groups]


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuses, as a `UserError`, what is no set of shares with names that TFDS accepts."""
    for name, fraction in fractions.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "all":
            raise UserError(f"split name {name!r}; expected letters, digits and _, a letter first, and not 'all'")
        if len(name) > MAX_NAME:
            raise UserError(f"split name {name[:20]}... of {len(name)} letters; expected {MAX_NAME} or fewer")
        if not 0 < fraction <= 1:
            raise UserError(f"split {name}={fraction}; expected a fraction between 0 and 1")
    if not fractions or not math.isclose(math.fsum(fractions.values()), 1, abs_tol=1e-6):
        given = ", ".join(f"{name}={fraction}" for name, fraction in fractions.items())
        raise UserError(f"splits {given or 'none'}; expected fractions that sum to 1")


def _uniform(seed: int, key: str) -> float:
    """A number in [0, 1) from a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
