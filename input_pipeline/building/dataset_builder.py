"""A catalogue made into a TFDS dataset (ArrayRecord files), with an audit of what was left out.

Any TFDS user reads it: `tfds.builder_from_directory(folder).as_data_source("train")`. Pictures are stored byte for byte
as they came, in whatever mode and size; TensorFlow is not needed for writing or reading.

One pass over the source checks every row and stages what is kept (`stage`), since a split without leaks needs to know
all rows. Then small columns of facts decide who goes where, and the staged records are copied, not decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from input_pipeline.audit.audit_page import write_page
from input_pipeline.building import facts
from input_pipeline.building.build_audit import build_audit, rule_told
from input_pipeline.building.problems import (
    problem_tables,
    refusal_paths,
    refuse,
    write_json,
    write_problems,
)
from input_pipeline.building.records import NAME, Rows, write_info, write_shards
from input_pipeline.building.resume import drop_changed
from input_pipeline.building.split import (
    KEYS,
    OUT,
    SplitRule,
    check_moments,
    linked_groups,
    parse_times,
    split_by_time,
    split_rows,
)
from input_pipeline.building.stage import PART_ROWS, DamagedStage, Stage, check_gaps
from input_pipeline.catalogue import Catalogue
from input_pipeline.catalogue.filter import ChosenItems, choose_items
from input_pipeline.dataset.problem_rows import FILE as PROBLEMS_FILE
from input_pipeline.folder_or_zip import local_path
from input_pipeline.progress import progress as show_progress
from siglip_jax.errors import UserError, checked_on_error

ROWS_FILE = "rows.parquet"
_CONTENTS = ("images", "titles", "accidents", "sizes", "formats", "attributes")  # of the rows kept, as on the page
_OWN_FILES = (
    "dataset_info.json", "features.json", "audit.json", "audit.html", ROWS_FILE, PROBLEMS_FILE,
    f"{NAME}-*.array_record-*",
)  # fmt: skip


def build_dataset(
    catalogue: Catalogue,
    out_dir: str | os.PathLike,
    *,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    split_by: Sequence[str] = KEYS,
    time_column: str = "",
    split_times: Mapping[str, str] | None = None,
    on_error: str = "skip",
    max_left_out: float = 0.01,
    only: Mapping[str, Sequence[str]] | None = None,
    min_image_size: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """Checks every row, splits by title and picture, and puts `out_dir` in its place in one step at the end.

    What kinds of problem a row may have `check_item` says; also "duplicate id": the first row with the id is the
    one kept. Two builds of one catalogue are equal byte for byte, whether or not they were stopped in between: work in
    progress stands in `<out_dir>.partial`, and the same call goes on with it.

    Args:
      catalogue: from `read_catalogue`.
      out_dir: the dataset's folder; new, empty, or with `overwrite` one that this function wrote.
      fractions, seed, split_by, time_column, split_times: how rows are divided, see `SplitRule`; 80 % train and 20 %
        test by title and picture when absent. What a split by time leaves out is a problem of kind "no time" or "in an
        earlier split".
      on_error: "skip" leaves problem rows out and lists them in the audit; "error" raises if there is any, but for
        "in an earlier split", which is not the catalogue's fault.
      max_left_out: share of the rows, from 0 to 1, that may be left out before the build stops with an error; rows
        "in an earlier split" do not count. 0.01 as in the command: a row in a hundred may be bad, but a table whose
        encoding is wrong loses just the rows with accents.
      only: {attribute: values}; rows with other values are not looked at, see `choose_items`.
      min_image_size: pixels of the shorter side.
      num_threads: for decoding; the machine's cores when absent.

    Returns:
      The audit, as in `out_dir/audit.json`: rows (those chosen by `only`), not_chosen, only, kept, splits {name: rows},
      problems {kind: count}, problem_rows [{row, id, kind, detail}] (the first 100 of each kind; `problems.csv` has
      all), more_image_problems {kind: count} (further pictures left out of rows that are kept), duplicate_images and
      duplicate_titles (kept rows whose first picture or normalised title an earlier kept row has), linked_groups and
      largest_group (rows that had to stay together),
      notes (what was assumed of the source, what of it nobody uses, values too common to link rows, shares not met),
      linked_by {key: rows of the largest group by it alone} where a share was not met,
      image_sides [smallest, largest] in pixels, attributes, seed, fractions, split_by, time_column, split_times, table,
      catalogue_sha256 (see `Catalogue`), fingerprint, contents {images, titles, accidents, sizes, formats,
      attributes} (see
      `audit_table`). Beside it `audit.html` shows the same with pictures, and `rows.parquet` has a line for every row.

    Raises:
      UserError: problems with on_error="error" (the audit is then in `<out_dir>.audit.json`, every row in
        `<out_dir>.problems.csv`), no good row, a split that would be empty, an `out_dir` that must not be written, or
        work in progress of another source or options.
    """
    if fractions is None:
        fractions = {} if split_times else {"train": 0.8, "test": 0.2}
    rule = SplitRule(
        fractions=fractions, seed=seed, by=tuple(split_by), time_column=time_column, times=dict(split_times or {})
    )
    rule.check(catalogue.attribute_names)
    on_error = checked_on_error("on_error", on_error)
    if not 0 <= max_left_out <= 1:
        raise UserError(f"max_left_out={max_left_out}; expected a share from 0 to 1, such as 0.01")
    out_dir = pathlib.Path(os.path.realpath(local_path(out_dir)))
    stage = Stage(out_dir)
    with _telling_what_cannot_be_written(out_dir):
        if stage.dataset.exists() or not stage.is_finished():  # else it is in its place already
            _check_writable(out_dir, overwrite)
    only = {name: list(values) for name, values in (only or {}).items()}
    chosen = choose_items(catalogue, only)
    options = {**rule_told(rule), "only": only, "min_image_size": min_image_size}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_returning_memory())
        stack.enter_context(_keeping_finished_work(stage))
        with _telling_what_cannot_be_written(out_dir):
            plan = {"source": chosen.identity(), "options": options}
            stack.enter_context(stage.opened(plan, has_keys=chosen.has_keys))
        if not stage.is_finished():
            drop_changed(stage, chosen, progress)
            done, gaps = stage.rows(), stage.gaps()
            threads = num_threads or os.cpu_count() or 1
            checked = check_gaps(chosen, gaps, min_image_size=min_image_size, num_threads=threads)
            total = None if chosen.total is None else chosen.total - done
            label = f"checking pictures{f' (after {done} done before)' if done else ''}"
            stage.write(show_progress(checked, total=total, label=label, show=progress), gaps)
            audit = _write_dataset(stage, chosen, out_dir, rule, on_error, max_left_out, progress)
            audit["only"] = only
            audit["not_chosen"] = chosen.others if isinstance(chosen, ChosenItems) else 0
            write_json(stage.dataset / "audit.json", audit)
            found = write_page(stage.dataset, stage.dataset / "audit.html")
            audit["contents"] = {name: found[name] for name in _CONTENTS}
            write_json(stage.dataset / "audit.json", audit)
            stage.finish()
        if stage.dataset.exists():  # else an earlier process was killed after this
            _replace(out_dir, stage)
        audit = json.loads((out_dir / "audit.json").read_text(encoding="utf-8"))
        stage.remove()
    for path in refusal_paths(out_dir):
        path.unlink(missing_ok=True)
    return audit


def _write_dataset(
    stage: Stage,
    catalogue: Catalogue,
    out_dir: pathlib.Path,
    rule: SplitRule,
    on_error: str,
    max_left_out: float,
    progress: bool,
) -> dict[str, Any]:
    """Splits the staged rows and writes the dataset, but for its audit, which is returned."""
    parts = stage.parts()
    names = catalogue.attribute_names
    if names is None:  # of tars, which only now have shown them
        names = facts.attribute_names(parts)
        rule.check(names)
    kinds = facts.kinds_of(facts.Facts(parts, names))
    kept = pc.equal(kinds, "").to_numpy(zero_copy_only=False).astype(bool)
    columns = facts.Facts(parts, names, kept)
    splits, groups, out = _assign(columns, rule)
    groups = columns.numbers("row")[groups]
    if (left := splits == OUT).any():
        kinds = pc.replace_with_mask(kinds.combine_chunks(), pa.array(_spread(kept, left)), out)
        kept = _spread(kept, ~left)
        columns, splits, groups = facts.Facts(parts, names, kept), splits[~left], groups[~left]
    main_titles = pc.list_element(columns.staged("title_keys"), 0)
    title_groups = main_titles.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    rows = Rows(kept=kept, split=splits, title_group=title_groups, group=groups)
    audit = build_audit(catalogue, columns, rows, kinds, rule, names)
    refuse(audit, problem_tables(parts, kinds), out_dir, on_error, max_left_out)
    stage.dataset.mkdir(exist_ok=True)
    write_problems(stage.dataset / PROBLEMS_FILE, problem_tables(parts, kinds))
    audit["fingerprint"] = _write_rows(stage.dataset / ROWS_FILE, parts, rows, kinds, names, rule.names)
    shards = write_shards(stage, rows, names, rule.names, columns, progress)
    write_info(stage.dataset, shards, names, columns)
    return audit


def _assign(columns: facts.Facts, rule: SplitRule) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Of the rows kept so far: the split or `OUT`, the group, and for those that are out the kind of problem."""
    if not rule.times:
        return *split_rows(columns, fractions=rule.fractions, seed=rule.seed, keys=rule.by), pa.array([], pa.string())
    groups = linked_groups(columns, rule.by)
    times = parse_times(columns[rule.time_column])
    splits = split_by_time(times, groups, moments=check_moments(rule.times))
    untimed = np.isnat(times[splits == OUT])
    return splits, groups, pc.if_else(pa.array(untimed), facts.NO_TIME, facts.SEEN)


