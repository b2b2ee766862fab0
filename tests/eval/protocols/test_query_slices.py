"""Who asked, from where and when, against the datetime module."""

import dataclasses
import datetime

import numpy as np

from eval.logs import Live
from eval.protocols.query_slices import by_period, query_slicings


def micros(*moments):
    return np.array([int(m.replace(tzinfo=datetime.UTC).timestamp()) * 10**6 for m in moments])


def test_slices_of_a_log(some_queries):
    queries = some_queries(0, 4)
    begin = datetime.datetime(2024, 4, 1, 5, 59, 59)
    moments = [begin + datetime.timedelta(hours=h) for h in (0, 1, 13, 18)]
    queries = dataclasses.replace(
        queries,
        times=micros(*moments),
        users=np.array([0, 1, 0, 2]),
        segments={"platform": np.array(["ios", "", "web", "ios"], object)},
    )
    live = Live(np.full(60, np.iinfo(np.int64).min), np.full(60, np.iinfo(np.int64).max), "")
    found = query_slicings([], queries, live, None, first_seen=micros(moments[0], moments[0], moments[3]))
    labels = {
        slicing.name: [slicing.labels[code] if code >= 0 else None for code in slicing.codes] for slicing in found
    }
    assert labels["platform"] == ["ios", None, "web", "ios"]
    assert labels["user"] == ["new", "returning", "returning", "new"]
    assert labels["hour, UTC"] == ["00 to 05", "06 to 11", "18 to 23", "18 to 23"]
    profiles = dataclasses.replace(queries, items=np.full(4, -1))
    assert query_slicings([], profiles, live, None, first_seen=np.zeros(3)) == []


def test_days_and_weeks():
    begin = datetime.datetime(2024, 2, 28, 12)
    for length, unit in ((20, "day"), (90, "week from")):
        moments = [begin + datetime.timedelta(days=int(d)) for d in np.random.default_rng(0).permutation(length)]
        found = by_period(micros(*moments))
        assert found.name == unit
        assert list(found.labels) == sorted(found.labels)
        for moment, code in zip(moments, found.codes, strict=True):
            monday = moment - datetime.timedelta(days=moment.weekday())
            assert found.labels[code] == (moment if unit == "day" else monday).date().isoformat()
