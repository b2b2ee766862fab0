"""An embedding store written shard by shard, by a run that may be killed and started again, or by several at once.

    store/plan.json          what is being written: model, preprocessing, dataset, rows, rows of a shard
    store/shard-00000.json   file, count, dimension and sha256, written after the shard that it vouches for; what was
                             skipped of its rows; without a file where that is all of them

Shard k holds rows k * rows_per_shard ... of the dataset whoever writes it, so the store is the same whether one process
wrote it or several, stopped or not. Both kinds of file end in the manifest. Folders may be local or gs://.

An update is written beside the store that is there: its shards have names of their own, and the manifest, replaced in
one step at the end, makes them the store. Files of the generation before stay until the next update, for whoever has
its manifest open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from eval.embeddings.store import (
    MANIFEST,
    OWN_KEYS,
    PLAN,
    content_sha256,
    describe_skipped,
    dtype_of,
    earlier_files,
    read_manifest,
    skipped_of,
    write_manifest,
)
from eval.embeddings.store_shards import ShardRows, write_rows, write_whole
from siglip_jax.errors import UserError
from siglip_jax.files import differences


@dataclass(frozen=True, kw_only=True)
class EmbeddingPlan:
    """What a store will hold.

    Attributes:
      folder: of the store, the same one for all processes.
      manifest: what the embeddings are, as of `embeddings.write_store`.
      rows: of the dataset's split.
      rows_per_shard: what a stop loses at most.
      may_skip: whether rows that cannot be read may be left out and recorded. A plan that may not writes those shards
        again that lack some; all others serve either plan.
      dtype: of the numbers, as of `embeddings.write_store`.
      updates: the manifest of the store that is in the folder and stays until this plan is complete; None where the
        folder is this plan's alone.
    """

    folder: epath.Path
    manifest: Mapping[str, Any]
    rows: int
    rows_per_shard: int
    may_skip: bool = False
    dtype: str = "float32"
    updates: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.rows_per_shard < 1:
            raise UserError(f"rows_per_shard={self.rows_per_shard}: expected at least 1")

    def shards(self) -> list[range]:
        """The rows of each shard."""
        size = self.rows_per_shard
        return [range(low, min(low + size, self.rows)) for low in range(0, self.rows, size)]

    def claim(self, *, overwrite: bool = False) -> bool:
        """Makes the folder this plan's, what it has finished of it kept; True where the store is complete already.

        Args:
          overwrite: delete a store of another model or dataset.

        Raises:
          UserError: such a store, or one that skipped rows where this plan may not, without `overwrite`; or a folder
            that holds anything but a store.
        """
        earlier = earlier_files(self.folder)
        if self.updates is not None:
            if _differences(self._json(), _read_json(self.folder / PLAN)):
                for path in earlier:
                    if path.suffix == ".json" and path.name != MANIFEST:  # what another plan has finished
                        path.unlink(missing_ok=True)
                write_whole(self.folder / PLAN, _bytes(self._json()))
            return False
        complete = (self.folder / MANIFEST).exists()
        if complete:
            found = read_manifest(self.folder)
            of = {k: v for k, v in found.items() if k not in OWN_KEYS} | {"dtype": dtype_of(found)}
            different = _differences({**self.manifest, "dtype": self.dtype}, of)
            skipped = skipped_of(found)
            if not different and skipped and not self.may_skip and not overwrite:
                raise UserError(
                    f"embedding store {self.folder}: lacks {len(skipped)} rows that could not be read "
                    f"({describe_skipped(skipped)}); give --on_error=skip to keep it as it is, or --overwrite to embed "
                    "anew"
                )
            allowed = self.may_skip or not skipped
            if not different and allowed and all(self._is_sound(shard) for shard in found["shards"]):
                return True
        elif (self.folder / PLAN).exists():
            if not (different := _differences(self._json(), _read_json(self.folder / PLAN))):
                return False
        else:
            different = []
        if different and not overwrite:
            state = "a" if complete else "an unfinished"
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            instead = "give --overwrite" + ", or --update to keep what is unchanged" * complete
            raise UserError(
                f"embedding store {self.folder}: holds {state} store of something else ({'; '.join(different[:3])}"
                f"{more}); choose another folder, or {instead}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(earlier, key=lambda path: path.name != MANIFEST):  # first what calls it complete
            path.unlink(missing_ok=True)
        write_whole(self.folder / PLAN, _bytes(self._json()))
        return False

    def is_finished(self, number: int) -> bool:
        """Whether a shard is written, and still what was written."""
        entry = _read_json(self._entry(number))
        skipped = skipped_of(entry)
        if skipped and not self.may_skip:
            return False
        return self._is_sound(entry) if "file" in entry else bool(skipped)

    def write(self, number: int, rows: ShardRows | None, *, skipped: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes one shard.

        Args:
          rows: None where every row was skipped.
          skipped: of the shard's rows, as `embeddings.EmbeddingStore.skipped` has them.
        """
        beside = None
        if self.updates is not None:
            beside = {shard["sha256"]: shard["file"] for shard in self.updates["shards"]}
        entry = {} if rows is None else write_rows(self.folder, number, rows, beside=beside)
        write_whole(self._entry(number), _bytes({**entry, **({"skipped": list(skipped)} if skipped else {})}))

    def complete(self) -> dict[str, Any]:
        """Writes the manifest once all shards are there, and returns it.

        Raises:
          UserError: a shard is missing, as when processes do not see the same folder; or all rows were skipped.
        """
        entries = [_read_json(self._entry(number)) for number in range(len(self.shards()))]
        if missing := [number for number, entry in enumerate(entries) if not entry]:
            raise UserError(
                f"embedding store {self.folder}: {len(missing)} of {len(entries)} shards are missing, the first of "
                f"them {missing[0]}; all processes must write to one folder that all of them see"
            )
        skipped = [each for entry in entries for each in skipped_of(entry)]
        shards = [entry for entry in entries if "file" in entry]
        if not shards:
            raise UserError(
                f"embedding store {self.folder}: none of the {self.rows} rows could be read "
                f"({describe_skipped(skipped)}); build the dataset again"
            )
        written = write_manifest(self.folder, shards, manifest=self.manifest, skipped=skipped)
        for number in range(len(entries)):
            self._entry(number).unlink(missing_ok=True)
        (self.folder / PLAN).unlink(missing_ok=True)
        if self.updates is not None:
            kept = {shard["file"] for manifest in (written, self.updates) for shard in manifest["shards"]}
            for path in earlier_files(self.folder):
                if path.name not in kept and path.name != MANIFEST:
                    path.unlink(missing_ok=True)
        return written

    def _json(self) -> dict[str, Any]:
        of = {"rows": self.rows, "rows_per_shard": self.rows_per_shard, "dtype": self.dtype}
        if self.updates is not None:
            of["updates"] = content_sha256(self.updates)
        return json.loads(json.dumps({"about": dict(self.manifest), **of}))

    def _entry(self, number: int) -> epath.Path:
        return self.folder / f"shard-{number:05d}.json"

    def _is_sound(self, entry: Mapping[str, Any]) -> bool:
        path = self.folder / str(entry.get("file"))
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.get("sha256")


def _read_json(path: epath.Path) -> dict[str, Any]:
    """{} where it is not there, or not whole."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Such as "dataset.split: 'test' here, 'train' there"; the path that a model was loaded by does not count."""
    pair = [json.loads(json.dumps(each)) for each in (ours, theirs)]
    for each in pair:
        for about in (each, each.get("about")):
            if isinstance(about, dict) and isinstance(about.get("model"), dict):
                about["model"].pop("name", None)
    return differences(*pair)
