"""Settings of Hugging Face's processor files: what both their pictures' and their titles' side ask and write."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from siglip_jax.errors import UserError


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def switch(path: epath.Path, settings: Mapping[str, Any], name: str) -> bool:
    """A setting that is true, false, or left to its default, which is true."""
    value = settings.get(name)
    if value is not None and type(value) is not bool:
        raise UserError(f"{path}: {name}={value!r}; expected true or false")
    return value is not False


def refuse_unknown(
    path: epath.Path, settings: Mapping[str, Any], known: Collection[str], neutral: Collection[str]
) -> None:
    """Raises a UserError that lists the settings that are neither known nor neutral nor off."""
    unknown = {name: value for name, value in settings.items() if name not in known and name not in neutral and value}
    if unknown:
        listed = ", ".join(f"{name}={str(value)[:60]!r}" for name, value in sorted(unknown.items()))
        raise UserError(f"{path}: unknown settings {listed}; they may change what the model sees: remove them")


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Indented, in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