def _spread(kept: np.ndarray, values: np.ndarray) -> np.ndarray:
    """bool, over all rows, of values for the kept ones."""
    spread = np.zeros(len(kept), bool)
    spread[kept] = values
    return spread


def _write_rows(
    path: pathlib.Path,
    parts: Sequence[pathlib.Path],
    rows: Rows,
    kinds: pa.ChunkedArray,
    names: Sequence[str],
    splits: Sequence[str],
) -> str:
    """Writes the fact table, in row groups of one size, and returns the fingerprint of the records kept."""
    texts = pa.struct([(name, pa.string()) for name in names])
    plain = [field for field in facts.STAGED if field.name not in ("attributes", *facts.PASSING)]
    derived = [("split", pa.string()), ("title_group", pa.int64()), ("group", pa.int64())]
    schema = pa.schema([*plain, *derived, *([("attributes", texts)] if names else [])])
    digest = hashlib.sha256()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        start, waiting = 0, schema.empty_table()
        for part in parts:
            table = facts.read_part(part, facts.STAGED.names)
            here = slice(start, start + len(table))
            start = here.stop
            split, title_group, group = rows.of_all(here, splits)
            attributes = [json.loads(text) for text in table["attributes"].to_pylist()]
            attributes = [{name: values.get(name, "") for name in names} for values in attributes]
            content = zip(
                *(table[name].to_pylist() for name in ("id", "title", "image_sha256", "more_titles", "image_keys")),
                split, title_group, attributes, strict=True,
            )  # fmt: skip
            for id_, title, sha256, more_titles, images, split_name, group_number, values in content:
                if split_name:
                    more = [[more_titles, images[1:]]] if more_titles or images[1:] else []
                    record = [split_name, id_, title, sha256, group_number, values, *more]
                    digest.update(json.dumps(record, sort_keys=True).encode() + b"\n")
            some = kinds.slice(here.start, len(table))
            texts_of = {"kind": some, "detail": facts.details_of(some, table["id"], table["detail"])}
            for name, column in texts_of.items():
                table = table.set_column(table.schema.get_field_index(name), name, column)
            arrays = [table[field.name] for field in plain]
            arrays += [pa.array(split), pa.array(title_group, pa.int64()), pa.array(group, pa.int64())]
            if names:
                arrays.append(pa.array(attributes, texts))
            waiting = pa.concat_tables([waiting, pa.table(arrays, schema=schema)])
            while len(waiting) >= PART_ROWS or (part == parts[-1] and len(waiting)):
                # One chunk, so that the bytes do not tell where parts ended, which a build that went on may change.
                writer.write_table(waiting.slice(0, PART_ROWS).combine_chunks())
                waiting = waiting.slice(PART_ROWS)
    return digest.hexdigest()


