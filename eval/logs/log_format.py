"""What the columns of a log mean, and what its actions are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from eval.logs.log_times import AUTO
from siglip_jax.errors import UserError

IMPRESSION = "impression"
REQUIRED = ("user_id", "time", "item_id")
OPTIONAL = ("query_id", "action", "rating", "position", "list_id", "query_item_id", "propensity", "randomised")
COLUMNS = (*REQUIRED, *OPTIONAL)
LIKE, RATED = "like", "rated"  # the actions that a rating is read as


@dataclasses.dataclass(frozen=True)
class LogFormat:
    """How a log is written, and what its actions are worth.

    Attributes:
      actions: {action: gain}, finite; below 0 for what speaks against an item (hide, report). "impression" is worth 0
        and need not be named.
      columns: {our column: the log's}, for those of another name.
      action_names: {the log's word: our action}; "" is a row without any word, such as those of a log of clicks alone.
      time_unit: one of `log_times.UNITS`: what numbers in the time column are; "auto" goes by their size.
      like_from: instead of an action the log has a rating, "like" from this number and "rated" below it; 0 for none.
      first_position: the position of the first item in a list; -1 where the log itself says it: 1 where that is its
        smallest position, else 0.
      segments: columns of the log, by its own names, that queries are told apart by: platform, country, ...
      on_error: what an impossible row does, "skip" (left out and counted) or "error".
    """

    actions: Mapping[str, float]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    action_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time_unit: str = AUTO
    like_from: float = 0
    first_position: int = -1
    segments: Sequence[str] = ()
    on_error: str = "skip"

    def gains(self) -> dict[str, float]:
        """{action: gain} with what needs no name. UserError on gains that are none."""
        gains: dict[str, float] = {IMPRESSION: 0.0, **({RATED: 0.0} if self.like_from else {})}
        for action, gain in self.actions.items():
            if isinstance(gain, bool) or not isinstance(gain, int | float) or not abs(gain) < float("inf"):
                raise UserError(f"config.evaluation.actions: {action}={gain!r}; expected a number")
            gains[action] = float(gain)
        if gains[IMPRESSION]:
            raise UserError(f"config.evaluation.actions: impression={gains[IMPRESSION]:g}; being shown is worth 0")
        if not any(gain > 0 for gain in gains.values()):
            raise UserError('config.evaluation.actions: nothing is worth anything; expected such as {"tap": 1}')
        if self.like_from and not gains.get(LIKE, 0) > 0:
            raise UserError(f'config.evaluation.like_from={self.like_from:g} needs a gain of "like" in actions')
        return gains
