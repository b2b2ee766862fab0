"""Frozen towers run once: their outputs over the training split, stored in the workdir, in the place of its pictures
and titles."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from input_pipeline.augment import Augmentation
from input_pipeline.augment.augmentation import mirror
from input_pipeline.dataset import Split
from input_pipeline.loader.bad_rows import BadRow
from input_pipeline.loader.examples import Disk, Recipe
from input_pipeline.loader.stored_outputs import StoredArray, StoredOutputs
from input_pipeline.one_ahead import one_ahead
from input_pipeline.progress import progress
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.towers import TwoTowers
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.training.parallel.distributed import first_process_first, is_first_process
from siglip_jax.training.parallel.sharding import data_share, make_mesh, tree_shardings
from siglip_jax.training.param_rules import Params
from siglip_jax.training.start.frozen_parts import (
    FrozenPart,
    frozen_parts,
    make_storer,
    parameters_digest,
    stored_shapes,
)
from siglip_jax.training.start.spec import batch_shapes

FOLDER = "frozen"  # of the workdir
FIELD = "config.data.cache_frozen"
ROWS = 256  # that pass through a tower at a time, in each process
SHARD_BYTES = 2**28
SPARE_DISK = 0.1  # of the free space, left for checkpoints and others


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What to store.

    Attributes:
      parts: of the towers.
      arrays: by the key of a batch.
      rows: of the split.
    """

    parts: tuple[FrozenPart, ...]
    arrays: dict[str, StoredArray]
    rows: int

    @property
    def bytes(self) -> int:
        return self.rows * sum(array.row_bytes for array in self.arrays.values())

    @property
    def sources(self) -> set[str]:
        """ "image" and "text": what they stand for."""
        return {part.source for part in self.parts}

    def __str__(self) -> str:
        towers = " and ".join(part.words for part in self.parts)
        shapes = ", ".join(
            f"{key} {[self.rows, *([2] * (array.variants > 1)), *array.shape]} {array.dtype}"
            for key, array in self.arrays.items()
        )
        return f"frozen {towers} run once: {shapes}, {_size(self.bytes)}"


def plan_cache(
    config: ml_collections.ConfigDict,
    *,
    module: TwoTowers,
    params: Params,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    rows: int,
    workdir: epath.PathLike | None = None,
) -> CachePlan | None:
    """What a run of `config` stores of its frozen towers; None for nothing. Prints why not, where a tower is frozen.

    Args:
      params: arrays or ShapeDtypeStructs.
      rows: of the training split.
      workdir: whose disk must have room; None does not ask.

    Raises:
      UserError: the config asks for a cache ("on"), and there can be none.
    """
    choice = config.data.cache_frozen
    if choice == "off":
        return None
    parts = frozen_parts(config, params, architecture=module.architecture)
    if not parts and choice == "on":
        raise UserError(
            f"{FIELD}='on', and no tower is frozen, wholly or up to its head; give config.optimizer.freeze=image or "
            "heads, or cache_frozen=auto"
        )
    kept = []
    for part in parts:
        reason, mend = _changing_input(part, augmentation)
        if not reason and choice == "auto":
            seen, once = config.steps * config.batch_size, rows * _variants(part, augmentation)
            reason = f"the run reads {seen:,} rows, and storing would take {once:,}" if seen < once else ""
        _say_no(choice, part.words, reason, mend)
        kept += [part] if not reason else []
    if not kept:
        return None
    plan = _plan(tuple(kept), module=module, preprocessing=preprocessing, augmentation=augmentation, rows=rows)
    reason = "" if workdir is None else _no_room(plan, epath.Path(workdir))
    _say_no(choice, " and ".join(part.words for part in kept), reason, "give a workdir with more room")
    return None if reason else plan


def _changing_input(part: FrozenPart, augmentation: Augmentation) -> tuple[str, str]:
    """Why the part reads something else in each epoch, "" where it does not, and what to do."""
    if part.source == "image":
        changes = augmentation.changes_pictures
        return (f"pictures differ in each epoch ({changes})" if changes else "", "switch these off (flip may stay)")
    names = ("choose_title", "title_attributes", "title_dropout", "title_shuffle")
    changes = ", ".join(name for name in names if getattr(augmentation, name))
    return (f"titles differ in each epoch ({changes})" if changes else "", "switch these off")


