"""Whatever is uploaded, the server says in one line what is wrong with it."""

import io
import zlib

import PIL.Image
import pytest
from starlette.testclient import TestClient

from tools.serving import read_request
from tools.serving.app import make_app
from tools.serving.generations import Generations
from tools.serving.served import GenerationSource


@pytest.fixture
def client(tmp_path, save_index):
    save_index(tmp_path / "index", 0)
    generations = Generations(GenerationSource("index", tmp_path / "index", model="pixels:2x2"))
    with TestClient(make_app(generations)) as client:
        yield client


def bomb(width, height):
    """A PNG of few bytes that says that it is large; decoded it would be width x height."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(bytes(min(width * height, 10**7)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(kind, **options):
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 48), 50).convert("RGB").save(file, kind, **options)
    return file.getvalue()


GARBAGE = {
    "text": b"hello, I am a picture",
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "nothing": b"",
    "zeros": bytes(1000),
    "bomb": bomb(60_000, 60_000),
    "bomb of one row": bomb(2**31 - 1, 1),
    "truncated png": saved("PNG")[:-200],
    "head of a jpeg": saved("JPEG")[:20],
    "zip": b"PK\x03\x04" + bytes(100),
    "pdf that says jpeg": b"%PDF-1.4\n" + saved("JPEG"),
    "script before a gif": b"#!/bin/sh\n" + saved("GIF"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_no_picture(client, name):
    for request in (
        {"content": GARBAGE[name], "headers": {"Content-Type": "image/png"}},
        {"content": GARBAGE[name], "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"image": ("a.png", GARBAGE[name])}},
    ):
        found = client.post("/search", **request)
        assert found.status_code == 415, found.text
        assert "\n" not in found.json()["error"]
    assert client.get("/health").status_code == 200


def test_a_picture_that_is_something_else_behind_is_that_picture_alone(client):
    """A polyglot is decoded as a picture; nothing of it comes back."""
    both = saved("GIF") + b"<script>alert(1)</script>"
    found = client.post("/search", content=both, headers={"Content-Type": "image/gif"})
    assert found.status_code == 200
    assert "script" not in found.text


BOUNDARY = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
FILE = b'; filename="a"'


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("multipart/form-data", b"", "boundary"),
        (BOUNDARY, b"", "one part"),
        (BOUNDARY, b"no form", "no readable form"),
        (BOUNDARY, b"--x\r\n\r\nabc\r\n--x--", "no readable form"),
        (BOUNDARY, PART % (b"words", b"", b"red") + b"--x--\r\n", "one part"),
        (BOUNDARY, PART % (b"image", b"", b"red") + b"--x--\r\n", "expected a file"),
        (BOUNDARY, PART % (b"text", FILE, b"red") + b"--x--\r\n", "expected a field"),
        (BOUNDARY, PART % (b"text", b"", b" ") + b"--x--\r\n", "characters"),
        (BOUNDARY, PART % (b"text", b"", b"a" * 20_000) + b"--x--\r\n", "no readable form"),
        (BOUNDARY, PART % (b"image", FILE, b"a") * 2 + b"--x--\r\n", "no readable form"),
        (BOUNDARY, PART % (b"text", b"", b"a") * 2 + b"--x--\r\n", "no readable form"),
    ],
)
def test_forms_that_are_none(client, kind, body, said):
    found = client.post("/search", content=body, headers={"Content-Type": kind})
    assert found.status_code == 400
    assert said in found.json()["error"]


def test_a_hundred_megabytes_are_read_to_the_end_and_refused(client):
    def body():
        for _ in range(100):
            yield bytes(2**20)

    for kind in ("image/png", "application/json", BOUNDARY):
        found = client.post("/search", content=body(), headers={"Content-Type": kind})
        assert found.status_code == 413


def test_a_slow_body_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(read_request, "BODY_SECONDS", 0.0)
    found = client.post("/search", content=iter([b"a"] * 3), headers={"Content-Type": "image/png"})
    assert found.status_code in (408, 415)  # 415 where all of it came before the clock was looked at
