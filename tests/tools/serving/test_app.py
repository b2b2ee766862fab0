"""The server's answers, held against `siglip-jax search` and the model; what is refused, and with which status."""

import dataclasses
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import siglip_jax
from eval.embeddings import read_store
from input_pipeline.dataset import open_split
from siglip_jax import cli
from tools.serving import app as server
from tools.serving.app import make_app
from tools.serving.served import Served


@pytest.fixture(scope="module")
def index(trained_workdir, shop_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    assert (
        cli.main(["embed", f"--model={trained_workdir}", f"--dataset={shop_dataset}", f"--output={folder / 'store'}"])
        == 0
    )
    assert cli.main(["index", f"--store={folder / 'store'}", f"--output={folder / 'index'}"]) == 0
    return folder / "index"


@pytest.fixture(scope="module")
def served(index, shop_dataset, trained_workdir):
    return Served.load(index, dataset=shop_dataset, model=str(trained_workdir))


@pytest.fixture(scope="module")
def client(served):
    with TestClient(make_app(served)) as client:
        yield client


@pytest.fixture(scope="module")
def rows(shop_dataset):
    return {row["id"]: row for row in open_split(shop_dataset, "test")[:]}


def test_an_item_is_answered_as_the_command_answers_it(client, index, shop_dataset, rows, capsys):
    item = next(iter(rows))
    colour = rows[item]["attributes"]["colour"]
    line = ["search", f"--index={index}", f"--item={item}", f"--dataset={shop_dataset}", "--k=5", "--json"]
    assert cli.main([*line, f"--where=colour={colour}"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert len(expected["items"]) > 1
    found = client.get("/similar", params={"item": item, "k": 5, "where": f"colour={colour}"})
    assert found.status_code == 200
    assert found.json() == expected


def test_a_picture_and_a_text_are_encoded_by_the_model(client, index, trained_workdir, rows):
    model, store = siglip_jax.load(trained_workdir), read_store(index.parent / "store")
    row = list(rows.values())[4]
    headers = {"Content-Type": "image/jpeg"}
    asked = [
        (client.post("/search?k=3", content=row["image"], headers=headers), model.encode_image([row["image"]])[0]),
        (client.post("/search?k=3", json={"text": row["title"]}), model.encode_text([row["title"]])[0]),
    ]
    for found, query in asked:
        cosines = store.vectors.astype(np.float64) @ query.astype(np.float64)
        scores = [each["score"] for each in found.json()["items"]]
        np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:3], atol=1e-5)


def test_items_pictures_filters_and_what_is_ready(client, served, rows):
    for item, row in list(rows.items())[:3]:
        expected = {"id": item, "title": row["title"], "attributes": row["attributes"]}
        assert client.get(f"/items/{item}").json() == expected
        picture = client.get(f"/images/{item}")
        assert picture.content == row["image"]
        assert picture.headers["content-type"] == "image/jpeg"
    choices = client.get("/filters").json()
    assert set(choices["colour"]) == {row["attributes"]["colour"] for row in rows.values()}
    ready = client.get("/ready").json()
    assert ready == {
        "status": "ok", "generation": served.answers.index.generation, "items": len(rows), "image": True, "text": True,
    }  # fmt: skip
    assert client.get("/health").json() == {"status": "ok"}
    for path in client.get("/openapi.json").json()["paths"]:
        assert client.get(path.replace("{item}", next(iter(rows)))).status_code in (200, 404, 405)
    assert 'siglip_jax_requests_total{address="item",status="200"}' in client.get("/metrics").text


def test_the_page_puts_no_text_of_the_catalogue_into_html(client):
    page, script = client.get("/"), client.get("/page.js")
    assert page.status_code == script.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not any(word in script.text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"))


@pytest.mark.parametrize(
    ("method", "address", "options", "status", "said"),
    [
        ("GET", "/similar", {}, 404, "'' is not in the index"),
        ("GET", "/similar?item=../../etc/passwd", {}, 404, "is not in the index"),
        ("GET", "/similar?item={item}&k=0", {}, 400, "expected k from 1"),
        ("GET", "/similar?item={item}&k=99999999999", {}, 400, "expected k from 1"),
        ("GET", "/similar?item={item}&k=ten", {}, 400, "k is a whole number"),
        ("GET", "/similar?item={item}&min_score=nan", {}, 400, "min_score"),
        ("GET", "/similar?item={item}&where=colour", {}, 400, "expected attribute=value"),
        ("GET", "/similar?item={item}&where=taste=sour", {}, 400, "no item has this attribute"),
        ("GET", "/items/nothing", {}, 404, "is not in the index"),
        ("GET", "/images/%2e%2e/%2e%2e/etc/passwd", {}, 404, "no picture of this item"),
        ("POST", "/search", {"content": b"<html>"}, 415, "content type ''"),
        ("POST", "/search", {"content": b"hello", "headers": {"content-type": "image/jpeg"}}, 415, "not a readable"),
        ("POST", "/search", {"content": b"", "headers": {"content-type": "image/png"}}, 415, "not a readable"),
        ("POST", "/search", {"content": b"[", "headers": {"content-type": "application/json"}}, 400, "not JSON"),
        ("POST", "/search", {"json": {"words": "red"}}, 400, "expected {"),
        ("POST", "/search", {"json": {"text": "  "}}, 400, "expected {"),
        ("POST", "/search", {"json": {"text": "a" * 5000}}, 400, "at most 2000 characters"),
        (
            "POST",
            "/search",
            {"content": b'{"text": "\\ud800"}', "headers": {"content-type": "application/json"}},
            400,
            "surrogate",
        ),
    ],
)
def test_bad_requests_get_one_line_and_a_status(client, rows, method, address, options, status, said):
    found = client.request(method, address.replace("{item}", next(iter(rows))), **options)
    assert found.status_code == status
    assert said in found.json()["error"]
    assert "\n" not in found.json()["error"]


def test_large_bodies_and_large_pictures_are_not_decoded(client, monkeypatch):
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)
    headers = {"Content-Type": "image/png"}
    assert client.post("/search", content=bytes(1001), headers=headers).status_code == 413
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 2**20)
    bomb = io.BytesIO()
    PIL.Image.new("L", (9000, 9000)).save(bomb, "PNG")
    found = client.post("/search", content=bomb.getvalue(), headers=headers)
    assert found.status_code == 415
    assert "pixels" in found.json()["error"]


