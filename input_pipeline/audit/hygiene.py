"""Ids, titles and pictures that look like an accident: counted, with the first examples, and left as they are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.dataset.picture_format import TURNED

_EXAMPLES = 5
_SHOWN = 60  # letters
_HTML = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>|<!--|&(#[0-9]{1,6}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,8});")
_PLACEHOLDERS = frozenset((
    "untitled", "no title", "no name", "unnamed", "unknown", "undefined", "tbd", "todo", "test", "default title",
    "new product", "product", "placeholder", "item", "[object object]", "ohne titel", "sans titre", "sin título",
    "無題", "名称未設定", "タイトルなし", "未命名", "无标题",
))  # fmt: skip
_EXCEL = re.compile(r"[0-9]([.,][0-9]+)?E\+[0-9]+", re.IGNORECASE)
_FLOAT = re.compile(r"-?[0-9]+\.0+")
_TWICE = re.compile(r"[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0178\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]+")

# What is said of so many titles, or ids, and how one of them is known.
TITLES: dict[str, Callable[[str], bool]] = {
    "with HTML": lambda text: ("<" in text or "&" in text) and bool(_HTML.search(text)),
    "decoded wrongly at some time": lambda text: not text.isascii() and is_mojibake(text),
    "standing for no product": lambda text: text.strip().casefold() in _PLACEHOLDERS,
}
IDS: dict[str, Callable[[str], bool]] = {
    "rounded by a spreadsheet": lambda text: bool(_EXCEL.fullmatch(text)),
    "of whole numbers written as fractions": lambda text: bool(_FLOAT.fullmatch(text)),
}
_TINY_SIDE = 4  # pixels; pictures of fewer count visits of a page
TURNED_ONES = "that browsers turn by an EXIF mark, which is ignored here"
TINY = f"with a side of fewer than {_TINY_SIDE} pixels"
NEARLY_EQUAL = "nearly equal to another (but for case, blanks, width or letters that do not show)"


def is_mojibake(text: str) -> bool:
    """Whether a title holds the replacement mark, or UTF-8 that was taken for cp1252 or Latin-1 ("WeiÃŸ")."""
    return "\ufffd" in text or any(_was_utf8(piece) for piece in _TWICE.findall(text))


def _was_utf8(piece: str) -> bool:
    data = b"".join(_byte(letter) for letter in piece)
    try:
        return len(data.decode()) < len(piece)
    except UnicodeDecodeError:
        return False


def _byte(letter: str) -> bytes:
    return letter.encode("latin-1") if ord(letter) < 256 else letter.encode("cp1252", "replace")


def plain_id(text: str) -> str:
    """The id as people read it: case, blanks, width and letters that do not show make no difference."""
    if text.isascii():
        return "".join(text.split()).lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if not letter.isspace() and unicodedata.category(letter) != "Cf")


def find_accidents(
    ids: pa.ChunkedArray, titles: pa.ChunkedArray, formats: pa.ChunkedArray, shorter_side: np.ndarray
) -> list[dict[str, Any]]:
    """[{of: "title", "id" or "picture", what, count, examples}], of what there is any; ids are examples of pictures.

    Args:
      ids, titles, formats: text [n] of the rows kept, formats as `picture_format` gives them.
      shorter_side: [n], pixels.
    """
    found = []
    for of, column, kinds in (("title", titles, TITLES), ("id", ids, IDS)):
        counts = dict.fromkeys(kinds, 0)
        examples: dict[str, list[str]] = {what: [] for what in kinds}
        for text in _texts(column):
            for what, is_one in kinds.items():
                if is_one(text):
                    counts[what] += 1
                    if len(examples[what]) < _EXAMPLES:
                        examples[what].append(text[:_SHOWN])
        found += [{"of": of, "what": what, "count": n, "examples": examples[what]} for what, n in counts.items() if n]
    found += _nearly_equal(ids)
    for what, those in (
        (TURNED_ONES, pc.ends_with(pc.fill_null(formats, ""), TURNED).to_numpy()),
        (TINY, shorter_side < _TINY_SIDE),
    ):
        if rows := np.flatnonzero(those).tolist():
            some = [text[:_SHOWN] for text in ids.take(pa.array(rows[:_EXAMPLES])).to_pylist()]
            found.append({"of": "picture", "what": what, "count": len(rows), "examples": some})
    return found


def sentence(accident: dict[str, Any]) -> str:
    """As in "3 titles with HTML, such as '<b>hat</b>' and '<i>cap</i>'."."""
    count, of = accident["count"], accident["of"]
    some = " and ".join(repr(text) for text in accident["examples"][:2])
    such = "such as that of" if of == "picture" else "such as"
    return f"{count:,} {of}{'' if count == 1 else 's'} {accident['what']}, {such} {some}."


def _nearly_equal(ids: pa.ChunkedArray) -> list[dict[str, Any]]:
    chunks = [pa.array([plain_id(text) for text in chunk.to_pylist()], pa.string()) for chunk in ids.chunks]
    encoded = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    several = np.flatnonzero(counts[codes] > 1)
    if not len(several):
        return []
    several = several[np.argsort(codes[several], kind="stable")]  # those that are nearly equal side by side
    examples = pc.take(ids, pa.array(several[:_EXAMPLES])).to_pylist()
    told = [text[:_SHOWN] for text in examples]
    return [{"of": "id", "what": NEARLY_EQUAL, "count": len(several), "examples": told}]


def _texts(column: pa.ChunkedArray) -> Iterable[str]:
    for start in range(0, len(column), 8192):
        yield from column.slice(start, 8192).to_pylist()
