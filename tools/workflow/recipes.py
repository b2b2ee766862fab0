"""Recipes: variations of a config, as flags name them: "name: field=value, field=value"."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence
from typing import Any

import ml_collections

from siglip_jax.errors import UserError

_NEXT_FIELD = re.compile(r",(?=\s*[\w.]+\s*=)")  # not the comma of a tuple, such as widths=(64, 128)


def changed(config: ml_collections.ConfigDict, fields: dict[str, Any]) -> ml_collections.ConfigDict:
    """A locked copy with other values of some fields, {"optimizer.learning_rate": 1e-4, ...}."""
    copy = config.copy_and_resolve_references()  # ConfigDict(config) would share the fields of fields
    copy.update_from_flattened_dict(fields)
    return copy.lock()


def with_relevance(config: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A locked copy of `config`, with what `other` says of relevance, gain and metrics."""
    names = ("relevance", "relevant_from", "gain", "metrics")
    return changed(config, {f"evaluation.{name}": other.evaluation[name] for name in names})


def parse_recipes(
    texts: Sequence[str], config: ml_collections.ConfigDict, *, flag: str, taken: Collection[str]
) -> dict[str, dict[str, Any]]:
    """{name: {field: value}} of a flag that is repeated; a UserError for a name twice, or one that is taken."""
    recipes = dict(parse_recipe(text, config, flag=flag) for text in texts)
    if len(recipes) < len(texts) or recipes.keys() & set(taken):
        raise UserError(f"--{flag}: each name once, and none of {', '.join(sorted(taken))}")
    return recipes


def parse_recipe(text: str, config: ml_collections.ConfigDict, *, flag: str) -> tuple[str, dict[str, Any]]:
    """ "name: field=value, field=value" -> (name, {field: value}); a UserError says which part is wrong."""
    from siglip_jax.training.config import flatten

    said = f"--{flag}={text!r}"
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not (name and colon and rest) or not re.fullmatch(r"\w[\w .+-]*", name):
        raise UserError(f"{said}: expected name: field=value, field=value; names are letters, digits and spaces")
    known, fields = flatten(config), {}  # type: dict[str, Any], dict[str, Any]
    for entry in _NEXT_FIELD.split(rest):
        field, sign, value = (part.strip() for part in entry.partition("="))
        if not sign or field not in known:
            raise UserError(f"{said}: {entry.strip()!r} names no field of the config; expected field=value")
        try:
            fields[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[field] = value
        if isinstance(known[field], float) and isinstance(fields[field], int):
            fields[field] = float(fields[field])
        if type(fields[field]) is not type(known[field]):
            raise UserError(f"{said}: {field} is {known[field]!r}; expected a value of that type")
    return name, fields
