"""Markdown of what others named: no table cell, tag or emphasis comes out of a name."""

from __future__ import annotations

from collections.abc import Sequence


def escaped(text: object) -> str:
    """On one line, every sign of Markdown and HTML as itself.

    Example:
      >>> escaped("a|b <i>")
      'a\\\\|b \\\\<i>'
    """
    plain = " ".join(str(text).split())
    for sign in "\\`*_<|":
        plain = plain.replace(sign, f"\\{sign}")
    return plain


def table(header: Sequence[object], lines: Sequence[Sequence[object]], *, left: Sequence[int] = (0,)) -> str:
    """A table of names and numbers, cells escaped; "" without lines.

    Args:
      left: columns that are words; the others stand to the right.
    """
    if not lines:
        return ""
    rule = ["---" if column in left else "---:" for column in range(len(header))]
    rows = [list(map(escaped, header)), rule, *(list(map(escaped, cells)) for cells in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