# --- the folder -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _telling_what_cannot_be_written(out_dir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{out_dir}: cannot be written ({reason}); give another folder") from error


@contextlib.contextmanager
def _returning_memory() -> Iterator[None]:
    """Arrow's own pools keep what columns of a million rows took; the system's gives it back."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@contextlib.contextmanager
def _keeping_finished_work(stage: Stage) -> Iterator[None]:
    """Keeps the stage where it holds more than is quickly done again, and says so; else removes it."""
    try:
        yield
    except DamagedStage:
        stage.remove()
        raise
    except UserError as error:
        if not stage.is_ours:
            raise
        if not stage.has_full_part():
            stage.remove()
            raise
        stage.note_failure()
        kept = f"what was checked of {stage.rows()} rows is kept in {stage.folder} for the next build of {stage.name}"
        raise UserError(f"{error}; {kept} (delete that folder to give it up)") from error
    except BaseException:
        if not stage.is_ours:
            raise
        if not stage.is_finished() and not (rows := stage.rows()):
            stage.remove()
        else:
            what = "all rows" if stage.is_finished() else f"{rows} rows"
            print(
                f"{stage.folder}: {what} are done and kept; the same command goes on from there (delete the folder to "
                "give them up)",
                file=sys.stderr,
                flush=True,
            )
        raise


def _check_writable(out_dir: pathlib.Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir}: a file; expected a new folder")
    others = [p.name for p in out_dir.iterdir() if not any(p.match(pattern) for pattern in _OWN_FILES)]
    if others:  # never deleted, whatever the caller said
        raise UserError(f"{out_dir}: holds {others[0]}, which is no part of a dataset; give a new folder")
    if any(out_dir.iterdir()) and not overwrite:
        raise UserError(f"{out_dir}: holds a dataset already; give a new folder, or overwrite it (--overwrite)")


def _replace(out_dir: pathlib.Path, stage: Stage) -> None:
    """Moves the dataset to `out_dir`; an older one there is moved into the stage first, which goes last."""
    inside = out_dir.exists() and pathlib.Path.cwd() == out_dir
    old = stage.folder / "old"
    if out_dir.exists():
        out_dir.rename(old)
    try:
        stage.dataset.rename(out_dir)
    except OSError:
        with contextlib.suppress(OSError):
            old.rename(out_dir)
        raise
    if inside:
        os.chdir(out_dir)  # the older folder, where this process stood, is about to go
