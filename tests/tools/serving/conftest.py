"""A server without training, whose encoder knows a few pixels of pictures and hashes of texts; and a browser."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from eval.search import build_index
from tools.workflow.embedding import load_encoder
from tools.workflow.query_encoder import QueryEncoder

SIZE = "pixels:2x2"  # 12 numbers


def text_vectors(texts):
    hashes = [hashlib.sha256(text.encode()).digest()[:12] for text in texts]
    return np.array([list(each) for each in hashes], np.float32) + 1


@pytest.fixture
def make_encoder():
    """make_encoder(encode=...) -> a QueryEncoder; `encode` is called with each batch, of texts or pixels, before it."""

    def make(before=lambda rows: None):
        network = load_encoder(SIZE)

        class Watched(QueryEncoder):
            def encode_pixels(self, rows):
                before(rows)
                return super().encode_pixels(rows)

            def encode_texts(self, texts):
                before(texts)
                return super().encode_texts(texts)

        return Watched(network, text_vectors, SIZE, network.description)

    return make


@pytest.fixture
def save_index():
    """save_index(folder, seed, count=30) -> the index of random vectors that was saved there."""

    def save(folder, seed, *, count=30, dimension=12, encoder=SIZE):
        vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
        index = build_index(vectors, [f"i{row}" for row in range(count)])
        index.encoder = {"model": load_encoder(encoder).description}
        index.save(folder)
        return index

    return save


@pytest.fixture
def picture():
    """picture(seed) -> the bytes of a PNG."""

    def make(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return make


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """Headless Chromium, by the DevTools protocol over a pipe: messages of JSON that end in a zero byte."""

    def __init__(self, profile):
        (ours_in, theirs_out), (theirs_in, ours_out) = os.pipe(), os.pipe()
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            "--no-first-run",
        ]
        line = [BROWSER, *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *line],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = os.fdopen(ours_in, "rb", buffering=0), os.fdopen(ours_out, "wb", buffering=0)
        self._held, self._count, self._session = b"", 0, None
        page = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]

    def call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._held:
                self._held += self._in.read(2**16)
            line, _, self._held = self._held.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, address, *, width=1280, height=900):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
        )
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && typeof part === 'function'")

    def value(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script, seconds=60):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if found := self.value(script):
                return found
            time.sleep(0.05)
        raise AssertionError(f"{script}; the page says {self.value('document.body.innerText')!r}")

    def press(self, key, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **({"text": text} if kind == "keyDown" else {}))

    def type(self, text):
        self.call("Input.insertText", text=text)

    def choose_file(self, selector, path):
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()


@pytest.fixture
def browser(tmp_path):
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture
def serve(process_environment):
    """serve(*flags) -> the address of a server in a process of its own."""
    started = []

    def start(*flags):
        line = [sys.executable, "-m", "siglip_jax.cli", "serve", "--port=0", *map(str, flags)]
        server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=process_environment(1))
        started.append(server)
        return server.stdout.readline().split(" at ")[1].strip()

    yield start
    for server in started:
        server.kill()
        server.stdout.close()
        server.wait()
