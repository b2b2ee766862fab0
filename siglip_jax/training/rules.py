"""Regex tables over parameter paths, as in big_vision: the first match wins, an uncovered parameter is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as "img/Transformer/encoder_norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match_rules(rules: Iterable[tuple[str, T]], tree: Any, *, default_for_scalars: T | None = None) -> Any:
    """A tree shaped as `tree` whose leaves are the values of the first rule whose regex matches the whole path.

    Args:
      default_for_scalars: where given, the value of leaves without dimensions, which then need no rule: counters.

    Raises:
      ValueError: listing the paths that no rule covers.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    uncovered: list[str] = []

    def first_match(path, leaf):
        if default_for_scalars is not None and leaf.ndim == 0:
            return default_for_scalars
        name = path_name(path)
        for pattern, value in compiled:
            if pattern.fullmatch(name):
                return value
        uncovered.append(name)
        return None

    matched = jax.tree_util.tree_map_with_path(first_match, tree)
    if uncovered:
        raise ValueError(f"no rule covers {', '.join(uncovered)}; add a rule for it to the table")
    return matched
