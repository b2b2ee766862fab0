"""Why ids of two sources do not join: the way of writing in which they differ, with an id of each side."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

_WRITINGS: dict[str, Callable[[str], str]] = {  # the first that joins most, applied to theirs, then to both
    "leading zeros": lambda text: text.lstrip("0") or "0",
    '".0" behind it': lambda text: re.sub(r"\.0+$", "", text),
    "blanks": lambda text: "".join(text.split()),
    "capital letters": str.casefold,
    "quotation marks": lambda text: text.strip("\"'"),
    "what stands behind it, a suffix": lambda text: re.split(r"[-_.:/|#]", text, maxsplit=1)[0],
    "what stands before it, a prefix": lambda text: re.split(r"[-_.:/|#]", text)[-1],
    "letters round the number": lambda text: re.sub(r"\D", "", text),
}
_LEAST = 0.5  # share of the ids that a way of writing has to join, to be called the cause
_THEIRS, _BOTH = 20_000, 200_000  # ids that are looked at; of ours, up to which both sides are rewritten


@dataclasses.dataclass(frozen=True)
class Cause:
    """`words`: in what the ids differ; `theirs` and `ours`: two ids that differ in nothing else."""

    words: str
    theirs: str
    ours: str


def likely_cause(theirs: Iterable[str], ours: Iterable[str]) -> Cause | None:
    """In what ids that do not join differ, where that would join at least half of the smaller side; None for unknown.

    Args:
      theirs, ours: ids, of which none is in both. 20,000 of theirs are looked at; where there are more than 200,000 of
        ours, only theirs are rewritten.
    """
    left, right = list(theirs)[:_THEIRS], list(ours)
    best, most = None, _LEAST * max(1, min(len(left), len(right)))
    for rewritten in (False, True):
        if best or (rewritten and len(right) > _BOTH):
            break
        known = {item: item for item in right}
        for words, write in _WRITINGS.items():
            if rewritten:
                known = {write(item): item for item in reversed(right)}
                known.pop("", None)
            joined = [item for item in left if write(item) in known]
            if joined and len(joined) >= most and (best is None or len(joined) > most):
                best, most = Cause(words, joined[0], known[write(joined[0])]), len(joined)
    return best


def describe_mismatch(theirs: Iterable[str], ours: Iterable[str], *, of_theirs: str, of_ours: str) -> str:
    """An id of each side, and the likely cause: for the end of an error."""
    left, right = list(theirs), list(ours)
    cause = likely_cause(left, right)
    first, second = (cause.theirs, cause.ours) if cause else (left[0], right[0])
    shown = f"{first!r} is one of {of_theirs}, {second!r} one of {of_ours}"
    return f"ids are compared as text: {shown}" + (f"; they differ in {cause.words}" if cause else "")
