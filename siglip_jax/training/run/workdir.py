"""Whose a workdir is: one run's at a time, of one config and one set of data."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.training.config import TABLES, config_to_json, default_config, without_free_fields

LOCK = "lock"
_GROUPS = {table.group for table in TABLES}  # dicts that are values, such as gains of actions, are not completed


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Whether a step of a run was saved there: a run that failed before has the folder alone."""
    folder = epath.Path(workdir) / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def claim_workdir(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    fingerprint: str,
    *,
    stores: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Writes config.json into a new workdir; refuses one that is in use, or of another run, naming the differences.

    Args:
      stores: fingerprints of the stored vectors that the run reads besides its data, by name.
    """
    with hold_workdir(workdir, config, fingerprint, stores=stores):
        pass


@contextlib.contextmanager
def hold_workdir(
    workdir: epath.Path,
    config: ml_collections.ConfigDict,
    fingerprint: str,
    *,
    stores: Mapping[str, str] = types.MappingProxyType({}),
) -> Iterator[None]:
    """As `claim_workdir`, and keeps other processes out until the end of the `with`.

    The lock is the operating system's (flock), so a process that is killed leaves none behind. Process 0 of a run
    holds it. There is none on gs:// and the like.

    Raises:
      UserError: in use by another process, of another run, or no folder of a run at all.
    """
    if jax.process_index() != 0:
        yield
        return
    if not (workdir / "config.json").exists() and workdir.exists():
        if not workdir.is_dir():
            raise UserError(f"--workdir {workdir} is a file; choose a folder")
        if any(path.name != LOCK for path in workdir.iterdir()):
            raise UserError(f"--workdir {workdir} is not empty and holds no run; choose a new folder")
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        _claim(workdir, {"config": config_to_json(config), "data": fingerprint, "stores": dict(stores)})
        yield


@contextlib.contextmanager
def _locked(workdir: epath.Path) -> Iterator[None]:
    if "://" in os.fspath(workdir):
        yield
        return
    with open(workdir / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"--workdir {workdir} is in use by another run ({file.read().strip() or 'just started'}); "
                "wait for it, stop it, or choose another --workdir"
            ) from error
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
        # The file stays: removing it while another process waits at it would let two of them in.


def _claim(workdir: epath.Path, ours: dict[str, Any]) -> None:
    path = workdir / "config.json"
    if path.exists():
        different = _differences(path, ours)
        if not different:
            return
        # Without a checkpoint nothing was computed yet: a config that failed at the start may be mended.
        if has_checkpoint(workdir):
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise UserError(
                f"--workdir {workdir} holds a run with another config ({'; '.join(different[:5])}{more}); "
                "choose another --workdir or the same config"
            )
    path.write_text(json.dumps(ours, indent=1) + "\n")


def _differences(path: epath.Path, ours: dict[str, Any]) -> list[str]:
    """Between ours and a run's config.json, but for the free fields."""
    try:
        theirs = json.loads(path.read_text())
        runs: list[dict[str, Any]] = [
            {"config": dict(run["config"]), "data": run["data"], "stores": dict(run.get("stores", {}))}
            for run in (ours, theirs)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not of a training run ({error}); choose another --workdir") from error
    # A field that the run's version did not have yet: it computed what the default does.
    runs[1]["config"] = _completed(runs[1]["config"], config_to_json(default_config()))
    for run in runs:
        run["config"] = without_free_fields(run["config"])
    return files.differences(runs[0], runs[1])


def _completed(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`config` with what it lacks; within groups that both have, alike."""
    return defaults | {
        name: _completed(value, defaults[name])
        if name in _GROUPS and isinstance(value, dict) and isinstance(defaults.get(name), dict)
        else value
        for name, value in config.items()
    }
