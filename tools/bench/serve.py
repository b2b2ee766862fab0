"""siglip-jax bench serve: a real server under load, while its index is swapped and until it is told to stop.

siglip-jax bench serve
siglip-jax bench serve --items=1000000 --dim=128 --clients=16 --seconds=60

Clients are threads of this process, on the same machine; each asks for neighbours of an item, one question after the
other. After a part without changes the index is replaced --swaps times, by two generations in turn; then SIGTERM comes.
Every answer is held against the answer of the generation that it names. Vectors are random.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any

from absl import flags

ASKED = 64  # different questions
STEADY, SWAPPED, STOPPED = "steady", "swapped", "after SIGTERM"


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("items", 20_000, "Items of the index.", lower_bound=20, flag_values=values)
    flags.DEFINE_integer("dim", 64, "Numbers of a vector.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("clients", 8, "Threads that ask.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 10.0, "Of each of the two parts.", lower_bound=0.1, flag_values=values)
    flags.DEFINE_integer("swaps", 20, "Of the index, evenly over the second part.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("backend", "exact", "As of siglip-jax index.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    import numpy as np

    from siglip_jax.errors import UserError
    from tools.bench import measuring

    load = run_load(
        items=values.items,
        dim=values.dim,
        clients=values.clients,
        seconds=values.seconds,
        swaps=values.swaps,
        backend=values.backend,
    )
    print(
        f"{measuring.machine()}; {values.items:,} x {values.dim}, {values.backend}; {values.clients} clients beside it"
    )
    rows = []
    for part in (STEADY, SWAPPED):
        took = 1e3 * np.array([each.seconds for each in load.answers if each.part == part] or [np.nan])
        p50, p99 = np.percentile(took, (50, 99))
        rows.append([part, f"{len(took) / values.seconds:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{took.max():.2f}"])
    print(measuring.table(["part", "queries/s", "p50 ms", "p99 ms", "most ms"], rows))
    seen = Counter(each.generation for each in load.answers)
    print(
        f"{len(load.answers):,} answers, of {len(seen)} generations, {load.wrong} wrong; {load.swaps} swaps; "
        f"{load.lost} questions lost before SIGTERM, {load.refused} refused after it"
    )
    if load.wrong or load.lost:
        raise UserError("answers were wrong or lost: " + "; ".join(load.errors[:3]))


@dataclasses.dataclass(frozen=True)
class LoadedAnswer:
    part: str  # in which it was asked
    seconds: float
    generation: str


@dataclasses.dataclass
class ServerLoad:
    """What clients met; `errors` has a line about each wrong or lost answer."""

    answers: list[LoadedAnswer] = dataclasses.field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    refused: int = 0
    swaps: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    part: str = STEADY


def run_load(*, items: int, dim: int, clients: int, seconds: float, swaps: int, backend: str = "exact") -> ServerLoad:
    """Starts a server and asks it until it is gone."""
    import numpy as np

    from eval.search import build_index
    from eval.search.answers import Answers
    from siglip_jax.errors import UserError

    load = ServerLoad()
    with tempfile.TemporaryDirectory() as temporary:
        folder, expected, made = pathlib.Path(temporary) / "index", {}, []
        for seed in range(2):
            vectors = np.random.default_rng(seed).standard_normal((items, dim), dtype=np.float32)
            index = build_index(vectors, [str(row) for row in range(items)], backend=backend)
            index.save(folder)
            answers = Answers(index)
            expected[index.generation] = [
                [each["id"] for each in answers.of_item(str(row))["items"]] for row in range(min(ASKED, items))
            ]
            made.append(index)
        line = [sys.executable, "-m", "siglip_jax.cli", "serve", f"--index={folder}", "--port=0", "--reload=0"]
        log = pathlib.Path(temporary) / "log"
        with log.open("w") as errors:
            server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().rpartition("http://")[2].strip().rstrip("/")
            if not address:
                raise UserError(f"the server did not start: {log.read_text()[-500:]}")
            ask = [threading.Thread(target=_ask, args=(address, expected, load, place)) for place in range(clients)]
            for each in ask:
                each.start()
            time.sleep(seconds)
            load.part = SWAPPED
            ends = time.monotonic() + seconds
            for swap in range(swaps):
                index = made[swap % 2]
                index.save(folder)
                found = _reload(address)
                load.swaps += found == index.generation
                time.sleep(max(0.0, (ends - time.monotonic()) / (swaps - swap)))
            time.sleep(max(0.0, ends - time.monotonic()))
            load.part = STOPPED
            os.kill(server.pid, signal.SIGTERM)
            for each in ask:
                each.join()
            server.wait(60)
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    return load


def _reload(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/reload")
        return json.load(connection.getresponse()).get("generation", "")
    finally:
        connection.close()


def _ask(address: str, expected: dict[str, list[list[str]]], load: ServerLoad, place: int) -> None:
    """Asks until nobody answers any more. Lists and numbers of `load` are changed under the interpreter's lock."""
    connection = http.client.HTTPConnection(address, timeout=60)
    asked = place
    while True:
        asked = (asked + 1) % min(ASKED, len(next(iter(expected.values()))))
        part, began = load.part, time.perf_counter()
        try:
            connection.request("GET", f"/similar?item={asked}")
            response = connection.getresponse()
            found: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if part == STOPPED:
                load.refused += 1
            else:
                load.lost += 1
                load.errors.append(f"{part}: {type(error).__name__}: {error}")
            if load.part == STOPPED:
                return
            continue
        took, generation = time.perf_counter() - began, found.get("generation", "")
        ids = [each["id"] for each in found.get("items", [])]
        if response.status != 200 or generation not in expected or ids != expected[generation][asked]:
            load.wrong += 1
            load.errors.append(f"{part}: status {response.status}, {str(found)[:200]}")
        load.answers.append(LoadedAnswer(part, took, generation))
