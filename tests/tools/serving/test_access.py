"""Who is answered, and who may change what answers."""

import pytest
from starlette.testclient import TestClient

from siglip_jax.errors import UserError
from tools.serving.access import read_token
from tools.serving.app import make_app
from tools.serving.generations import Generations
from tools.serving.served import GenerationSource

TOKEN = "0123456789abcdef"
HERE, ELSEWHERE = ("127.0.0.1", 5000), ("192.0.2.1", 5000)


@pytest.fixture
def generations(tmp_path, save_index):
    save_index(tmp_path / "index", 0)
    return Generations(GenerationSource("index", tmp_path / "index"))


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer 0123456789abcdeF", 401),
        ("Bearer 0123456789abcdef0", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
    ],
)
def test_a_token_is_asked_for(generations, header, status):
    headers = {} if header is None else {"Authorization": header}
    with TestClient(make_app(generations, token=TOKEN), client=ELSEWHERE) as client:
        found = client.get("/similar?item=i0", headers=headers)
        assert found.status_code == status
        for address in ("/ready", "/items/i0", "/metrics", "/openapi.json", "/filters"):
            assert client.get(address, headers=headers).status_code == status
        for address in ("/images/i0", "/nothing", "/similar/"):
            assert client.get(address, headers=headers).status_code == (404 if status == 200 else 401)
        assert client.post("/reload", headers=headers).status_code == status
        for address in ("/health", "/", "/page.js", "/page.css"):
            assert client.get(address).status_code == 200
    if status == 401:
        assert found.headers["www-authenticate"] == "Bearer"
        assert "token" in found.json()["error"]
        assert TOKEN not in found.text


def test_without_a_token_only_this_machine_changes_what_answers(generations):
    for client, status in ((ELSEWHERE, 403), (("unix", 1), 403), (HERE, 200), (("::1", 1), 200)):
        with TestClient(make_app(generations), client=client) as asker:
            assert asker.post("/reload").status_code == status
            assert asker.get("/reload").status_code == 405


def test_pages_of_others_change_nothing(generations):
    app = make_app(generations)
    with TestClient(app, client=HERE, base_url="http://127.0.0.1:8000") as client:
        assert client.post("/reload", headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200
        for origin in ("http://evil.example", "null", "http://[", "http://a]b"):
            assert client.post("/reload", headers={"Origin": origin}).status_code == 403
        assert client.post("/reload", json={"index": "../index"}).status_code == 409
        assert client.post("/reload", json={"index": 3}).status_code == 400
        assert client.post("/reload", content=b"[]").status_code == 400
        assert client.post("/switch").status_code == client.post("/rollback").status_code == 400


@pytest.mark.parametrize("content", ["", "short", "0123456789abcdef 0123", "0123456789abcdef\n0123", "ü" * 20])
def test_tokens_that_are_none(tmp_path, content):
    (tmp_path / "token").write_text(content)
    with pytest.raises(UserError, match="--token_file"):
        read_token(str(tmp_path / "token"))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(str(tmp_path / "token")) == TOKEN
