"""Starts `consumer.py` and asks it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from siglip_jax.errors import UserError

PROGRAM = pathlib.Path(__file__).with_name("consumer.py")


def write_pictures(file: pathlib.Path, pictures: Sequence[bytes]) -> None:
    """What consumers embed, encoded."""
    arrays = {f"{row:06}": np.frombuffer(picture, np.uint8) for row, picture in enumerate(pictures)}
    np.savez(file, **arrays)  # type: ignore[arg-type]


class Consumer:
    """A process that runs one export. It loads it when it is first asked.

    Args:
      name: for errors.
      kind: of `consumer.KINDS`.
      export: its file or folder.
      pictures: written by `write_pictures`.
      python: that has what runs the export.
      log: where its stderr goes.
    """

    def __init__(
        self, name: str, kind: str, export: pathlib.Path, pictures: pathlib.Path, *, python: str, log: pathlib.Path
    ):
        self.name, self.peak_mib, self._log = name, 0.0, log
        environment = dict(os.environ)
        if python == sys.executable:
            environment["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(__file__).parents[3]), *sys.path[1:]])
        else:
            environment.pop("PYTHONPATH", None)  # of our Python's packages
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, PROGRAM, kind, export, pictures],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip

    def embed(self, start: int, stop: int, *, batch: int, save: pathlib.Path | None = None) -> None:
        """Has it embed pictures, and returns when it has.

        Raises:
          UserError: it ended; with the last of what it said.
        """
        asked: dict[str, Any] = {"start": start, "stop": stop, "batch": batch, "save": save and str(save)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            raise UserError(f"{self.name}: its process ended: {(lines or ['it said nothing'])[-1][:300]}")
        self.peak_mib = json.loads(answer)["peak_mib"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
