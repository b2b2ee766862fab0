"""siglip-jax bench search: our search backends beside faiss, hnswlib and usearch, at equal recall, on the same cores.

siglip-jax bench search --vectors=runs/shop-embeddings --items=1000000 --dim=128
siglip-jax bench search --vectors=embeddings.npz --items=1000000 --dim=768 --rows=exact,int8,faiss-flat
siglip-jax bench search --tiny                     a rehearsal

--vectors is a store or a file with ids; without it, pixels of the synthetic catalogue stand in. Items beyond those that
it has are made from real ones with noise, and called so. Each row is a process with a time limit; what it has measured
by then is kept. Rows that are done in --output are not run again. A row's parameters are turned up, and of the settings
with recall@10 of --target the fastest in a batch is its line of the table; all of them are its curve.
docs/benchmarks/search.md explains the columns.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from siglip_jax.errors import UserError, check_choice

TINY = {"items": 1500, "dim": 16, "queries": 60}
HEADER = ("row", "setting", "build s", "MiB", "recall@10", "one at a time", "batched")
ERROR_LINES = 2
K = 10
_CHILD = "import sys; sys.path += sys.argv[1].split({0!r}); from {1} import main; main(*sys.argv[2:])"


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("vectors", None, "Embedding store, or a file of embeddings with ids.", flag_values=values)
    flags.DEFINE_integer("items", 100_000, "Items to search.", lower_bound=100, flag_values=values)
    flags.DEFINE_integer("dim", 128, "Numbers of each, by PCA where the vectors have more.", 2, flag_values=values)
    flags.DEFINE_integer("queries", 1000, "Queries, which are no items.", lower_bound=10, flag_values=values)
    flags.DEFINE_float("target", 0.98, "Recall@10 of each row's line.", 0.01, 1.0, flag_values=values)
    flags.DEFINE_list(
        "leaves", [], "Of the trees that scann's rows try; 1 and 2 times sqrt(items) when absent.", flag_values=values
    )
    flags.DEFINE_list("rows", [], "Rows to run, in the bench's order; all when absent.", flag_values=values)
    flags.DEFINE_string("scann_core", None, "A Python that has scann-core, for its row.", flag_values=values)
    flags.DEFINE_float("minutes", 10.0, "Of each row at most.", lower_bound=0.01, flag_values=values)
    flags.DEFINE_string("output", "runs/search-bench", "Folder of results and vectors.", flag_values=values)
    flags.DEFINE_bool("tiny", False, "A rehearsal: small sizes.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from tools.bench import measuring
    from tools.bench.search_parts import run_row

    for name in values.rows:
        check_choice("--rows", name, tuple(run_row.ROWS))
    names = [name for name in run_row.ROWS if not values.rows or name in values.rows]
    sizes = TINY if values.tiny else {name: values[name].value for name in TINY}
    leaves = [int(each) for each in values.leaves if each.isdecimal() and int(each) > 1]
    if len(leaves) != len(values.leaves):
        raise UserError(f"--leaves={','.join(values.leaves)}: expected whole numbers above 1")
    asked = {**sizes, "vectors": values.vectors, "target": values.target, "k": K}
    output = pathlib.Path(values.output)
    work = output / "work"
    work.mkdir(parents=True, exist_ok=True)
    results = _earlier(output / "results.json", asked)
    results["machine"] = measuring.machine()
    results["command"] = " ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])])
    results["started"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if "data" not in results or not (work / "worst.npy").exists():
        results["data"], results["rows"] = _make(work, asked), {}
    print(describe(results), flush=True)
    for name in names:
        if results["rows"].get(name, {}).get("outcome") == "done":
            continue
        if (reason := _absent(name, run_row.PEERS, values.scann_core)) is not None:
            print(f"{name}: skipped, {reason}", flush=True)
            continue
        print(f"{name}: at most {60 * values.minutes:.0f} s", flush=True)
        python = values.scann_core if name == "scann-core" else sys.executable
        given = {**asked, "leaves": leaves}
        results["rows"][name] = _run(name, work, given, limit=60 * values.minutes, python=python)
        (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    rows = {name: results["rows"][name] for name in run_row.ROWS if name in results["rows"]}
    lines = [line_of(name, row) for name, row in rows.items()]
    text = "\n".join([describe(results), "", measuring.table(HEADER, lines), *said_of_bounds(rows, asked), ""])
    (output / "results.md").write_text(f"`{results['command']}`\n\n```\n{text}```\n", encoding="utf-8")
    print(f"\n{text}")
    _draw(output, rows, asked)
    print(
        f"results: {output / 'results.json'}, {output / 'results.md'}, {output / 'batched.svg'}, {output / 'one.svg'}"
    )


def describe(results: Mapping[str, Any]) -> str:
    """The machine and the vectors, in words."""
    data, asked = results["data"], results["asked"]
    kept = f", of {data['dimension']} numbers by PCA ({data['kept']:.1%} of the variance)" if data["kept"] < 1 else ""
    made = f"made from {data['real']:,} real ones with noise" if data["made"] else "real"
    said = [
        f"{results['machine']}; {results['started']}",
        f"{asked['items']:,} items x {asked['dim']}, {made}, of {pathlib.Path(data['vectors']).name}{kept}",
        f"{asked['queries']:,} queries; the fastest setting with recall@{asked['k']} of {asked['target']}",
    ]
    return "\n".join(said)


def line_of(name: str, row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    if row.get("chosen") is None:
        best = max((each["recall"] for each in row.get("settings", [])), default=None)
        why = row["outcome"] if best is None else f"{row['outcome']}; recall at most {best:.3f}"
        return [name, f"{why} {row['error']}".strip(), *["-"] * (len(HEADER) - 2)]
    found = row["settings"][row["chosen"]]
    setting = " ".join(f"{key}={value}" for key, value in found["setting"].items()) or "-"
    if "tuned" in row:
        setting = f"leaves={row['tuned']['leaves']} {setting}"
    figures = [f"{row['build_seconds']:.1f}", f"{row['bytes'] / 2**20:,.0f}", f"{found['recall']:.4f}"]
    return [name, setting, *figures, f"{found['one']:,.0f}", f"{found['batched']:,.0f}"]


def said_of_bounds(rows: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What the machine can do at most, where the exact row measured it."""
    bounds = rows.get("exact", {}).get("bounds")
    if not bounds:
        return []
    speed, operations = (bounds[name] / 1e9 for name in ("bytes_per_second", "operations_per_second"))
    reading = f"reading all items once, with all cores: {bounds['read_ms']:.1f} ms, {speed:.1f} GB/s"
    one = f"one exact query: {bounds['one_ms']:.1f} ms, {bounds['ratio']:.2f} times as long"
    products = f"float32 products: {operations:.0f} billion operations a second"
    return [f"{reading}; {one}", f"{products}, so at most {bounds['batched_bound']:,.0f} exact queries a second"]


