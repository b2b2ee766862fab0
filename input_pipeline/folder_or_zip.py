"""Reads the files of a folder or of a .zip, and nothing outside it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import lzma
import os
import pathlib
import posixpath
import stat
import unicodedata
import weakref
import zipfile
import zlib
from typing import IO, Any, Protocol

from siglip_jax.errors import UserError

MAX_FILE_BYTES = 32 * 2**20  # of one picture; tables pass their own limit
_UTF8_FLAG = 0x800
_ZIP_ENCODINGS = ("utf-8", "cp932", "gb18030", "cp949", "cp1252")
_SHOWN = 100  # letters of a name in a message
ZIP_ERRORS = (  # what zipfile raises on damaged, encrypted or unknown members
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, NotImplementedError, EOFError, ValueError,
)  # fmt: skip


class FileProblem(UserError):
    """One file or row that cannot be used; `kind` is the word it is counted under."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Files(Protocol):
    def names(self, folder: str) -> list[str]:
        """Names of the files directly in `folder` ("" for the top), sorted, without the folder."""

    def read(self, name: str, *, limit: int = MAX_FILE_BYTES) -> bytes:
        """Bytes of the file at the relative path `name`.

        Raises:
          FileProblem: kind "unsafe path", "missing image", "too large" or "unreadable image".
        """

    def open(self, name: str, *, limit: int) -> IO[bytes]:
        """The same file to be read bit by bit; the same errors."""

    def found(self, name: str) -> str:
        """The name, as `names` has it, of the file that the path leads to; "" where there may be none.

        Raises:
          FileProblem: kind "unsafe path".
        """

    def identity(self) -> dict[str, Any]:
        """What tells, without looking at every file, whether the files are those of an earlier run."""

    def stamp(self, name: str) -> str:
        """What is another after a file was exchanged, without reading it; "" where there is none to be read."""


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """The path as a local one; ArrayRecord's Python wheels and zip files need local disks."""
    if "://" in os.fspath(path):
        raise UserError(f"{path}: catalogues and datasets are read from local disk; copy it there first")
    return pathlib.Path(path).expanduser()


_INSTEAD = {
    ".gz": "unpack it with gunzip first",
    ".bz2": "unpack it with bunzip2 first",
    ".xz": "unpack it with unxz first",
    ".zst": "unpack it with unzstd first",
    ".json": "write a JSON object on each line of a .jsonl",
    ".txt": "rename it by what is between its fields, .csv (commas) or .tsv (tabs)",
    ".xlsx": "save it as .csv, UTF-8",
    ".xls": "save it as .csv, UTF-8",
    ".arrow": "write it as .parquet",
    ".feather": "write it as .parquet",
}


def open_files(path: pathlib.Path) -> Files:
    """A folder or a .zip file as `Files`."""
    if os.path.isdir(path):
        return Folder(path)
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder; expected a catalogue folder, a .zip, tars or a table")
    if hint := _INSTEAD.get(path.suffix.lower()):
        raise UserError(f"{path}: expected a folder, .zip, .tar, .tsv, .csv, .jsonl or .parquet; {hint}")
    return Zip(path)


class Folder:
    def __init__(self, root: pathlib.Path):
        self.root = root.resolve()

    def names(self, folder: str) -> list[str]:
        path = self.root / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(path) if not entry.is_dir(follow_symlinks=False))

    def read(self, name: str, *, limit: int = MAX_FILE_BYTES) -> bytes:
        with self.open(name, limit=limit) as file:
            try:
                return file.read()
            except OSError as error:
                raise FileProblem("unreadable image", f"{name} cannot be read ({error})") from error

    def open(self, name: str, *, limit: int) -> IO[bytes]:
        try:
            path = (self.root / safe_name(name)).resolve()  # follows symbolic links, so that the next line sees them
            if not path.is_relative_to(self.root):
                raise FileProblem("unsafe path", f"{name!r} leads outside {self.root}")
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block or never end
                raise FileProblem("missing image", f"{name} is not a file")
            if status.st_size > limit:
                raise FileProblem("too large", _too_large(name, status.st_size, limit))
            return path.open("rb")
        except FileNotFoundError as error:
            raise FileProblem("missing image", f"{shown(name)} not found in {self.root}") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            raise FileProblem(
                "unreadable image", f"{shown(name)} cannot be read ({getattr(error, 'strerror', error)})"
            ) from error

    def found(self, name: str) -> str:
        return safe_name(name)

    def identity(self) -> dict[str, Any]:
        return {}  # of each file its stamp tells

    def stamp(self, name: str) -> str:
        try:
            status = os.stat(self.root / safe_name(name))
        except (FileProblem, OSError, ValueError):
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"


