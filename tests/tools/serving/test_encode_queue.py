"""What waits is encoded together, as if alone; what is too much is told so; nobody waits for what was given up."""

import asyncio
import dataclasses
import threading

import numpy as np
import pytest
from starlette.testclient import TestClient

from siglip_jax.errors import UserError
from tools.serving.app import make_app
from tools.serving.encode_queue import Busy, EncodeQueue
from tools.serving.generations import Generations, Standing
from tools.serving.served import GenerationSource


class Gate:
    """Holds the encoder until it is opened, and keeps the sizes of the batches."""

    def __init__(self):
        self.entered, self.open, self.sizes = threading.Event(), threading.Event(), []

    def __call__(self, rows):
        self.sizes.append(len(rows))
        self.entered.set()
        assert self.open.wait(60)


def test_what_waits_is_one_batch_and_answers_as_alone(make_encoder, picture):
    gate = Gate()
    queue = EncodeQueue(make_encoder(gate), batch=8, waiting=20)
    assert queue.sizes == [1, 4, 8]
    alone = make_encoder()
    first = queue.put("text", "first")
    assert gate.entered.wait(60)
    asked = [("text", f"text {k}") for k in range(11)] + [("image", picture(k)) for k in range(3)]
    vectors = [queue.put(kind, value) for kind, value in asked]
    for _ in range(600):  # until the pictures are read
        if len(queue._entries) == len(asked):
            break
        threading.Event().wait(0.05)
    gate.open.set()
    assert first.result(60).shape == (1, 12)
    for (kind, value), vector in zip(asked, vectors, strict=True):
        expected = alone.text(value) if kind == "text" else alone.image(value)
        np.testing.assert_allclose(vector.result(60), expected, atol=1e-5)
    assert gate.sizes == [1, 8, 4, 4]  # 11 texts are 8 and 3, which is padded to 4, and so are 3 pictures
    assert (queue.encoded, queue.batches) == (15, 4)


def test_too_many_are_busy_and_places_come_back(make_encoder, picture):
    gate = Gate()
    queue = EncodeQueue(make_encoder(gate), waiting=3)
    held = [queue.put("text", "a"), queue.put("image", picture(0)), queue.put("text", "b")]
    with pytest.raises(Busy):
        queue.put("text", "c")
    gate.open.set()
    for each in held:
        each.result(60)
    for kind, wrong in (("image", b"no picture"), ("text", " ")):
        for _ in range(5):  # more than there are places
            with pytest.raises(UserError):
                queue.put(kind, wrong).result(60)
    assert queue.put("text", "c").result(60).shape == (1, 12)


def test_one_that_fails_leaves_the_others_their_answers(make_encoder):
    gate = Gate()

    def refuse(rows):
        if "wrong" in rows:
            raise ValueError("not this one")
        gate(rows)

    queue = EncodeQueue(make_encoder(refuse), batch=4)
    first = queue.put("text", "first")
    assert gate.entered.wait(60)
    others = [queue.put("text", text) for text in ("a", "wrong", "b")]
    gate.open.set()
    assert first.result(60) is not None
    assert [each.exception(60) is None for each in others] == [True, False, True]


def test_a_task_that_gives_up_leaves_the_queue(make_encoder):
    gate = Gate()
    queue = EncodeQueue(make_encoder(gate), waiting=2)

    async def ask():
        holder = asyncio.create_task(queue.encode("text", "held"))
        await asyncio.to_thread(gate.entered.wait, 60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.encode("text", "given up")
        gate.open.set()
        await holder
        for _ in range(600):
            if queue._here == 0:
                return
            await asyncio.sleep(0.05)

    asyncio.run(ask())
    assert queue._here == 0
    assert gate.sizes == [1]


def test_all_sizes_are_compiled_before_the_first_query(make_encoder):
    sizes = []
    EncodeQueue(make_encoder(lambda rows: sizes.append(len(rows))), batch=5).warm_up()
    assert sizes == [1, 1, 4, 4, 5, 5]


@pytest.fixture
def held(make_encoder, save_index, tmp_path):
    """An application whose encoder holds one query, with a place for one; and what lets it go on."""
    gate = Gate()
    save_index(tmp_path / "index", 0)
    generations = Generations(GenerationSource("index", tmp_path / "index"))
    queue = EncodeQueue(make_encoder(gate), waiting=1)
    generations.standing = Standing(active=dataclasses.replace(generations.standing.active, queue=queue))
    queue.put("text", "held")
    assert gate.entered.wait(60)
    yield generations, queue, gate
    gate.open.set()


def test_who_comes_when_it_is_full_is_told_to_come_again(held):
    generations, queue, gate = held
    with TestClient(make_app(generations)) as client:
        refused = client.post("/search", json={"text": "red"})
        item = client.get("/similar?item=i0")  # needs no encoder
        gate.open.set()
        while queue._here:
            threading.Event().wait(0.01)
        later = client.post("/search", json={"text": "red"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (item.status_code, later.status_code) == (200, 200)


def test_an_answer_that_takes_too_long_is_not_waited_for(held):
    generations, queue, _ = held
    queue.waiting = 2
    with TestClient(make_app(generations, timeout=0.05)) as client:
        late = client.post("/search", json={"text": "red"})
        assert client.get("/ready").status_code == 200
    assert late.status_code == 504
    assert "0.05 seconds" in late.json()["error"]
