"""siglip-jax bench gpu: what one GPU does with loss, step, encoding, search and training, in at most eight minutes.

siglip-jax bench gpu --output=runs/gpu
siglip-jax bench gpu --parts=loss,step --minutes=4
siglip-jax bench gpu --tiny                        a rehearsal, on any machine

Each part is a process with a time limit of its own: one that fails, hangs or runs out of memory keeps the rows that it
has, and the next goes on. After each part, results.json and results.md are written anew, with the device, the versions
and this command. What a part's process says is in <part>.log. docs/benchmarks/gpu.md explains the columns.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Part:
    """Attributes:
    share: of the minutes; what an earlier part leaves goes to those after it.
    environment: of its process.
    """

    module: str
    share: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


WHOLE_MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
PARTS = {  # in order of worth
    "loss": Part("tools.bench.gpu_parts.loss", 110, WHOLE_MEMORY),
    "step": Part("tools.bench.gpu_parts.step", 85, WHOLE_MEMORY),
    "step_torch": Part("tools.bench.gpu_parts.step_torch", 70, {"JAX_PLATFORMS": "cpu"}),
    "encode": Part("tools.bench.gpu_parts.encode", 55, WHOLE_MEMORY),
    "search": Part("tools.bench.gpu_parts.search", 20, WHOLE_MEMORY),
    "train": Part("tools.bench.gpu_parts.train", 140, WHOLE_MEMORY),
}
ERROR_LINES = 3  # of a failed process's last words, in the table


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_list("parts", list(PARTS), f"Of {', '.join(PARTS)}, in that order.", flag_values=values)
    flags.DEFINE_float("minutes", 8.0, "In which all parts have ended.", lower_bound=0.01, flag_values=values)
    flags.DEFINE_string("output", "runs/gpu", "Folder of the results; those in it are replaced.", flag_values=values)
    flags.DEFINE_bool("tiny", False, "A rehearsal: small sizes, on whatever device there is.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    for name in values.parts:
        check_choice("--parts", name, tuple(PARTS))
    names = [name for name in PARTS if name in values.parts]
    if not names:
        raise UserError("--parts is empty; give one or more")
    output = pathlib.Path(values.output)
    output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * values.minutes
    results: dict[str, Any] = {
        "command": " ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "environment": {},
        "parts": [],
    }
    for place, name in enumerate(names):
        share = PARTS[name].share / sum(PARTS[other].share for other in names[place:])
        limit = max(0.0, end - time.monotonic()) * share
        print(f"{name}: at most {limit:.0f} s", flush=True)
        found = run_part(name, output, limit=limit, tiny=values.tiny)
        environment = found.pop("environment")
        results["environment"] |= {} if results["environment"] else environment
        results["parts"].append(found)
        (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (output / "results.md").write_text(markdown(results), encoding="utf-8")
        print(f"{part_markdown(found)}\n", flush=True)
    failed = [part["name"] for part in results["parts"] if part["outcome"] != "done"]
    print(f"{len(names) - len(failed)} of {len(names)} parts done" + (f"; not {', '.join(failed)}" if failed else ""))
    print(f"results: {output / 'results.json'}, {output / 'results.md'}")


def run_part(name: str, output: pathlib.Path, *, limit: float, tiny: bool) -> dict[str, Any]:
    """{"name", "title", "outcome": "done", "failed" or "out of time", "error", "seconds", "limit", "rows", ...}.

    The process and all that it started are ended at the limit.
    """
    part, file, log = PARTS[name], (output / f"{name}.json").resolve(), output / f"{name}.log"
    file.unlink(missing_ok=True)
    folder = (output / "work").resolve()
    command = [sys.executable, "-m", "tools.bench.gpu_parts.run_part", part.module, str(file), f"{limit:.0f}"]
    command += [str(folder), *(["tiny"] if tiny else [])]
    environment = {**os.environ, **part.environment}
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"environment": {}, "rows": []}
    outcome = {0: "done", None: "out of time"}.get(code, "failed")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return {
        "name": name,
        "outcome": outcome,
        "error": " / ".join(lines[-ERROR_LINES:])[-400:] if outcome == "failed" else "",
        "seconds": round(time.monotonic() - begin, 1),
        "limit": round(limit, 1),
        **found,
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The whole of it as a page."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    head = [
        f"`{results['command']}`, {results['started']}",
        "",
        f"Device: {environment.get('device', 'not known')}, {environment.get('memory_gib') or '-'} GiB for JAX.",
        f"Processor cores: {environment.get('cores', '-')}. Versions: {versions}.",
    ]
    return "\n".join([*head, *(f"\n{part_markdown(part)}" for part in results["parts"])]) + "\n"


def part_markdown(part: Mapping[str, Any]) -> str:
    """A heading, a table, and what went wrong."""
    lines = [f"## {part['name']}", "", f"{part['outcome']}, {part['seconds']} s of at most {part['limit']}."]
    if part["error"]:
        lines.append(f"Its last words: `{part['error'].replace('`', chr(39))}`")
    titles = dict.fromkeys(row.get("table", "") for row in part["rows"])
    for title in titles:
        lines += ["", *([f"{title}:", ""] if title else [])]
        lines += _table([row for row in part["rows"] if row.get("table", "") == title])
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [column for column in dict.fromkeys(column for row in rows for column in row) if column != "table"]
    columns.sort(key=lambda column: (column != "what", column == "error"))
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    return lines + [f"| {' | '.join(cell(row.get(column, '')) for column in columns)} |" for row in rows]


def cell(value: Any) -> str:
    """Four digits of a float; text that stays in its cell."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")