def _variants(part: FrozenPart, augmentation: Augmentation) -> int:
    return 2 if part.source == "image" and augmentation.flip else 1


def _say_no(choice: str, words: str, reason: str, mend: str) -> None:
    if reason and choice == "on":
        raise UserError(f"{FIELD}='on': the {words} cannot be run once, since {reason}; {mend}, or give auto")
    if reason and is_first_process():
        print(f"the frozen {words} runs in every step: {reason}", flush=True)


def _no_room(plan: CachePlan, workdir: epath.Path) -> str:
    if "://" in os.fspath(workdir):
        return f"the workdir {workdir} is no folder of this machine"
    path = pathlib.Path(workdir).absolute()
    free = shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free
    there = sum(file.stat().st_size for file in (path / FOLDER).glob("*"))
    if plan.bytes <= (1 - SPARE_DISK) * free + there:
        return ""
    return f"its output takes {_size(plan.bytes)}, and the disk of {workdir} has {_size(free)} free"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def _plan(
    parts: tuple[FrozenPart, ...],
    *,
    module: TwoTowers,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    rows: int,
) -> CachePlan:
    batch = batch_shapes(module, preprocessing, batch_size=1)
    shapes = stored_shapes(module, batch, keys=[part.key for part in parts])
    variants = {part.source: _variants(part, augmentation) for part in parts}
    arrays = {
        key: StoredArray(shape=value.shape[1:], dtype=value.dtype.name, variants=variants[key.partition("_")[0]])
        for key, value in shapes.items()
    }
    return CachePlan(parts=parts, arrays=arrays, rows=rows)


def store_outputs(
    config: ml_collections.ConfigDict,
    plan: CachePlan,
    *,
    model: Model,
    split: Split,
    fingerprint: str,
    workdir: epath.PathLike,
    threads: int,
) -> StoredOutputs:
    """The outputs of all rows, in `workdir`/frozen; computes what is not there yet.

    What another start, dataset, preprocessing or plan has left there is removed. Each of several processes computes its
    share of the shards, and all read all of them.

    Args:
      fingerprint: of the dataset.
      threads: that decode.
    """
    assert model.preprocessing is not None
    mesh = make_mesh(config.mesh)
    shares = data_share(mesh)[1]
    made_from = {
        "version": 1,
        "parameters": parameters_digest(model.params, plan.parts),
        "architecture": model.architecture.to_json(),
        "dataset": [fingerprint, split.name],
        "preprocessing": model.preprocessing.to_json(),
        "arrays": {key: dataclasses.asdict(array) for key, array in plan.arrays.items()},
        "rows": plan.rows,
    }
    made_from = json.loads(json.dumps(made_from))
    folder = pathlib.Path(workdir) / FOLDER
    with first_process_first("frozen towers: folder"):
        rows_per_shard = _claim_folder(folder, made_from, rows_per_shard=_rows_per_shard(plan, shares))
    stored = StoredOutputs(folder=folder, arrays=plan.arrays, rows=plan.rows, rows_per_shard=rows_per_shard)
    missing = _missing_shards(stored)
    if is_first_process():
        done = stored.shards - len(missing)
        print(f"{plan}" + (f"; {done} of {stored.shards} shards are there" if done else ""), flush=True)
    if missing:
        _fill(config, stored, missing, plan=plan, model=model, split=split, mesh=mesh, threads=threads)
        if left := _missing_shards(stored):
            raise UserError(f"{folder}: shard {left[0]} is not there after it was written; do all processes share it?")
    return stored


def remove_outputs(workdir: epath.PathLike) -> None:
    """Removes what `store_outputs` wrote, once the run is done."""
    folder = pathlib.Path(workdir) / FOLDER
    if is_first_process() and folder.exists():
        shutil.rmtree(folder)


