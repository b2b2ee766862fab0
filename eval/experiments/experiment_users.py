"""The users of an experiment: who saw which variant, and what each did on each day."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from eval.logs.database import Database
from siglip_jax.errors import UserError

LARGEST = 1e100  # of numbers: their squares, summed over all users, are still numbers
CONTROL_NAMES = ("control", "a", "old", "baseline", "0", "off", "false")


@dataclasses.dataclass(frozen=True)
class ExperimentUsers:
    """u users in one variant each, and their sums by day in r rows.

    Attributes:
      names: user_ids, objects [u].
      variants: names, the control first; variant: int [u], places in it.
      user, day: int [r], of a row of sums; days from 0, the day of `days[0]`.
      sums: {key of a term: float64 [r]}.
      before: {key of a term: float64 [u]} of the time before the experiment; {} where there is none.
      exposed: int [u], the day of a user's first exposure.
      days: ISO dates, one a day; () where the table has no times.
      segments: {name: text [u]}, "" for none.
      left_out: {reason: {"users": int, "example": user_id}}.
      notes: lines on what was read, and what was assumed.
    """

    names: np.ndarray
    variants: tuple[str, ...]
    variant: np.ndarray
    user: np.ndarray
    day: np.ndarray
    sums: Mapping[str, np.ndarray]
    before: Mapping[str, np.ndarray]
    exposed: np.ndarray
    days: tuple[str, ...] = ()
    segments: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    simulated: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def counts(self) -> dict[str, int]:
        """{variant: users}."""
        return dict(zip(self.variants, np.bincount(self.variant, minlength=len(self.variants)).tolist(), strict=True))

    def totals(self, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """{key: [u]} summed over the rows chosen."""
        user = self.user[rows]
        return {key: np.bincount(user, values[rows], minlength=len(self)) for key, values in self.sums.items()}


def order_variants(found: Sequence[str], control: str) -> tuple[str, ...]:
    """The control first, then by name.

    Raises:
      UserError: one variant alone, a control that is none of them, or none that is called like one.
    """
    names = sorted(found)
    if len(names) < 2:
        raise UserError(
            f"one variant only, {', '.join(map(repr, names)) or 'none'}: expected two or more to compare; give the "
            "events of the others too, or name another column with --variant"
        )
    if not control:
        likely = [name for name in names if name.lower() in CONTROL_NAMES]
        if len(likely) != 1:
            raise UserError(f"variants {', '.join(names)}: say which is the control, such as --control={names[0]}")
        control = likely[0]
    if control not in names:
        raise UserError(f"--control={control}: no such variant; there are {', '.join(names)}")
    return (control, *(name for name in names if name != control))


def check_numbers(sql: Database, columns: Mapping[str, str]) -> None:
    """Raises a UserError where a cell of the table `raw` is text, NaN, infinite or above `LARGEST`; null is none.

    Args:
      columns: {column of raw: what the file calls it}.
    """
    for ours, theirs in columns.items():
        odd = f"{ours} is not null and not coalesce(abs(try_cast({ours} as double)) <= {LARGEST}, false)"
        rows, example, user = sql.one(f"select count(*), min({ours}), arg_min(user_id, {ours}) from raw where {odd}")
        if rows:
            raise UserError(
                f"column {theirs!r}: {rows:,} cells are no numbers up to {LARGEST:g}, such as {example!r} of user "
                f"{user!r}; expected such as 12.5, or nothing for 0"
            )
