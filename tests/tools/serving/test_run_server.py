"""The program in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from eval.search import build_index
from siglip_jax import cli
from tools import serve


def test_it_says_where_it_is_answers_and_stops_when_told(tmp_path, process_environment):
    build_index(np.eye(4, 3, dtype=np.float32) + 0.1, ["a", "b", "c/d e", "f"]).save(tmp_path / "index")
    line = [sys.executable, "-m", "siglip_jax.cli", "serve", f"--index={tmp_path / 'index'}", "--port=0"]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=process_environment(1))
    try:
        said = server.stdout.readline()
        assert said.startswith("4 items of generation ")
        address = said.split(" at ")[1].strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}similar?item=c%2Fd%20e&k=2", timeout=60) as answer:
            assert len(json.load(answer)["items"]) == 2
        with urllib.request.urlopen(f"{address}items/c%2Fd%20e", timeout=60) as answer:
            assert json.load(answer)["id"] == "c/d e"
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.stdout.close()
        server.wait()


def test_a_port_that_is_taken_is_one_line(tmp_path, free_port, capsys):
    build_index(np.eye(2, dtype=np.float32), ["a", "b"]).save(tmp_path / "index")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", f"--index={tmp_path / 'index'}", f"--port={port}"]) == 2
    err = capsys.readouterr().err
    assert "cannot listen at 127.0.0.1" in err
    assert err.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serve, "NEEDED", ("starlette", "no_such_library"))
    assert cli.main(["serve", f"--index={tmp_path}"]) == 2
    assert "no_such_library not installed; pip install 'siglip-jax[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "known"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_a_loopback_address_has_a_list_of_names(host, known):
    assert (serve._names(host) is not None) == known
