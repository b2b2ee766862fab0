"""Regex tables over parameter paths, as in big_vision: the first match wins, an uncovered parameter is an error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import numpy as np

from siglip_jax.errors import UserError

T = TypeVar("T")
Params = Any  # a tree of arrays by name, {"img": {...}, "txt": {...}, "t": [1], "b": [1]}, or of what belongs to each


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as "img/Transformer/encoder_norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def params_checksum(params: Any) -> str:
    """sha256 of parameters, by name."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
        digest.update(f"{path_name(path)} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def match_rules(rules: Iterable[tuple[str, T]], tree: Any, *, default_for_scalars: T | None = None) -> Any:
    """A tree shaped as `tree` whose leaves are the values of the first rule whose regex matches the whole path.

    Args:
      default_for_scalars: where given, the value of leaves without dimensions, which then need no rule: counters.

    Raises:
      ValueError: listing the paths that no rule covers.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    uncovered: list[str] = []

    def first_match(path: tuple[Any, ...], leaf: Any) -> T | None:
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


def check_rules(name: str, rules: Any, tree: Any, *, kind: type) -> None:
    """Checks a table that a user wrote: pairs (regex, value), each regex matching some path of `tree`.

    Args:
      name: of the config's field.
      kind: of the values, bool or float (of 0 or more).

    Raises:
      UserError: naming the rule; one that matches nothing is a misspelt path, and would do nothing silently.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(f"{name}: {rule!r}; expected pairs of a regex over parameter paths and a value")
        pattern: str = rule[0]
        value: Any = rule[1]
        if _wrong_value(value, kind):
            expected = "True or False" if kind is bool else "a number of 0 or more"
            raise UserError(f"{name}: {pattern!r} has the value {value!r}; expected {expected}")
        try:
            found = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            raise UserError(f"{name}: {pattern!r} is no regular expression ({error})") from error
        if not found:
            some = ", ".join(paths[:: len(paths) // 4 + 1])
            raise UserError(f"{name}: {pattern!r} matches no parameter; paths are such as {some}")


def _wrong_value(value: Any, kind: type) -> bool:
    if kind is bool:
        return not isinstance(value, bool)
    return isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0
