"""Rankings as TREC files, for trec_eval, ir_measures and whoever wants to check: qrels.txt and run.<row>.txt.

    qrels  query 0 item grade          run  query Q0 item rank score row

Ids are percent-encoded where they hold white space or other than letters, digits and _.-~; a list of a query is
query/list. Only queries with something relevant are written, since trec_eval counts the others as 0. trec_eval ranks
equal scores by descending id: its numbers are ours under ties="docid", and under any rule where nothing ties.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np

from eval.logs import Queries
from siglip_jax.errors import UserError

QRELS, MANIFEST = "qrels.txt", "trec.json"
_OWN = re.compile(r"(qrels|run\.[A-Za-z0-9._-]+)\.txt|trec\.json")


class TrecWriter:
    """Takes blocks of rankings (an `eval.protocols.measures.Sink`); a context manager. Scores are written to
    float32 precision.

    Files: qrels.txt, a run for each row, and trec.json with the protocol and which file is whose.
    """

    def __init__(self, folder: str, queries: Queries, *, names: Sequence[str], items: Sequence[str], protocol: str):
        """names: of each query, as `query_names` makes them; items: ids of the catalogue.

        Raises:
          UserError: a folder that holds other files, or gains that are no whole numbers.
        """
        self._folder = pathlib.Path(folder)
        gains = queries.gains
        if not np.array_equal(gains, np.round(gains)):
            odd = float(gains[gains != np.round(gains)][0])
            raise UserError(f"--trec: gain {odd:g}; qrels hold whole grades, so declare whole gains for the actions")
        if self._folder.exists():
            others = [path.name for path in self._folder.iterdir() if not _OWN.fullmatch(path.name)]
            if others:
                raise UserError(f"--trec={folder}: holds {others[0]}, which is no TREC file; give a new folder")
            for path in self._folder.iterdir():
                path.unlink()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._names, self._items = list(names), [_encoded(item) for item in items]
        self._relevant = np.bincount(queries.owner[gains > 0], minlength=len(queries)) > 0
        self._stack = contextlib.ExitStack()
        self._runs: dict[str, tuple[str, TextIO]] = {}
        self._protocol = protocol
        with open(self._folder / QRELS, "w", encoding="ascii") as file:
            for query in np.flatnonzero(self._relevant):
                part = slice(queries.starts[query], queries.starts[query + 1])
                for item, gain in zip(queries.candidates[part], gains[part], strict=True):
                    file.write(f"{self._names[query]} 0 {self._items[item]} {int(gain)}\n")

    def __enter__(self) -> TrecWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()
        files = {row: name for row, (name, _) in self._runs.items()}
        about = {"protocol": self._protocol, "qrels": QRELS, "runs": files, "queries": int(self._relevant.sum())}
        (self._folder / MANIFEST).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def __call__(self, ranker: str, queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> None:
        tag, file = self._run(ranker)
        order = np.argsort(-scores, axis=1, kind="stable")
        for query, best, listed, values in zip(queries, order, candidates, scores, strict=True):
            if not self._relevant[query]:
                continue
            rank = 0
            for place in best:
                if listed[place] >= 0 and values[place] > -np.inf:
                    rank += 1
                    name = self._items[listed[place]]
                    file.write(f"{self._names[query]} Q0 {name} {rank} {float(values[place]):.9g} {tag}\n")

    def _run(self, row: str) -> tuple[str, TextIO]:
        tag = re.sub(r"[^A-Za-z0-9_-]+", "-", row).strip("-") or "row"
        if row not in self._runs:
            name = f"run.{tag}.txt"
            if name in (taken for taken, _ in self._runs.values()):
                name = f"run.{tag}.{len(self._runs)}.txt"
            file = self._stack.enter_context(open(self._folder / name, "w", encoding="ascii"))  # noqa: SIM115
            self._runs[row] = (name, file)
        return tag, self._runs[row][1]


def query_names(queries: Queries) -> list[str]:
    """What each query is called in the files."""
    return [
        _encoded(str(query)) + (f"/{_encoded(str(part))}" if part else "")
        for query, part in zip(queries.ids, queries.list_ids, strict=True)
    ]


def read_qrels(path: str | pathlib.Path) -> dict[str, dict[str, int]]:
    """As pytrec_eval takes it: {query: {item: grade}}."""
    found: dict[str, dict[str, int]] = {}
    for query, _, item, grade in _fields(path, 4):
        found.setdefault(query, {})[item] = int(grade)
    return found


def read_run(path: str | pathlib.Path) -> Mapping[str, dict[str, float]]:
    """As pytrec_eval takes it: {query: {item: score}}."""
    found: dict[str, dict[str, float]] = {}
    for query, _, item, _, score, _ in _fields(path, 6):
        found.setdefault(query, {})[item] = float(score)
    return found


def _fields(path: str | pathlib.Path, count: int) -> Any:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if len(fields) != count:
                raise UserError(f"{path} line {number}: {len(fields)} fields; expected {count}")
            yield fields


def _encoded(text: str) -> str:
    return urllib.parse.quote(text, safe="")