def test_more_queries_than_may_wait_are_told_to_come_again(served, rows):
    picture = next(iter(rows.values()))["image"]
    busy = Served(served.answers, pictures=served.pictures, encoder=served.encoder, waiting=1)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with busy.encoding():
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(60)
    with TestClient(make_app(busy)) as client:
        refused = client.post("/search", content=picture, headers={"Content-Type": "image/jpeg"})
        item = client.get("/similar", params={"item": next(iter(rows))})  # needs no encoder
        leave.set()
        holder.join()
        later = client.post("/search", content=picture, headers={"Content-Type": "image/jpeg"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (item.status_code, later.status_code) == (200, 200)


def test_queries_that_wait_leave_threads_to_the_others(served, rows):
    """With many more that may wait than the pool of threads has by itself."""
    picture = next(iter(rows.values()))["image"]
    busy = Served(served.answers, pictures=served.pictures, encoder=served.encoder, waiting=100)
    with TestClient(make_app(busy)) as client, ThreadPoolExecutor(60) as askers:
        with busy.encoding():
            waiting = [
                askers.submit(client.post, "/search", content=picture, headers={"Content-Type": "image/jpeg"})
                for _ in range(60)
            ]
            ends = time.monotonic() + 60
            while (held := 100 - busy._places._value) < 61 and time.monotonic() < ends:
                time.sleep(0.01)
            assert held == 61
            assert client.get("/similar", params={"item": next(iter(rows))}).status_code == 200
            assert not any(each.done() for each in waiting)
        assert {each.result().status_code for each in waiting} == {200}


def test_without_a_model_or_a_dataset_items_are_still_found(index, rows):
    with TestClient(make_app(Served.load(index))) as client:
        item = next(iter(rows))
        found = client.get("/similar", params={"item": item, "k": 2}).json()["items"]
        assert [each["title"] for each in found] == ["", ""]
        refused = client.post("/search", json={"text": "red"})
        assert refused.status_code == 400
        assert "start it with --model" in refused.json()["error"]
        assert client.get(f"/images/{item}").status_code == 404
        assert client.get("/ready").json()["text"] is False


def test_an_adapter_takes_no_pictures(served, rows):
    blind = Served(served.answers, encoder=dataclasses.replace(served.encoder, images=None))
    with TestClient(make_app(blind)) as client:
        found = client.post("/search", content=b"x", headers={"Content-Type": "image/png"})
    assert found.status_code == 400
    assert "reads no pictures" in found.json()["error"]


def test_a_server_of_this_machine_answers_to_its_own_names_only(served):
    with TestClient(make_app(served, hosts=["localhost", "127.0.0.1"]), base_url="http://evil.example") as client:
        assert client.get("/ready").status_code == 400
    with TestClient(make_app(served, hosts=["localhost", "127.0.0.1"]), base_url="http://localhost:8000") as client:
        assert client.get("/ready").status_code == 200


ADDRESSES = ("/similar", "/search", "/items/", "/images/", "/filters", "/ready", "/metrics", "/openapi.json", "/")
TYPES = ("image/jpeg", "application/json", "text/plain", "application/octet-stream", "")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD"]),
    address=st.tuples(st.sampled_from(ADDRESSES), st.text(max_size=8)),
    query=st.dictionaries(st.sampled_from(["item", "k", "min_score", "where", "x"]), st.text(max_size=12)),
    body=st.binary(max_size=200) | st.text().map(lambda text: json.dumps({"text": text}).encode()),
    kind=st.sampled_from(TYPES),
)
def test_whatever_is_asked_the_server_does_not_fail(client, method, address, query, body, kind):
    path = address[0] + (quote(address[1], errors="replace") if address[0].endswith("/") else "")
    headers = {"Content-Type": kind} if kind else {}
    content = body if method == "POST" else None
    assert client.request(method, path, params=query, content=content, headers=headers).status_code < 500
