"""The process of one row: python -m tools.bench.search_parts.run_row ROW FOLDER FILE ASKED.

ASKED is JSON: k, target, leaves. FILE is written anew after every setting, so that what is measured stays measured,
however the process ends.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from eval.search.scans import rescore
from eval.search.scans.scan import in_threads
from tools.bench import measuring
from tools.bench.search_parts import our_rows, peer_rows
from tools.bench.search_parts.made_vectors import ITEMS, QUERIES, WORST

OURS = {"exact": our_rows.Exact, "int8": our_rows.Int8, "scann": our_rows.Tree, "scann-core": our_rows.Tree}
PEERS: dict[str, Any] = {
    "faiss-flat": peer_rows.Faiss,
    "faiss-ivfpq": peer_rows.FaissIvfPq,
    "faiss-hnsw": peer_rows.FaissHnsw,
    "hnswlib": peer_rows.Hnswlib,
    "usearch": peer_rows.Usearch,
}
ROWS = [*OURS, *PEERS]
BEYOND = 0.993  # recall from which a sweep ends
GAIN = 0.0005  # of recall from one setting to the next, under which a sweep ends too
_SECONDS = 1.0  # that a measurement lasts, where it has enough queries
_REPEATED = 7  # readings of memory beside exact queries


def main(name: str, folder: str, file: str, text: str) -> None:
    asked = json.loads(text)
    k, target = asked["k"], asked["target"]
    items, queries, worst = (np.load(pathlib.Path(folder) / part, mmap_mode="r") for part in (ITEMS, QUERIES, WORST))
    queries = np.array(queries)
    kind = (OURS | PEERS)[name]
    subject = kind(target=target, k=k, leaves=asked["leaves"]) if kind is our_rows.Tree else kind()
    row: dict[str, Any] = {"settings": []}

    def write() -> None:
        partial = pathlib.Path(file).with_suffix(".partial")
        partial.write_text(json.dumps(row) + "\n", encoding="utf-8")
        partial.replace(file)

    _, row["build_seconds"] = measuring.timed(lambda: subject.build(items))
    row["bytes"] = int(subject.bytes)
    row |= getattr(subject, "about", {})
    write()
    row["chosen"] = None
    for sweep in subject.sweeps:
        before = -1.0
        for setting in sweep:
            found = measure(subject.ask(setting, k), items, queries, worst)
            row["settings"].append({"setting": dict(setting), **found})
            reached = [place for place, each in enumerate(row["settings"]) if each["recall"] >= target]
            row["chosen"] = max(reached, key=lambda place: row["settings"][place]["batched"], default=None)
            print(row["settings"][-1], flush=True)
            write()
            if found["recall"] >= BEYOND or found["recall"] < before + GAIN:
                break
            before = found["recall"]
    if name == "exact":
        row["bounds"] = bounds(subject.ask({}, k), items, queries)
    write()


def measure(ask: our_rows.Ask, items: np.ndarray, queries: np.ndarray, worst: np.ndarray) -> dict[str, float]:
    """{"recall", "one": queries a second one at a time, "batched": all in one call}."""
    rows = ask(queries)
    good = rescore(items, queries, np.asarray(rows, np.int64)) >= worst[:, None] - 1e-6
    alone = [queries[place : place + 1] for place in range(len(queries))]
    for query in alone[:3]:
        ask(query)
    begin, asked = time.perf_counter(), 0
    while asked < len(alone) and time.perf_counter() - begin < _SECONDS:
        ask(alone[asked])
        asked += 1
    one = asked / (time.perf_counter() - begin)
    batched, spent = 0.0, 0.0
    for _ in range(3):
        seconds = measuring.timed(lambda: ask(queries))[1]
        batched, spent = max(batched, len(queries) / seconds), spent + seconds
        if spent > 3 * _SECONDS:
            break
    return {"recall": float(good.mean()), "one": one, "batched": batched}


def bounds(ask: Callable[[np.ndarray], Any], items: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """What the machine does: milliseconds to read the items once and to answer one query exactly, in turn; their ratio,
    the median over pairs; operations a second of float32 products, the faster of JAX and numpy."""
    from eval.search.scans import kernels, scan

    words = items.reshape(-1)[: items.size // 2 * 2].view(np.int64)
    query = queries[:1]
    seconds = measuring.interleaved(
        {
            "read": lambda: in_threads(lambda low, high: kernels.read_through(words, low, high), len(words)),
            "one": lambda: ask(query),
        },
        repetitions=_REPEATED,
    )
    read, one = (statistics.median(seconds[name]) for name in ("read", "one"))
    a, b = (np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32) for _ in range(2))
    products: list[Callable[..., Any]] = [scan.product_for(1e15), np.matmul]
    best = min(measuring.timed(lambda: product(a, b.T))[1] for product in 10 * products)  # noqa: B023
    return {
        "read_ms": 1e3 * read,
        "one_ms": 1e3 * one,
        "ratio": statistics.median(b / a for a, b in zip(seconds["read"], seconds["one"], strict=True)),
        "bytes_per_second": items.nbytes / read,
        "operations_per_second": 2 * 1024**3 / best,
        "batched_bound": 2 * 1024**3 / best / (2 * items.size),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
