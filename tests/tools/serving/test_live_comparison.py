"""Two encoders on live queries, held against the definitions."""

import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tools.serving.app import make_app
from tools.serving.generations import Generations
from tools.serving.live_comparison import overlap, rank_biased_overlap
from tools.serving.served import GenerationSource

LISTS = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(LISTS, LISTS)
def test_rank_biased_overlap_is_its_infinite_sum(one, other):
    """RBO_EXT is the sum (1 - p) p^(d-1) A_d where the agreement A stays what it is at the end of the lists."""
    depth, p = min(len(one), len(other)), 0.9
    if depth == 0:
        assert rank_biased_overlap(one, other) == (one == other)
        return
    agreement = [len(set(one[:d]) & set(other[:d])) / d for d in range(1, depth + 1)]
    agreement += [agreement[-1]] * 1000
    expected = math.fsum((1 - p) * p**d * each for d, each in enumerate(agreement))
    assert rank_biased_overlap(one, other) == pytest.approx(expected, abs=1e-9)
    assert rank_biased_overlap(one, one) == pytest.approx(1)


def test_overlap():
    assert overlap("abc", "cde") == pytest.approx(1 / 3)
    assert overlap("abcd", "ab") == 0.5
    assert (overlap("", ""), overlap("a", "")) == (1, 0)


def test_live_queries_are_answered_by_both(tmp_path, save_index, picture):
    made = save_index(tmp_path / "a", 0), save_index(tmp_path / "b", 1, dimension=6, encoder="pixels:2x1")
    generations = Generations(
        GenerationSource("index", tmp_path / "a", model="pixels:2x2"),
        GenerationSource("candidate", tmp_path / "b", model="pixels:2x1"),
    )
    with TestClient(make_app(generations, compare=1.0), client=("127.0.0.1", 1)) as client:

        def compared(count):
            ends = time.monotonic() + 60
            while time.monotonic() < ends:
                found = client.get("/compare").json()
                if sum(found["queries"].values()) + found["failed"] + found["left_out"] + found["empty"] >= count:
                    return found
                time.sleep(0.02)
            raise AssertionError(found)

        empty = client.get("/compare").json()
        assert (empty["overlap"], empty["candidate"]["p50_ms"]) == (None, None)
        shares, orders = [], []
        for count, item in enumerate(random.Random(0).sample(range(30), 5), 1):
            answers = [client.get(f"/similar?item=i{item}&side={side}").json() for side in ("active", "candidate")]
            assert [each["generation"] for each in answers] == [each.generation for each in made]
            ids = [[each["id"] for each in answer["items"]] for answer in answers]
            shares.append(overlap(*ids))
            orders.append(rank_biased_overlap(*ids))
            found = compared(count)
        assert found["queries"] == {"item": 5, "image": 0, "text": 0}
        assert found["overlap"] == pytest.approx(sum(shares) / 5)
        assert found["rank_biased_overlap"] == pytest.approx(sum(orders) / 5)
        assert found["candidate"]["p99_ms"] > 0
        assert client.get("/similar?item=i3&min_score=1.5").json()["items"] == []
        found = compared(6)
        assert (found["empty"], found["queries"]["item"]) == (1, 5)
        assert found["overlap"] == pytest.approx(sum(shares) / 5)
        client.post("/search", content=picture(0), headers={"Content-Type": "image/png"})
        assert compared(7)["queries"]["image"] == 1
        assert "siglip_jax_compare_overlap_count 6.0" in client.get("/metrics").text
        assert client.post("/switch").json()["generation"] == made[1].generation
        assert client.get("/ready").json()["candidate"]["generation"] == made[0].generation
        assert client.get("/similar?item=i0").json()["generation"] == made[1].generation
        found = compared(1)  # of this pair, from the start
        assert found["active"]["generation"] == made[1].generation
        assert found["queries"]["item"] == 1
        back = client.post("/rollback").json()
        assert (back["generation"], back["candidate"]["generation"]) == tuple(each.generation for each in made)
