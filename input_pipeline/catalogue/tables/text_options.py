"""How a table of text is read: its encoding, and what stands between its fields."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence
from typing import IO

from siglip_jax.errors import UserError

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_UTF8 = ("utf-8", "utf-8-sig")
_NO_SEPARATORS = '"\r\n\0 '


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What the user says of tables of text; `check` refuses what cannot be.

    Attributes:
      encoding: a name that Python knows, such as "cp1252"; "" is UTF-8, or what the table's byte order mark says.
      separator: the letter between fields of a csv or tsv, "\\t" or "tab" for a tab; "" finds it.
    """

    encoding: str = ""
    separator: str = ""

    def checked(self) -> TextOptions:
        """The same, with a tab as such and an encoding by the name of its codec.

        Raises:
          UserError: an encoding that Python does not know, or a separator that is none.
        """
        separator = {"\\t": "\t", "tab": "\t"}.get(self.separator, self.separator)
        if separator and (len(separator) > 1 or separator in _NO_SEPARATORS or not separator.isascii()):
            raise UserError(f"separator {separator!r}; expected one letter such as ; or | or tab")
        encoding = self.encoding
        if encoding:
            try:
                encoding = codecs.lookup(encoding).name
                "".encode(encoding)  # refuses codecs of bytes, such as base64
            except (LookupError, ValueError, TypeError) as error:
                raise UserError(f"encoding {encoding!r}: unknown; expected one such as utf-8, cp1252, cp932") from error
        return TextOptions(encoding=encoding, separator=separator)


UTF8 = TextOptions()


def encoding_of(file: IO[bytes], options: TextOptions) -> tuple[str, str]:
    """(the codec to read a table with, what was assumed: "" for nothing); `file` stands at its beginning."""
    if options.encoding and options.encoding not in _UTF8:
        return options.encoding, ""
    start = file.read(4)
    found = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    if found and not options.encoding:
        return found, f"read as {found.upper()}, as its first bytes say"
    return "utf-8-sig", ""


def other_separator(first: Sequence[str]) -> str:
    """What stands between the names of a table's first line, in which the usual sign found one field; "" for nothing.

    Args:
      first: the fields of the line, as the usual sign parts them.
    """
    return next((sign for sign in ";\t|," if len(first) == 1 and sign in first[0]), "")
