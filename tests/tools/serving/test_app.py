"""The server's answers, held against `siglip-jax search` and the model; what is refused, and with which status."""

import dataclasses
import io
import json
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
from tools.serving import read_request
from tools.serving.app import make_app
from tools.serving.encode_queue import EncodeQueue
from tools.serving.generations import Generations, Standing
from tools.serving.served import GenerationSource, ServedItems


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
def generations(index, shop_dataset, trained_workdir):
    return Generations(
        GenerationSource("index", index, items=ServedItems(shop_dataset), model=str(trained_workdir), batch=4)
    )


@pytest.fixture(scope="module")
def client(generations):
    with TestClient(make_app(generations)) as client:
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
    picture, title = model.encode_image([row["image"]])[0], model.encode_text([row["title"]])[0]
    asked = [
        (client.post("/search?k=3", content=row["image"], headers=headers), picture),
        (client.post("/search?k=3", files={"image": ("../a.jpg", row["image"])}), picture),
        (client.post("/search?k=3", json={"text": row["title"]}), title),
        (client.post("/search?k=3", files={"text": (None, row["title"])}), title),
    ]
    for found, query in asked:
        cosines = store.vectors.astype(np.float64) @ query.astype(np.float64)
        scores = [each["score"] for each in found.json()["items"]]
        np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:3], atol=1e-5)


def test_queries_that_wait_together_are_answered_as_alone(generations, trained_workdir, rows):
    """In batches of up to 4, padded, of the model itself."""
    model, queue = siglip_jax.load(trained_workdir), generations.standing.active.queue
    some = list(rows.values())[:7]
    before = queue.batches
    asked = [queue.put(kind, row[key]) for row in some for kind, key in (("image", "image"), ("text", "title"))]
    for row, picture, text in zip(some, asked[::2], asked[1::2], strict=True):
        np.testing.assert_allclose(picture.result(60), model.encode_image([row["image"]]), atol=1e-5)
        np.testing.assert_allclose(text.result(60), model.encode_text([row["title"]]), atol=1e-5)
    assert queue.batches - before < len(asked)


def test_items_pictures_filters_and_what_is_ready(client, generations, trained_workdir, rows):
    for item, row in list(rows.items())[:3]:
        expected = {"id": item, "title": row["title"], "attributes": row["attributes"]}
        assert client.get(f"/items/{item}").json() == expected
        picture = client.get(f"/images/{item}")
        assert picture.content == row["image"]
        assert picture.headers["content-type"] == "image/jpeg"
    filters = client.get("/filters").json()
    assert "colour" in filters["groups"]
    assert set(filters["choices"]["colour"]) == {row["attributes"]["colour"] for row in rows.values()}
    ready = client.get("/ready").json()
    assert ready == {
        "status": "ok", "generation": generations.standing.active.name, "items": len(rows), "image": True,
        "text": True, "model": str(trained_workdir),
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
        ("GET", "/similar?item={item}&k=0", {}, 400, "expected at least 1"),
        ("GET", "/similar?item={item}&k=99999999999", {}, 400, "expected k from 1"),
        ("GET", "/similar?item={item}&k=ten", {}, 400, "k is a whole number"),
        ("GET", "/similar?item={item}&min_score=nan", {}, 400, "min_score"),
        ("GET", "/similar?item={item}&collapse=2", {}, 400, "collapse"),
        ("GET", "/similar?item={item}&diversity=-1", {}, 400, "diversity"),
        ("GET", "/similar?item={item}&group_by=taste", {}, 400, "no item has this attribute"),
        ("GET", "/similar?item={item}&where=colour=1..2", {}, 400, "no value of it is a number"),
        ("GET", "/similar?item={item}&side=candidate", {}, 400, "--candidate"),
        ("GET", "/similar?item={item}&side=x", {}, 400, "expected active"),
        ("GET", "/compare", {}, 404, "no candidate"),
        ("POST", "/reload", {}, 403, "only this machine"),
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
    monkeypatch.setattr(read_request, "MAX_BODY_BYTES", 1000)
    headers = {"Content-Type": "image/png"}
    assert client.post("/search", content=bytes(1001), headers=headers).status_code == 413
    monkeypatch.setattr(read_request, "MAX_BODY_BYTES", 2**20)
    bomb = io.BytesIO()
    PIL.Image.new("L", (9000, 9000)).save(bomb, "PNG")
    found = client.post("/search", content=bomb.getvalue(), headers=headers)
    assert found.status_code == 415
    assert "pixels" in found.json()["error"]


def test_without_a_model_or_a_dataset_items_are_still_found(index, rows):
    with TestClient(make_app(Generations(GenerationSource("index", index)))) as client:
        item = next(iter(rows))
        found = client.get("/similar", params={"item": item, "k": 2}).json()["items"]
        assert [each["title"] for each in found] == ["", ""]
        refused = client.post("/search", json={"text": "red"})
        assert refused.status_code == 400
        assert "start it with --model" in refused.json()["error"]
        assert client.get(f"/images/{item}").status_code == 404
        assert client.get("/ready").json()["text"] is False


def test_an_adapter_takes_no_pictures(generations, index):
    active = generations.standing.active
    queue = EncodeQueue(dataclasses.replace(active.queue.encoder, images=None))
    blind = Generations(GenerationSource("index", index))
    blind.standing = Standing(active=dataclasses.replace(active, queue=queue))
    with TestClient(make_app(blind)) as client:
        found = client.post("/search", content=b"x", headers={"Content-Type": "image/png"})
    assert found.status_code == 400
    assert "reads no pictures" in found.json()["error"]


def test_a_server_of_this_machine_answers_to_its_own_names_only(generations):
    with TestClient(make_app(generations, hosts=["localhost", "127.0.0.1"]), base_url="http://evil.example") as client:
        assert client.get("/ready").status_code == 400
    with TestClient(
        make_app(generations, hosts=["localhost", "127.0.0.1"]), base_url="http://localhost:8000"
    ) as client:
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