def _earlier(path: pathlib.Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is in the folder already; rows of other vectors or another target count for nothing."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("asked") == dict(asked):
            return found
    return {"asked": dict(asked), "rows": {}}


def _make(work: pathlib.Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    from tools.bench.search_parts import made_vectors

    sizes = {name: asked[name] for name in ("items", "dim", "queries", "k")}
    return made_vectors.make(work, vectors=asked["vectors"], **sizes)


def _absent(name: str, peers: Mapping[str, Any], scann_core: str | None) -> str | None:
    """Why a row cannot run; None where it can."""
    import importlib.util

    if name == "scann-core":
        return None if scann_core else "give --scann_core=PYTHON, one that has it"
    module = "scann" if name == "scann" else getattr(peers.get(name), "module", None)
    return None if module is None or importlib.util.find_spec(module) else f"{module} is not installed"


def _run(name: str, work: pathlib.Path, asked: Mapping[str, Any], *, limit: float, python: str) -> dict[str, Any]:
    """The row's process, ended with all that it started at the limit; another Python finds our packages behind its own.

    Returns {"outcome": "done", "failed" or "out of time", "error", "seconds", "build_seconds", "bytes", "settings",
    "chosen"}, without what was not measured.
    """
    file, log = (work / f"{name}.json").resolve(), work / f"{name}.log"
    file.unlink(missing_ok=True)
    behind = [path for path in sys.path if path] if python != sys.executable else []
    code = _CHILD.format(os.pathsep, "tools.bench.search_parts.run_row")
    arguments = [os.pathsep.join(behind), name, str(work.resolve()), str(file), json.dumps(asked)]
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root] if behind else [root, *sys.path[1:]])}
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [python, "-c", code, *arguments], stdout=stream, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code_of_exit: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code_of_exit = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    outcome = {0: "done", None: "out of time"}.get(code_of_exit, "failed")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    error = " / ".join(lines[-ERROR_LINES:])[-300:] if outcome == "failed" else ""
    return {"outcome": outcome, "error": error, "seconds": round(time.monotonic() - begin, 1), **found}


def _draw(output: pathlib.Path, rows: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    from tools.bench.search_parts.picture import draw

    for column, words in (("batched", "in a batch"), ("one", "one at a time")):
        curves: dict[str, Sequence[tuple[float, float]]] = {
            name: [(each["recall"], each[column]) for each in row.get("settings", [])] for name, row in rows.items()
        }
        title = f"Queries a second, {words}: {asked['items']:,} items x {asked['dim']}"
        (output / f"{column}.svg").write_text(draw(curves, title=title, target=asked["target"]), encoding="utf-8")
