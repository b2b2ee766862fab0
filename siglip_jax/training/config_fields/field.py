"""What a field of the config is: its default, what it does, which values it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Values:
    """Which values a field takes.

    Attributes:
      expected: in words, as an error and the reference say it; "" for every value of the default's type.
      holds: whether it takes a value; None where the code that reads the field checks it, as that needs more than the
        config: the parameters, the catalogue or the log.
    """

    expected: str
    holds: Callable[[Any], bool] | None = None


ANY = Values("")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: its value in `default_config`. A value of another type is an error (`ml_collections`).
      text: what it does, Markdown.
      values: which values it takes.
      free: whether a run may be continued with another value, since it does not change what is computed.
    """

    default: Any
    text: str
    values: Values = ANY
    free: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises a UserError where the field, "config.steps", does not take `value`."""
        try:
            good = self.values.holds is None or self.values.holds(value)
        except TypeError:  # None, which a ConfigDict takes everywhere
            good = False
        if not good:
            raise UserError(f"{name}={value!r}; expected {self.values.expected}")


@dataclasses.dataclass(frozen=True)
class FieldTable:
    """Fields of one subject.

    Attributes:
      title: of the subject, for the reference.
      group: "optimizer" for the fields `config.optimizer.*`; "" for fields of the config itself.
      text: what the fields have in common, Markdown.
      fields: {name: field}.
    """

    title: str
    group: str
    text: str
    fields: Mapping[str, Field]

    def full_name(self, name: str) -> str:
        """ "learning_rate" -> "optimizer.learning_rate"."""
        return f"{self.group}.{name}" if self.group else name


def all_free(fields: Mapping[str, Field]) -> dict[str, Field]:
    """The fields, each `free`: of a table that has no say in what a step computes."""
    return {name: dataclasses.replace(field, free=True) for name, field in fields.items()}


def one_of(*choices: str) -> Values:
    return Values(f"one of {', '.join(choices)}", lambda value: value in choices)


def at_least(least: float, meaning: str = "") -> Values:
    """`meaning` says it in other words, as "0 for none, or more"."""
    return Values(meaning or f"at least {least}", lambda value: value >= least)


def above(limit: float) -> Values:
    return Values(f"more than {limit}", lambda value: value > limit)


def between(low: float, high: float, meaning: str = "", *, open_low: bool = False, open_high: bool = False) -> Values:
    """From `low` to `high`; an open end is left out."""

    def holds(value: Any) -> bool:
        return (low < value if open_low else low <= value) and (value < high if open_high else value <= high)

    if open_low:
        words = f"more than {low}, up to {high}"
    else:
        words = f"{low} to less than {high}" if open_high else f"{low} to {high}"
    return Values(meaning or words, holds)
