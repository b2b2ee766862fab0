"""A model as a folder of somebody else's library: written aside, read back, and moved into place if it is the same."""

from __future__ import annotations

import pathlib
import re
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from etils import epath

from eval.report.saved_report import read_report
from siglip_jax.errors import UserError
from tools.workflow.exports.model_card import CARDS, EVALUATION, write_card

if TYPE_CHECKING:
    from siglip_jax.model import Model

FOLDERS = tuple(CARDS)  # formats that libraries of others read, which get a model card
SHARD_SIZE = "5GB"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def bytes_of(size: str, *, flag: str = "shard_size") -> int:
    """ "500MB" -> 500000000."""
    match = re.fullmatch(r"([1-9][0-9]*)(KB|MB|GB)", size)
    if match is None:
        raise UserError(f"--{flag}={size}; expected such as 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2]]


def check_new(output: epath.PathLike) -> epath.Path:
    """UserError where something is at `output` already, but for an empty folder."""
    path = epath.Path(output)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--output={path} exists; give a new path")
    return path


def write_folder(
    model: Model,
    output: epath.PathLike,
    *,
    format: str,
    layout: str = "stacked",
    shard_size: str = SHARD_SIZE,
    report: epath.PathLike | None = None,
) -> list[str]:
    """Writes a model in one of the written formats; returns what the format cannot hold, a line each.

    Args:
      output: a folder, or of big_vision an .npz; it must not exist. Nothing is left there of one that fails.
      shard_size: the most that one safetensors file of a Hugging Face folder holds.
      report: the .json of a ranking report, for the model card of a format that has one.

    Raises:
      UserError: what is there, what the format cannot express, or a report that is none.
    """
    output = check_new(output)
    if report is not None and format not in FOLDERS:
        raise UserError(f"--report is for the model card of {', '.join(FOLDERS)}; leave it out for {format}")
    evaluation = None if report is None else read_report(report, flag="report", needs=EVALUATION)
    shard_bytes = bytes_of(shard_size)
    if "://" in str(output):  # no moving there
        lost = model.save(output, format=format, layout=layout, shard_bytes=shard_bytes)
        _finish(model, output, format=format, evaluation=evaluation, lost=lost)
        return lost
    place = pathlib.Path(output)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.partial-", dir=place.parent) as temporary:
        aside = epath.Path(temporary) / place.name
        lost = model.save(aside, format=format, layout=layout, shard_bytes=shard_bytes)
        _finish(model, aside, format=format, evaluation=evaluation, lost=lost)
        if place.exists():
            place.rmdir()  # it is empty
        shutil.move(str(aside), place)
    return lost


def _finish(
    model: Model, folder: epath.Path, *, format: str, evaluation: dict[str, Any] | None, lost: list[str]
) -> None:
    _check(model, folder)
    if format in CARDS:
        write_card(model, folder, format=format, evaluation=evaluation, lost=lost)


def _check(model: Model, folder: epath.Path) -> None:
    """Reads back what was written: the same parameters, bit for bit."""
    import jax
    import numpy as np

    from siglip_jax.loading import STORED, load

    back = load(folder, param_dtype=STORED)
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), jax.device_get(model.params), back.params
    )
    if not all(jax.tree.leaves(same)):
        raise UserError(f"{folder.name}: parameters read back are not those that were written; the disk may be full")
