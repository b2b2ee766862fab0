"""Times as other tools write them, against Python's own datetime."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.logs import LogFormat, read_log
from eval.logs.log_times import UNITS, parse_time, times_of
from siglip_jax.errors import UserError

UTC = datetime.UTC
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = datetime.timedelta(microseconds=1)
ZONES = ["Z", " UTC", " +0000", "+00", "+02:00", " -07:00", "+0530", " +0200", "-03", ""]


def offset_of(zone):
    digits = zone.strip().lstrip("ZUTC").replace(":", "").ljust(5, "0")
    minutes = int(digits[1:3]) * 60 + int(digits[3:5])
    return datetime.timedelta(minutes=-minutes if "-" in zone else minutes)


def spellings(moment):
    """{spelling: microseconds since 1970} of a moment as other tools write it, to the second or below."""
    second = moment.replace(microsecond=0)
    whole, micro = (second - EPOCH) // MICROSECOND, (moment - EPOCH) // MICROSECOND
    found = {str(whole // 10**6): whole, f"{whole // 10**6}.0": whole, f"{whole / 10**6:.9e}": whole}
    found |= {str(micro // 1000): micro // 1000 * 1000, str(micro): micro, f"{micro}789": micro}
    found |= {f"{micro // 10**6}.{micro % 10**6:06d}": micro}
    if not 1e9 <= int(second.strftime("%Y%m%d%H")) <= 2e9:  # may be seconds
        found[second.strftime("%Y%m%d%H")] = whole - whole % (3600 * 10**6)
    found |= {second.strftime("%Y%m%d%H%M%S"): whole, second.strftime("%Y%m%d%H%M"): whole - whole % (60 * 10**6)}
    found |= {second.strftime("%Y%m%d"): whole - whole % (86400 * 10**6)}
    for zone in ZONES:
        there = moment + offset_of(zone)
        for sign in " T":
            found[there.strftime(f"%Y-%m-%d{sign}%H:%M:%S{zone}")] = whole
            found[there.strftime(f"%Y-%m-%d{sign}%H:%M:%S.%f{zone}")] = micro
    return found


@settings(deadline=None, max_examples=25)
@given(
    st.datetimes(datetime.datetime(1990, 1, 2), datetime.datetime(2099, 12, 30), timezones=st.just(UTC)),
    st.text(" ", max_size=2),
)
def test_every_spelling_of_a_moment(moment, blank):
    expected = spellings(moment)
    texts = [f"{blank}{text}{blank}" for text in expected]
    found = times_of(texts, what="time", ids=texts)
    assert dict(zip(expected, found.tolist(), strict=True)) == expected


@settings(deadline=None, max_examples=25)
@given(st.text(max_size=12) | st.from_regex(r"[0-9+\-:.TZeE/ ]{1,24}", fullmatch=True))
def test_any_text_is_a_plausible_time_or_refused(text):
    try:
        found = parse_time(text, flag="--from")
    except UserError:
        return
    if text and text.strip().lstrip("+-").replace(".", "").isdigit():
        assert "1990" <= str(EPOCH + found * MICROSECOND) < "2100"


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [("5", "s", 5), ("5000", "ms", 5), ("-5", "s", -5), ("20240501", "date", 1714521600), ("20240501", "s", 20240501),
     ("1999123123", "date", 946681200), ("1999123123", "auto", 1999123123)],
)  # fmt: skip
def test_a_unit_that_is_given_counts(text, unit, seconds):
    assert parse_time(text, flag="--from", unit=unit) == seconds * 10**6


def test_what_cannot_be_right_is_refused():
    for text, said in (
        ("5", "--from=5: 1970-01-01T00:00:05Z, as seconds since 1970; expected an ISO 8601"),
        ("20240501000", "--from=20240501000: 2611-05-26T"),  # a digit is missing
        ("May", "--from=May: expected an ISO 8601"),
    ):
        with pytest.raises(UserError, match=said):
            parse_time(text, flag="--from")
    with pytest.raises(UserError, match=f"time_unit='weeks'; expected one of {', '.join(UNITS)}"):
        parse_time("5", flag="--from", unit="weeks")


def write(path, times):
    path.write_text("user_id,item_id,action,time\n" + "".join(f"u,i{n},tap,{t}\n" for n, t in enumerate(times)))
    return str(path)


def test_a_log_says_how_its_times_were_read(tmp_path):
    times = ["1711929600000", "1711929600000", "20240401", "2024-04-01", "5"]
    with read_log([write(tmp_path / "a.csv", times)], items=[], form=LogFormat({"tap": 1}), show=False) as log:
        (said,) = log.counts["assumed"]
        assert said.startswith("times read as milliseconds since 1970 (2), ISO 8601, UTC where they name no zone (1), ")
        assert said.endswith("seconds since 1970 (1), digits of a date, UTC (1)")
        assert log.counts["skipped"] == {"impossible time": 1}
        assert log.counts["first"] == log.counts["last"] == "2024-04-01T00:00:00Z"


def test_a_log_of_implausible_times_says_what_to_type(tmp_path):
    path = write(tmp_path / "a.csv", ["1000", "2000", "2024-04-01"])  # seconds since it began
    said = r"2 of 3 times are before 1990 or after 2100, such as '1000', 1970-01-01T00:16:40Z as seconds since 1970; .*"
    with pytest.raises(UserError, match=f"{said}--config.evaluation.time_unit=s"):
        read_log([path], items=[], form=LogFormat({"tap": 1}), show=False)
    with read_log([path], items=[], form=LogFormat({"tap": 1}, time_unit="ms"), show=False) as log:
        assert log.counts["first"] == "1970-01-01T00:00:01Z"
        assert log.counts["events"] == 3