def _rows_per_shard(plan: CachePlan, shares: int) -> int:
    """Small enough to lose little when killed, and that all processes have some."""
    return max(1, min(SHARD_BYTES // (plan.bytes // plan.rows), -(-plan.rows // (4 * shares))))


def _claim_folder(folder: pathlib.Path, made_from: dict[str, Any], *, rows_per_shard: int) -> int:
    """Rows of a shard in the folder, which then holds nothing that was made from anything else."""
    path = folder / "made_from.json"
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            rows_there = int(there.pop("rows_per_shard"))
        except (ValueError, KeyError, TypeError, AttributeError):
            there, rows_there = {}, 0
        if there == made_from:
            return rows_there
        different = ", ".join(sorted(key for key in made_from if there.get(key) != made_from[key]))
        print(f"{folder} was made from another run's {different}; it is made again", flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    path.write_text(json.dumps({**made_from, "rows_per_shard": rows_per_shard}, indent=1) + "\n", encoding="utf-8")
    return rows_per_shard


def _missing_shards(stored: StoredOutputs) -> list[int]:
    """As process 0 sees it, so that all agree."""
    missing = np.array([not stored.is_complete(shard) for shard in range(stored.shards)])
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("frozen towers: shards")
        missing = np.asarray(multihost_utils.broadcast_one_to_all(missing))
    return np.flatnonzero(missing).tolist()


def _fill(
    config: ml_collections.ConfigDict,
    stored: StoredOutputs,
    missing: list[int],
    *,
    plan: CachePlan,
    model: Model,
    split: Split,
    mesh: Mesh,
    threads: int,
) -> None:
    assert model.preprocessing is not None
    share, shares = data_share(mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"] // shares
    size = devices * min(config.microbatch or ROWS, max(1, ROWS // devices), -(-stored.rows_per_shard // devices))
    recipe = Recipe(preprocessing=model.preprocessing)
    disk = Disk(split, recipe, threads, pictures="image" in plan.sources, titles="text" in plan.sources)
    store = make_storer(
        model.module,
        keys=[part.key for part in plan.parts],
        to_float=model.preprocessing.to_float,
        mesh=mesh,
    )
    params = jax.device_put(jax.device_get(model.params), tree_shardings(model.params, mesh))

    # In each round every process has a shard; with none left, one again, since all take part in each call.
    rounds = [missing[start : start + shares] for start in range(0, len(missing), shares)]
    mine = [shards[min(share, len(shards) - 1)] for shards in rounds]
    calls = [-(-max(len(stored.shard_rows(shard)) for shard in shards) // size) for shards in rounds]
    pieces = [(shard, number) for shard, count in zip(mine, calls, strict=True) for number in range(count)]

    def read(piece: tuple[int, int]) -> tuple[dict[str, Any], list[BadRow]]:
        rows = stored.shard_rows(piece[0])
        wanted = np.arange(size) + piece[1] * size
        return disk.take(np.minimum(rows.start + wanted, rows.stop - 1), 0)

    shown = progress(
        one_ahead(read, pieces),
        total=len(pieces) * size,
        step=size,
        label="frozen towers",
        show=is_first_process(),
    )
    for shard, count in zip(mine, calls, strict=True):
        made: list[dict[str, np.ndarray]] = []
        bad: dict[int, BadRow] = {}
        for batch, found in itertools.islice(shown, count):
            made.append(_outputs(store, params, batch, stored.arrays))
            bad |= {each.row: each for each in found}
        rows = len(stored.shard_rows(shard))
        arrays = {key: np.concatenate([part[key] for part in made])[:rows] for key in stored.arrays}
        stored.write(shard, arrays, bad=list(bad.values()), writer=jax.process_index())
    next(shown, None)  # its last line
    disk.close()


def _outputs(
    store: Callable[[Params, Any], dict[str, np.ndarray]],
    params: Params,
    batch: dict[str, Any],
    arrays: Mapping[str, StoredArray],
) -> dict[str, np.ndarray]:
    """{key: [rows, variants, ...]}; mirrors the pictures in place."""
    variants = [store(params, {key: batch[key] for key in ("image", "text") if key in batch})]
    if any(array.variants == 2 for array in arrays.values()):
        mirror(batch["image"], np.ones(len(batch["group"]), bool))
        variants.append(store(params, {"image": batch["image"]}))
    return {key: np.stack([each[key] for each in variants[: array.variants]], axis=1) for key, array in arrays.items()}
