"""Settings of the processor files of others: what both their pictures' and their titles' side ask and write."""

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


def value_range(path: epath.Path, mean: Any, std: Any, *, scale: Any = 1 / 255) -> tuple[float, float]:
    """What (x * scale - mean) / std makes of 0 and 255; one value for all three channels."""
    channels = [value if isinstance(value, list) else [value] for value in (mean, std)]
    if not all(numbers and all(number == numbers[0] for number in numbers) for numbers in channels):
        raise UserError(f"{path}: image_mean={mean!r}, image_std={std!r}; expected equal channels")
    (shift, *_), (width, *_) = channels
    if not all(type(value) in (int, float) for value in (scale, shift, width)) or not scale > 0 or not width > 0:
        raise UserError(f"{path}: rescale_factor={scale!r}, image_mean={mean!r}, image_std={std!r}; expected numbers")
    # 255 * 0.00392156862745098 is 1 but for the last bit.
    low, high = (round((level * scale - shift) / width, 9) for level in (0, 255))
    return low, high


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Indented, in UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
