"""Times as other tools write them, against Python's own datetime."""

import datetime

import pytest

from eval.logs.log_times import parse_time, times_of
from siglip_jax.errors import UserError

UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 5, 1, 12, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "2024050112", "202405011200", "20240501120000", "2024-05-01 12:00:00 UTC", "2024-05-01 12:00:00.000 +0000",
        "2024-05-01 14:00:00.000 +0200", "2024-05-01 05:00:00 -07:00", "2024-05-01T12:00Z", str(SECONDS),
        f"{SECONDS}000", f"{SECONDS}000000", f"{SECONDS}000000000",
    ],
)  # fmt: skip
def test_one_moment_in_many_ways(text):
    assert times_of([text], what="time", ids=["a"])[0] == SECONDS * 10**6


def test_a_day_in_digits():
    expected = datetime.datetime(2024, 5, 1, tzinfo=UTC).timestamp() * 1e6
    assert parse_time("20240501", flag="--from") == expected
    with pytest.raises(UserError, match="--from=May: expected an ISO 8601"):
        parse_time("May", flag="--from")
