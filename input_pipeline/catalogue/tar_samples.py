"""The samples of WebDataset tars: runs of members with one key, read from front to back.

Nothing is unpacked to disk, and links and devices in a tar are never followed.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import io
import json
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from input_pipeline.catalogue.item import IMAGE_SUFFIXES, title_texts
from input_pipeline.catalogue.tables.table import FORMATS
from input_pipeline.folder_or_zip import MAX_FILE_BYTES, FileProblem, safe_name, shown
from siglip_jax.errors import UserError

MAX_TEXT_BYTES = 2**20  # of one .txt or .json
MAX_READ_BYTES = 2 * MAX_FILE_BYTES  # at once; a header that asks for more is damage or worse
MAX_EXPANSION, FREE_BYTES = 100, 2**28  # of a compressed tar: so many times its size, but for so many bytes
_END = bytes(2 * tarfile.BLOCKSIZE)
_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)
_TEXTS = ("txt", "json")


@dataclasses.dataclass
class Findings:
    """What reading tars has shown of their members, but for the samples.

    Attributes:
      unused: {end of the name: members that are read by nobody}.
      named: {end of the name: further pictures that are told apart by words}, such as "seg.png".
      dotted: samples whose members' names all have several dots; `example` is one of their names.
    """

    unused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    dotted: int = 0
    example: str = ""

    def sentences(self) -> list[str]:
        found = []
        if self.unused:
            found.append(f"{_counts(self.unused)} not used: neither pictures, .txt nor .json")
        if self.named:
            found.append(f"{_counts(self.named)} taken as further pictures of their items")
        if self.dotted:
            found.append(
                f"keys end at the first dot, though all names of {self.dotted} items have several, as "
                f"{shown(self.example)}; --dots_in_keys ends them at the last"
            )
        return found


def _counts(ends: collections.Counter[str]) -> str:
    common = ends.most_common(5)
    more = f" and {len(ends) - len(common)} other kinds" if len(ends) > len(common) else ""
    named = [(count, f"*.{shown(end)}" if end else "without a dot") for end, count in common]
    return ", ".join(f"{count} member{'s' if count > 1 else ''} {end}" for count, end in named) + more


@dataclasses.dataclass
class Sample:
    """Members of one key.

    Attributes:
      key: the path up to the first (or last) dot of the file's name.
      pictures: {member: bytes}, in order; none where there is a problem.
      titles: of the .txt.
      fields: of the .json.
      problem: why the sample cannot be used.
      members: the names of all of them; `endings` the ends after the key of those that are read.
    """

    key: str
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    titles: list[str] = dataclasses.field(default_factory=list)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    problem: FileProblem | None = None
    members: set[str] = dataclasses.field(default_factory=set)
    endings: list[str] = dataclasses.field(default_factory=list)

    def add(self, extension: str, member: tarfile.TarInfo, archive: tarfile.TarFile, findings: Findings) -> None:
        name, kind = member.name, extension.rpartition(".")[2].lower()
        if name in self.members:
            raise FileProblem("duplicate member", f"{name} is twice in the tar; keep one of them")
        self.members.add(name)
        name.encode()  # a name that is not UTF-8 holds surrogates
        safe_name(name)
        if not member.isreg():
            raise FileProblem("unsafe path", f"{name} is {_kind(member)}; expected a file: pack the file itself")
        is_text = kind in _TEXTS
        if not is_text and kind not in IMAGE_SUFFIXES:
            findings.unused[extension] += 1
            return
        self.endings.append(extension)
        limit = MAX_TEXT_BYTES if is_text else MAX_FILE_BYTES
        if member.size > limit:
            raise FileProblem("too large", f"{name} has {member.size >> 10} KiB; the limit is {limit >> 10} KiB")
        file = archive.extractfile(member)
        data = file.read() if file else b""
        if len(data) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        if not is_text:
            self.pictures[name] = data
        elif kind == "txt":
            self.titles += title_texts(data.decode("utf-8-sig").strip())
        else:
            try:
                fields = json.loads(data.decode("utf-8-sig"), parse_int=str, parse_float=str)
                json.dumps(fields, ensure_ascii=False).encode()
            except UnicodeError:
                raise
            except (ValueError, RecursionError) as error:
                raise FileProblem("damaged json", f"{name}: not JSON ({error})") from error
            if not isinstance(fields, dict):
                raise FileProblem("damaged json", f"{name}: expected a JSON object")
            self.fields |= {key: "" if value is None else value for key, value in fields.items()}


def read_samples(shard: pathlib.Path, findings: Findings, *, dots_in_keys: bool = False) -> Iterator[Sample]:
    """Runs of members with one key; what else there is goes to `findings`.

    Raises:
      UserError: a tar that is damaged, cut short or a bomb, or that holds a table: a packed folder.
    """
    sample: Sample | None = None
    try:
        source = _open(shard)
        with source, tarfile.open(str(shard), "r:", source, errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                folder, slash, file = member.name.rpartition("/")
                if member.isdir() or file.startswith("._"):  # a Mac's notes of a file
                    continue
                if file.startswith("."):
                    findings.unused[_replaced(file[1:])] += 1
                    continue
                stem, _, extension = file.rpartition(".") if dots_in_keys and "." in file else file.partition(".")
                key = folder + slash + stem
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield from _finished(sample, shard, findings)
                    sample = Sample(key)
                try:
                    sample.add(extension, member, archive, findings)
                except FileProblem as problem:
                    sample.problem = sample.problem or problem
                except UnicodeError as error:
                    where = f"{shard.name}: {_replaced(member.name)}"
                    told = f"{where}: not UTF-8 ({' '.join(str(error).split()[-3:])}); write it as UTF-8"
                    sample.problem = sample.problem or FileProblem("not UTF-8", told)
            if len(source.last) < tarfile.BLOCKSIZE or any(source.last):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("no end-of-archive mark where the headers end")
    except UserError:
        raise
    except _ERRORS as error:
        after = f"after {shown(_replaced(sample.key))}" if sample else "at its beginning"
        raise UserError(f"{shard}: damaged or cut short {after} ({error}); copy it again or leave it out") from error
    if sample is not None:
        yield from _finished(sample, shard, findings)


def _finished(sample: Sample, shard: pathlib.Path, findings: Findings) -> Iterator[Sample]:
    """The sample, unless nothing of it is read."""
    sample.key = _replaced(sample.key)
    if not sample.endings and sample.problem is None:
        if tables := [name for name in sample.members if name.rpartition(".")[2].lower() in FORMATS]:
            raise UserError(
                f"{shard}: holds the table {shown(_replaced(tables[0]))}, so it is a packed folder and no WebDataset; "
                "unpack it (tar -xf), or pack the folder as a .zip, and give that"
            )
        return
    middles = {kind: set[str]() for kind in ("text", "picture")}
    for ending in sample.endings:
        middle, _, suffix = ending.rpartition(".")
        middles["text" if suffix.lower() in _TEXTS else "picture"].add(middle)
        if middle and not middle.isdigit() and suffix.lower() not in _TEXTS:
            findings.named[_replaced(ending)] += 1
    if sample.endings and all(middles["text"] | middles["picture"]):
        if len(middles["text"]) > 1 and middles["text"] <= middles["picture"] and sample.problem is None:
            ends = " and ".join(sorted(middles["text"])[:2])
            told = (
                f"{shown(sample.key)} has pictures and texts of {shown(ends)}: items of their own? give --dots_in_keys"
            )
            sample.problem = FileProblem("dots in the key", f"{told}, or rename them {sample.key}.jpg, .1.jpg, ...")
        findings.dotted += 1
        findings.example = findings.example or f"{sample.key}.{_replaced(sample.endings[0])}"
    if sample.problem:
        sample.pictures = {}
    yield sample


def _open(shard: pathlib.Path) -> _Bounded:
    size = shard.stat().st_size
    compressed = not shard.name.lower().endswith(".tar")
    file: Any = gzip.open(shard) if compressed else shard.open("rb")  # noqa: SIM115
    limit = FREE_BYTES + MAX_EXPANSION * size if compressed else size
    return _Bounded(file, limit)


class _Bounded(io.RawIOBase):
    """A file that refuses to be read beyond `limit`, and in pieces that would fill the memory.

    Attributes:
      last: what was read last.
    """

    def __init__(self, file: Any, limit: int):
        self._file, self._limit = file, limit
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        self._check(self._file.tell() + size - tarfile.BLOCKSIZE)
        self.last = self._file.read(size)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise tarfile.ReadError(f"it unpacks to more than {self._limit >> 20} MiB, as decompression bombs do")


def check_end(shard: pathlib.Path) -> None:
    """Refuses an uncompressed tar without the two blocks of zeros that end one: found here, hours are saved."""
    if not shard.name.lower().endswith(".tar"):
        return
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - len(_END)))
        if size < len(_END) or file.read() != _END:
            raise UserError(f"{shard}: no end-of-archive mark, so it was cut short or is no tar; copy it again")


def _kind(member: tarfile.TarInfo) -> str:
    return "a symbolic link" if member.issym() else "a hard link" if member.islnk() else "a device or pipe"


def _replaced(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
