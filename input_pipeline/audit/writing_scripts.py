"""Which scripts titles are written in: Latin, Han, Arabic, ..."""

from __future__ import annotations

import collections
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

NO_LETTERS = "no letters"
_CHARACTERS_AT_ONCE, _TITLES_AT_ONCE = 2**20, 2**15
_HAN, _JAPANESE = "Han", "Japanese"
_NAMES = {"CJK": _HAN, "IDEOGRAPHIC": _HAN, **dict.fromkeys(("KATAKANA-HIRAGANA", "KATAKANA", "HIRAGANA"), _JAPANESE)}
_WIDTHS = {"FULLWIDTH", "HALFWIDTH"}


def main_scripts(titles: Iterable[str]) -> tuple[dict[str, int], int]:
    """{script: titles most of whose letters it has}, most frequent first, and how many titles mix scripts.

    Ties go to the script that is commoner among the titles. A letter's script is the first word of its Unicode name,
    which Python knows where it does not know the property Script; marks and digits have none. Hiragana, Katakana and
    the Han beside them are one script, Japanese; titles of Han alone are Japanese where more titles have kana.
    """
    scripts: dict[str, int] = {NO_LETTERS: 0}
    of_character = np.full(0x110000, -1, np.int16)
    mains: collections.Counter[int] = collections.Counter()
    mixed = 0
    for some in _pieces(titles):
        lengths = np.array([len(title) for title in some], np.int64)
        codes = np.frombuffer("".join(some).encode("utf-32-le", "surrogatepass"), np.uint32)
        for code in np.unique(codes[of_character[codes] < 0]).tolist():
            of_character[code] = scripts.setdefault(_script(chr(code)), len(scripts))
        found = of_character[codes].astype(np.int64)
        title = np.repeat(np.arange(len(some)), lengths)
        counts = np.bincount(title * len(scripts) + found, minlength=len(some) * len(scripts))
        counts = counts.reshape(len(some), len(scripts))[:, 1:]
        if _HAN in scripts and _JAPANESE in scripts:
            han, japanese = scripts[_HAN] - 1, scripts[_JAPANESE] - 1
            counts[:, japanese] += np.where(counts[:, japanese] > 0, counts[:, han], 0)
            counts[:, han] = np.where(counts[:, japanese] > 0, 0, counts[:, han])
        letters = counts.sum(0)
        order = np.argsort(-letters, kind="stable")
        main = 1 + order[counts[:, order].argmax(1)] if len(order) else np.zeros(len(some), np.int64)
        main = np.where(counts.sum(1) > 0, main, 0)
        mains.update(dict(zip(*(a.tolist() for a in np.unique(main, return_counts=True)), strict=True)))
        mixed += int(((counts > 0).sum(1) > 1).sum())
    if _HAN in scripts and mains[scripts.get(_JAPANESE, -1)] > mains[scripts[_HAN]] > 0:
        mains[scripts[_JAPANESE]] += mains.pop(scripts[_HAN])
    names = list(scripts)
    return {names[number]: count for number, count in mains.most_common()}, mixed


def _script(character: str) -> str:
    if unicodedata.category(character)[0] != "L":
        return NO_LETTERS
    words = unicodedata.name(character, "OTHER").split()
    word = words[1] if words[0] in _WIDTHS and len(words) > 1 else words[0]
    return _NAMES.get(word, word.capitalize())


def _pieces(titles: Iterable[str]) -> Iterator[list[str]]:
    """Stretches of titles, each of few enough characters for its arrays to be small."""
    some: list[str] = []
    size = 0
    for title in titles:
        size += len(title)
        if some and (size > _CHARACTERS_AT_ONCE or len(some) == _TITLES_AT_ONCE):
            yield some
            some, size = [], len(title)
        some.append(title)
    if some:
        yield some
