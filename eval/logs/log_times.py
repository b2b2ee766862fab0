"""Times of a log, whatever they are written as: microseconds since 1970 here.

ISO 8601 (UTC where it names no zone), or numbers since 1970: seconds below 1e11, milliseconds below 1e14, microseconds
below 1e17, nanoseconds above. Digits that spell a date (20240501, 2024050112) are that date. A number that would be
before 1990 or after 2100 is no time, unless its unit is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from eval.logs.database import Database
from siglip_jax.errors import UserError, check_choice

AUTO, DATE = "auto", "date"
UNITS = (AUTO, "s", "ms", "us", "ns", DATE)
FIRST, LAST = 631_152_000_000_000, 4_102_444_800_000_000  # 1990 and 2100: what is outside is not a shop's
READINGS = (  # of `reading_of_text`
    "ISO 8601, UTC where they name no zone",
    "seconds since 1970",
    "milliseconds since 1970",
    "microseconds since 1970",
    "nanoseconds since 1970",
    "digits of a date, UTC",
)
EXPECTED = "an ISO 8601 time, such as 2024-07-01 or 2024-07-01T06:00Z, or a number since 1970"

_ISO, _DATE = 0, READINGS.index("digits of a date, UTC")
_NUMBER = r"\s*[+-]?[0-9]{1,28}([.][0-9]*)?([eE][+]?[0-9]{1,2})?\s*"
_DIGITS = r"\s*(19|20)[0-9]{6}([0-9]{2}){0,3}([.]0*)?\s*"  # YYYYMMDD of this or the last century, HH, MM, SS or none
_YEAR = r"\s*[0-9]{4}[-/].*"
_OFFSET = r"\s*([+-][0-9]{2}):?([0-9]{2})\s*$"  # "... +0200" and "... -07:00", written "...+02:00"
_CLOCK = r".*:[0-9]{2}([.][0-9]+)?\s*[+-][0-9]{2}:?[0-9]{2}\s*"


def reading_of_text(text: str, unit: str = AUTO) -> str:
    """SQL that says which of READINGS a text (SQL) has; null for none."""
    number, size = f"when {_matches(text, _NUMBER)} then", f"abs({_decimal(text)})"
    if unit == AUTO:  # digits that spell a date are no seconds since 1970, but where these would be before 2033
        date = f"when {_calendar(text)} is not null and coalesce({size}, 0) not between 1e9 and 2e9 then {_DATE}"
        limits = (100_000_000_000, 100_000_000_000_000, 100_000_000_000_000_000)
        by_size = " ".join(f"when {size} < {limit} then {kind}" for kind, limit in enumerate(limits, 1))
        number = f"{date} {number} case {by_size} else 4 end"
    else:
        number = f"{number} {UNITS.index(unit)}"
    return f"(case {number} when {_matches(text, _YEAR)} then {_ISO} end)"


def time_of_text(text: str, reading: str) -> str:
    """SQL of the time, microseconds since 1970, that a text has by one of READINGS (both SQL); null for none."""
    number = _decimal(text)
    scaled = (f"{number} * 1000000", f"{number} * 1000", number, f"cast(floor({number}) as hugeint) // 1000")
    numbers = " ".join(f"when {kind} then try(cast(floor({each}) as bigint))" for kind, each in enumerate(scaled, 1))
    zoned = f"case when {_matches(text, _CLOCK)} then regexp_replace({text}, '{_OFFSET}', '\\1:\\2') else {text} end"
    iso = f"try_cast({zoned} as timestamptz)"
    return (
        f"(case {reading} when {_ISO} then case when isfinite({iso}) then epoch_us({iso}) end {numbers} "
        f"when {_DATE} then {_calendar(text)} end)"
    )


def _matches(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, '{pattern}')"


def _decimal(text: str) -> str:
    return f"try_cast({text} as decimal(38, 9))"  # a double would round nanoseconds


def _calendar(text: str) -> str:
    padded = f"rpad(regexp_extract({text}, '[0-9]+'), 14, '0')"
    return f"(case when {_matches(text, _DIGITS)} then epoch_us(try_strptime({padded}, '%Y%m%d%H%M%S')) end)"


def is_plausible(time: int) -> bool:
    """Whether a shop may have logged it."""
    return FIRST <= time < LAST


def times_of(values: Sequence[str], *, what: str, ids: Sequence[str], unit: str = AUTO) -> np.ndarray:
    """Texts as in a log's time column -> microseconds since 1970, int64 [n]; the smallest int64 for "".

    Raises:
      UserError: naming the item whose value is no time, or a bare number that cannot be one.
    """
    check_unit(unit)
    missing = np.iinfo(np.int64).min
    texts = pa.array([value or None for value in values], pa.string())
    reading = reading_of_text("t", unit)
    with Database() as sql, sql.table("given", {"row": np.arange(len(values)), "t": texts}):
        query = f"select {reading}, {time_of_text('t', reading)} from given order by row"
        found = sql.execute(query).fetchall()
    for value, (kind, time), item in zip(values, found, ids, strict=True):
        of = f"{what} of item {item!r}" if item else what
        if value and time is None:
            raise UserError(f"{of} is {value!r}; expected {EXPECTED}")
        if value and unit == AUTO and kind != _ISO and not is_plausible(time):
            raise UserError(f"{of} is {value!r}: {iso(time)}, as {READINGS[kind]}; expected {EXPECTED}")
    return np.array([missing if time is None else time for _, time in found], np.int64)


def check_unit(unit: str) -> None:
    """Raises a UserError unless it is one of UNITS."""
    check_choice("config.evaluation.time_unit", unit, UNITS)


def iso(time: int) -> str:
    """Microseconds since 1970 as ISO 8601, UTC."""
    return str(np.datetime64(int(time), "us").astype("datetime64[s]")) + "Z"


def parse_time(text: str, *, flag: str, unit: str = AUTO) -> int:
    """A time as a log has it -> microseconds since 1970. UserError names the flag."""
    check_unit(unit)
    try:
        return int(times_of([text], what=flag, ids=[""], unit=unit)[0])
    except UserError as error:
        raise UserError(f"{flag}={text}: {str(error).partition(repr(text))[2].lstrip(';: ')}") from None
