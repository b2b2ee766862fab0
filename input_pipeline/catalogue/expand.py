"""The files that a path means: itself, a range, a pattern, or the files of a folder whose folders are columns."""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
import re
import urllib.parse
from collections.abc import Sequence

from input_pipeline.catalogue.tables.table import mend_text
from input_pipeline.folder_or_zip import local_path
from siglip_jax.errors import UserError

MAX_FILES = 10**6
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # of Hive and Spark, where a column is empty


def expand(path: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """The files of `part-{000..123}.csv`, `day={00..31}/part.csv`, `part-*.csv`, or of folders such as `day=01`.

    A folder stands for its files of these suffixes, where all of them lie in folders of columns below it or, of a range
    or a pattern, in it. [] for a path that means itself.

    Args:
      suffixes: ".csv", ...: of the files of a folder.

    Raises:
      UserError: a range that cannot be read, or nothing that is there.
    """
    place = local_path(path)
    if _exists(place):
        return _below(place, suffixes) if place.is_dir() else []
    texts = _ranges(path)
    found: list[pathlib.Path] = []
    for text in texts:
        if glob.has_magic(text):
            matching = sorted(glob.glob(os.fspath(local_path(text)), recursive=True))
            if not matching:
                raise UserError(f"{text}: no file is named so")
            found += map(pathlib.Path, matching)
        elif len(texts) > 1 or _RANGE.search(path):
            found.append(local_path(text))
    if missing := [file for file in found if not _exists(file)]:
        raise UserError(f"{missing[0]}: no such file; of the {len(found)} in {path} {len(missing)} are missing")
    return [file for entry in found for file in (_in(entry, suffixes) if entry.is_dir() else [entry])]


def _exists(place: pathlib.Path) -> bool:
    try:
        return place.exists()
    except OSError:  # a name too long for a file
        return False


def _ranges(path: str) -> list[str]:
    """The path with each number of its ranges."""
    texts = [path]
    while match := _RANGE.search(texts[0]):
        first, last = match.groups()
        count = int(last) - int(first) + 1
        if count < 1 or count * len(texts) > MAX_FILES:
            raise UserError(f"{path}: expected the smaller number first, and no more than {MAX_FILES} files")
        numbers = [f"{k:0{len(first)}d}" for k in range(int(first), int(last) + 1)]
        texts = [_RANGE.sub(number, text, count=1) for text, number in itertools.product(texts, numbers)]
    return texts


def _in(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    files = _files(folder, suffixes) or _below(folder, suffixes)
    if not files:
        raise UserError(f"{folder}: a folder without files of {', '.join(suffixes)}; name its files")
    return files


def _below(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """Files in folders such as `day=01` of a folder that has none itself."""
    if _files(folder, suffixes):
        return []
    parts = sorted(entry for entry in folder.iterdir() if "=" in entry.name[1:] and entry.is_dir())
    return [file for part in parts for file in (_files(part, suffixes) or _below(part, suffixes))]


def _files(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    entries = sorted(folder.iterdir())
    return [e for e in entries if e.name.lower().endswith(tuple(suffixes)) and e.name[0] not in "._" and e.is_file()]


def common_top(files: Sequence[pathlib.Path]) -> pathlib.Path:
    """The folder below which all files lie, above folders such as `day=01`, whose names are columns."""
    top = pathlib.Path(os.path.commonpath([file.absolute().parent for file in files]))
    while "=" in top.name[1:]:
        top = top.parent
    return top


def folder_values(name: str) -> dict[str, str]:
    """{column: value} that the folders of a relative path give: `day=01/shop=a%20b/part.csv`."""
    pairs = (folder.partition("=") for folder in mend_text(name).split("/")[:-1])
    values = {key: urllib.parse.unquote(value) for key, sign, value in pairs if key and sign}
    return {key: "" if value == _NO_VALUE else value for key, value in values.items()}
