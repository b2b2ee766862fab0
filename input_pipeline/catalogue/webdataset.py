"""WebDataset tars as a catalogue: members `key.jpg`, `key.json`, `key.txt` side by side are one item.

Tars are read from front to back, nothing is unpacked to disk, and links and devices in them are never followed.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import pathlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.item import IMAGE_SUFFIXES, Catalogue, Item, as_text, title_texts
from input_pipeline.folder_or_zip import MAX_FILE_BYTES, FileProblem, expand_shards, local_path, safe_name
from siglip_jax.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_TEXT_BYTES = 2**20  # of one .txt or .json
MAX_READ_BYTES = 2 * MAX_FILE_BYTES  # at once; a header that asks for more is damage or worse
MAX_EXPANSION, FREE_BYTES = 100, 2**28  # of a compressed tar: so many times its size, but for so many bytes
TITLE_KEYS = ("title", "caption")  # of a .json, where no .txt has the title
_END = bytes(2 * tarfile.BLOCKSIZE)
_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError)


def find_shards(path: str) -> list[pathlib.Path]:
    """The tars that `path` names: one, `name-{000..123}.tar`, or a folder of tars without a table; [] for no tars."""
    if "://" in path:
        return []
    if path.endswith(SUFFIXES) and (shards := expand_shards(path)):
        return shards
    place = local_path(path)
    if place.is_dir():
        found = sorted(entry for entry in place.iterdir() if entry.name.endswith(SUFFIXES))
        return [] if any(place.glob("items.*")) else found
    return [place] if place.name.endswith(SUFFIXES) and place.is_file() else []


def open_webdataset(shards: Sequence[pathlib.Path], *, columns: Mapping[str, str]) -> Catalogue:
    """The shards as one catalogue, in this order.

    The id is the member `id` of the sample's .json, else its key; the title the .txt, else `title` or `caption` of the
    .json, text or a list; every other member of the .json is an attribute. `columns` names other members.

    Raises:
      UserError: a shard that is cut short, as far as its end tells.
    """
    if "image" in columns:
        raise UserError("--image_column: pictures of tars are members such as key.jpg; leave the flag out")
    for shard in shards:
        _check_end(shard)
    return WebDataset(tuple(shards), dict(columns))


class WebDataset(Catalogue):
    attribute_names = None
    total = None

    def __init__(self, shards: tuple[pathlib.Path, ...], columns: dict[str, str]):
        self.shards, self.columns = shards, columns
        first, last = shards[0].name, shards[-1].name
        self.table = first if len(shards) == 1 else f"{first} ... {last}"
        sizes = [[shard.name, shard.stat().st_size] for shard in shards]
        self.sha256 = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        times = {shard.name: shard.stat().st_mtime_ns for shard in self.shards}
        return super().identity() | {"columns": self.columns, "modified": times}

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        row, seen = 0, set[str]()
        for shard in self.shards:
            for sample in _samples(shard):
                seen.update(sample.fields)
                if row >= start:
                    yield self._item(row, sample)
                row += 1
        if row and (wrong := [part for part, name in self.columns.items() if name not in seen]):
            known = ", ".join(sorted(seen)[:20]) or "none"
            raise UserError(
                f"{self.table}: no .json has {self.columns[wrong[0]]}, named by --{wrong[0]}_column; they have {known}"
            )
        if not row:
            raise UserError(f"{self.table}: no samples; expected members such as 0001.jpg with 0001.txt or 0001.json")

    def _item(self, row: int, sample: _Sample) -> Item:
        fields, problem = dict(sample.fields), sample.problem
        id_ = as_text(fields.pop(self.columns.get("id", "id"), "")) or sample.key
        titles = list(sample.titles)
        for name in [self.columns["title"]] if "title" in self.columns else TITLE_KEYS:
            if found := title_texts(fields.get(name, "")):
                if not titles or "title" in self.columns:
                    titles = found
                    del fields[name]
                break
        names = list(sample.pictures)
        return Item(
            row=row,
            id=id_,
            title=titles[0] if titles else "",
            image=names[0] if names else "",
            attributes={name: as_text(value) for name, value in fields.items()},
            more_images=tuple(names[1:]),
            more_titles=tuple(titles[1:]),
            pictures=sample.pictures,
            problem=problem,
        )


@dataclasses.dataclass
class _Sample:
    key: str
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    titles: list[str] = dataclasses.field(default_factory=list)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    problem: FileProblem | None = None
    members: set[str] = dataclasses.field(default_factory=set)

    def add(self, extension: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name, kind = member.name, extension.rpartition(".")[2].lower()
        if name in self.members:
            raise FileProblem("duplicate member", f"{name} is twice in the tar; keep one of them")
        self.members.add(name)
        name.encode()  # a name that is not UTF-8 holds surrogates
        safe_name(name)
        if not member.isreg():
            raise FileProblem("unsafe path", f"{name} is {_kind(member)}; expected a file: pack the file itself")
        is_text = kind in ("txt", "json")
        if not is_text and kind not in IMAGE_SUFFIXES:
            return
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


def _samples(shard: pathlib.Path) -> Iterator[_Sample]:
    """Runs of members with one key: the path up to the first dot of the file's name."""
    sample: _Sample | None = None
    try:
        source = _open(shard)
        with source, tarfile.open(str(shard), "r:", source, errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                if member.isdir() or member.name.rpartition("/")[2].startswith("._"):  # a Mac's notes of a file
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, _, extension = file.partition(".")
                key = folder + slash + stem
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield _clean(sample)
                    sample = _Sample(key)
                try:
                    sample.add(extension, member, archive)
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
        after = f"after {_replaced(sample.key)}" if sample else "at its beginning"
        raise UserError(f"{shard}: damaged or cut short {after} ({error}); copy it again or leave it out") from error
    if sample is not None:
        yield _clean(sample)


def _clean(sample: _Sample) -> _Sample:
    sample.key = _replaced(sample.key)
    if sample.problem:
        sample.pictures = {}
    return sample


def _open(shard: pathlib.Path) -> _Bounded:
    size = shard.stat().st_size
    compressed = not shard.name.endswith(".tar")
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


def _check_end(shard: pathlib.Path) -> None:
    """Refuses an uncompressed tar without the two blocks of zeros that end one: found here, hours are saved."""
    if not shard.name.endswith(".tar"):
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
