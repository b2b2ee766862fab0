"""Times of a log, whatever they are written as: microseconds since 1970 here.

ISO 8601 (UTC where it names no zone), or numbers since 1970: seconds below 1e11, milliseconds below 1e14, microseconds
below 1e17, nanoseconds above. Digits that spell a date (20240501, 2024050112) are that date.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import numpy as np
import pyarrow as pa

from siglip_jax.errors import UserError

_DECIMAL = "try_cast({0} as decimal(38, 9))"  # a double would round nanoseconds
_EPOCH_DECIMAL = (
    f"(case when abs({_DECIMAL}) < 100000000000 then {_DECIMAL} * 1000000 "
    f"when abs({_DECIMAL}) < 100000000000000 then {_DECIMAL} * 1000 "
    f"when abs({_DECIMAL}) < 100000000000000000 then {_DECIMAL} else {_DECIMAL} / 1000 end)"
)
# Digits that are a date of this or the last century (YYYYMMDD, then HH, MM, SS or none) are no seconds since 1970.
_CALENDAR = (
    "(case when regexp_full_match({0}, '\\s*(19|20)[0-9]{{6}}([0-9]{{2}}){{0,3}}\\s*') then epoch_us(try_strptime(rpad("
    "trim({0}), 14, '0'), '%Y%m%d%H%M%S')) end)"
)
_ZONED = (  # "... +0200" and "... -07:00" as "...+02:00"
    "regexp_replace({0}, '\\s*([+-][0-9]{{2}}):?([0-9]{{2}})\\s*$', '\\1:\\2')"
)
_CLOCK = "regexp_full_match({0}, '.*:[0-9]{{2}}([.][0-9]+)?\\s*[+-][0-9]{{2}}:?[0-9]{{2}}\\s*')"
TIME_OF_TEXT = (
    f"(case when {_CALENDAR} is not null and abs(coalesce({_DECIMAL}, 0)) not between 1e9 and 2e9 then {_CALENDAR} "
    "when regexp_full_match({0}, '\\s*[+-]?[0-9]+([.][0-9]*)?\\s*') "
    f"then try_cast(floor({_EPOCH_DECIMAL}) as bigint) "
    f"when {_CLOCK} then epoch_us(try_cast({_ZONED} as timestamptz)) "
    "else epoch_us(try_cast({0} as timestamptz)) end)"
)


def times_of(values: Sequence[str], *, what: str, ids: Sequence[str]) -> np.ndarray:
    """Texts as in a log's time column -> microseconds since 1970, int64 [n]; the smallest int64 for "".

    Raises:
      UserError: naming the item whose value is no time.
    """
    missing = np.iinfo(np.int64).min
    table = pa.table({"row": np.arange(len(values)), "t": pa.array([v or None for v in values], pa.string())})
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as sql:
        sql.execute("set TimeZone = 'UTC'")
        sql.register("given", table)
        query = f"select {TIME_OF_TEXT.format('t')} us from given order by row"
        found = [time for (time,) in sql.execute(query).fetchall()]
    for value, time, item in zip(values, found, ids, strict=True):
        if value and time is None:
            raise UserError(f"{what} of item {item!r} is {value!r}; expected an ISO 8601 time or seconds since 1970")
    return np.array([missing if time is None else time for time in found], np.int64)


def iso(time: int) -> str:
    """Microseconds since 1970 as ISO 8601, UTC."""
    return str(np.datetime64(int(time), "us").astype("datetime64[s]")) + "Z"


def parse_time(text: str, *, flag: str) -> int:
    """A time as a log has it -> microseconds since 1970. UserError names the flag."""
    try:
        return int(times_of([text], what=flag, ids=[""])[0])
    except UserError:
        raise UserError(f"{flag}={text}: expected an ISO 8601 time, such as 2024-07-01 or 2024-07-01T06:00Z") from None