class Zip:
    """A zip; where it holds one folder with everything in it (`zip -r shop.zip shop`), that folder is the top."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            weakref.finalize(self, self._zip.close)  # before the collector gets to its file, which would warn
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise UserError(f"{path}: cannot be opened as a zip ({error}); expected a folder, .zip or table") from error
        names = [name for name in self._zip.namelist() if not name.startswith("__MACOSX/")]
        tops = {name.split("/")[0] for name in names}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""

    def names(self, folder: str) -> list[str]:
        return self._by_folder.get(f"{self._top}{folder}".rstrip("/"), [])

    def read(self, name: str, *, limit: int = MAX_FILE_BYTES) -> bytes:
        info = self._find(name, limit)
        try:
            return self._zip.read(info)  # zipfile stops at file_size, whatever the compressed stream holds
        except ZIP_ERRORS as error:
            raise FileProblem("unreadable image", f"{name} in {self.path} cannot be read ({error})") from error

    def open(self, name: str, *, limit: int) -> IO[bytes]:
        info = self._find(name, limit)
        try:
            return self._zip.open(info)
        except ZIP_ERRORS as error:
            raise FileProblem("unreadable image", f"{name} in {self.path} cannot be read ({error})") from error

    def found(self, name: str) -> str:
        info = self._named(self._top + safe_name(name))
        return info.filename.removeprefix(self._top) if info else ""

    def identity(self) -> dict[str, Any]:
        """The members with their sizes and checksums, from the zip's directory."""
        digest = hashlib.sha256()
        for info in self._zip.infolist():
            digest.update(f"{info.filename}\0{info.file_size}\0{info.CRC}\n".encode(errors="surrogatepass"))
        return {"zip_directory": digest.hexdigest()}

    def stamp(self, name: str) -> str:
        try:
            info = self._named(self._top + safe_name(name))
        except FileProblem:
            return ""
        return f"{info.file_size} {info.CRC}" if info else ""

    @functools.cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in sorted(self._zip.namelist()):
            folder, _, name = path.rpartition("/")
            if name:
                found.setdefault(folder, []).append(name)
        return found

    def _named(self, name: str) -> zipfile.ZipInfo | None:
        try:
            return self._zip.getinfo(name)
        except KeyError:
            found = self._aliases.get(unicodedata.normalize("NFC", name), [])
            return found[0] if len(found) == 1 else None

    @functools.cached_property
    def _aliases(self) -> dict[str, list[zipfile.ZipInfo]]:
        """Members by other spellings of their names: composed letters, and encodings that a zip does not tell."""
        found: dict[str, list[zipfile.ZipInfo]] = {}
        for info in self._zip.infolist():
            if info.filename.isascii():
                continue
            names = {info.filename}
            if not info.flag_bits & _UTF8_FLAG:  # zipfile has taken its bytes for cp437
                data = info.filename.encode("cp437", "replace")
                for encoding in _ZIP_ENCODINGS:
                    with contextlib.suppress(UnicodeDecodeError):
                        names.add(data.decode(encoding))
            for name in {unicodedata.normalize("NFC", name) for name in names}:
                found.setdefault(name, []).append(info)
        return found

    def _find(self, name: str, limit: int) -> zipfile.ZipInfo:
        info = self._named(self._top + safe_name(name))
        if info is None:
            raise FileProblem("missing image", f"{shown(name)} not found in {self.path}")
        if stat.S_ISLNK(info.external_attr >> 16):  # its content would be the path it leads to
            raise FileProblem("unsafe path", f"{name} in {self.path} is a symbolic link; zip the file itself")
        if info.file_size > limit:
            raise FileProblem("too large", _too_large(name, info.file_size, limit))
        return info


# In the texts of problems that may pass, by a fixed disk or other rights, while size and time of the file stay.
PASSING_PROBLEMS = ("cannot be read", "leads outside")


def shown(name: str) -> str:
    """The name as messages have it: a cell may hold a picture's text instead of its path."""
    return name if len(name) <= _SHOWN else f"{name[:40]}... ({len(name)} letters, perhaps base64: save it as a file)"


def safe_name(name: str) -> str:
    """The name, normalised; a FileProblem where it could lead out of the catalogue."""
    parts = name.split("/")
    if "://" in name:
        raise FileProblem("unsafe path", f"{shown(name)!r} is an address; download the picture and name its file")
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name or ":" in parts[0]:
        raise FileProblem(
            "unsafe path", f"{shown(name)!r}; expected a path within the catalogue, with / and without .."
        )
    return posixpath.normpath(name)


def check_image_size(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise FileProblem("too large", _too_large(name, size, MAX_FILE_BYTES))


def _too_large(name: str, size: int, limit: int) -> str:
    return f"{name} has {size / 2**20:.0f} MiB; the limit is {limit / 2**20:.0f} MiB"
