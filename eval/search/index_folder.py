"""The folder of an index: files that never change under their names, and a manifest that is replaced in one step.

    index/vectors-3f6c0b8c1d2e4f5a.npy   every file has the start of its sha256 in its name: a change writes new files
                                         beside those that are there, and none that are there already
    index/manifest.json                  which of them are the index, and the sha256 of each and of itself

A reader finds the index from before a change or the one after it, whatever ends the writer, and when. Folders of the
format before this one, whose files have plain names and are listed in the same way, are read as well.
"""

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError

FORMAT, FORMAT_1 = "siglip-jax index 2", "siglip-jax index 1"
MANIFEST = "manifest.json"
PARTIAL = "manifest.json.partial"  # says whose files these are while a folder has no manifest yet
_NOTE = json.dumps({"format": FORMAT}).encode()
_SEAL = "manifest_sha256"
# What a writer that was killed may have left: our names and ScaNN's, so that nothing else in the folder is touched.
_STEMS = (
    "manifest|ids|vectors|codes|scales|reduction|delta_ids|delta_vectors|dead_rows|scann_assets|scann_config|"
    r"ah_codebook|serialized_partitioner|datapoint_to_token|dp_norms|\w*dataset\w*"
)
_OWN_FILE = re.compile(rf"({_STEMS})-[0-9a-f]{{16}}\.(json|npy|npz|pb|pbtxt)")


def generation_of(manifest: Mapping[str, Any]) -> str:
    """16 digits that follow from the files of an index and its encoder."""
    content = json.dumps([manifest["files"], manifest.get("encoder")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_generation(folder: epath.PathLike) -> str:
    """The generation of the index that is in a folder now, from its manifest alone.

    Raises:
      UserError: no index.
    """
    return generation_of(read_manifest(folder))


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """The manifest, checked: {"format", "count", "dimension", "files": {name: sha256}, ...}.

    Raises:
      UserError: none, of another format, or altered.
    """
    path = epath.Path(folder) / MANIFEST
    if not path.exists():
        raise UserError(f"search index {folder}: no {MANIFEST}: not an index, or one whose writing was cut off")
    wrong = f"search index {folder}: {MANIFEST} is not of format {FORMAT!r}; build the index again"
    try:
        manifest = files.read_json(path)
    except UserError:
        raise UserError(wrong) from None
    listed = manifest.get("files")
    if (
        manifest.get("format") not in (FORMAT, FORMAT_1)
        or not isinstance(listed, dict)
        or not all(isinstance(digest, str) and _is_plain(name) for name, digest in listed.items())
        or not all(isinstance(manifest.get(key), int) for key in ("count", "dimension"))
    ):
        raise UserError(wrong)
    if manifest["format"] == FORMAT and manifest.pop(_SEAL, None) != _digest_of(manifest):
        raise UserError(f"search index {folder}: {MANIFEST} is not what was written (sha256); build the index again")
    return manifest


def read_folder(folder: epath.PathLike) -> tuple[dict[str, Any], dict[str, bytes | mmap.mmap]]:
    """The manifest and the content of each file by its name there, all of one generation, checked.

    Raises:
      UserError: no index, or a file that is missing or altered.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            return manifest, {name: _read_file(epath.Path(folder), manifest, name) for name in manifest["files"]}
        except UserError:
            if read_manifest(folder) == manifest:  # otherwise the index was replaced meanwhile: read the new one
                raise


def bytes_of(folder: epath.PathLike) -> int:
    """What the files of the index take on disk."""
    manifest = read_manifest(folder)
    return sum(_path(epath.Path(folder), manifest, name).stat().length for name in manifest["files"])


@contextlib.contextmanager
def lock_index(folder: epath.PathLike) -> Iterator[None]:
    """Keeps other writers out; readers need no lock. Makes the folder where there is none.

    The lock is the operating system's, on the folder itself: one who is killed leaves none behind. There is none on
    gs:// and the like.

    Raises:
      UserError: another process is changing the index; the folder is a file or holds something else.
    """
    folder = epath.Path(folder)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if _is_remote(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"search index {folder}: another program is changing it; nothing was changed here, try again when it "
                "is done"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def check_folder(folder: epath.PathLike) -> None:
    """Raises a UserError unless an index may be written there: nothing is there, or an index, whole or cut off."""
    folder = epath.Path(folder)
    if not folder.exists():
        return
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if not names or (MANIFEST in names and _format(folder / MANIFEST) in (FORMAT, FORMAT_1)):
            return
        if MANIFEST not in names and _format(folder / PARTIAL) in (FORMAT, FORMAT_1):
            return
        if names == {PARTIAL} and _NOTE.startswith((folder / PARTIAL).read_bytes()):  # a kill cut the note itself off
            return
    raise UserError(
        f"search index {folder}: holds something else than an index: expected an empty or new folder, or an index "
        "to replace; choose another"
    )


def begin(folder: epath.Path) -> None:
    """Before the first file: notes whose files these will be."""
    if not (folder / MANIFEST).exists() and _format(folder / PARTIAL) != FORMAT_1:
        _write(folder / PARTIAL, _NOTE)


def write_file(folder: epath.Path, name: str, content: bytes) -> str:
    """Writes a file unless it is there and whole; returns its sha256."""
    digest = hashlib.sha256(content).hexdigest()
    if not is_whole(folder, name, digest):
        _write(folder / _stored_name(name, digest), content)
    return digest


def is_whole(folder: epath.Path, name: str, digest: str) -> bool:
    """Whether the file is in the folder, with this content."""
    path = folder / _stored_name(name, digest)
    return path.exists() and files.sha256(path) == digest


def replace_manifest(folder: epath.Path, manifest: Mapping[str, Any]) -> None:
    """Makes the files that the manifest lists the index, in one step, and removes those of earlier ones.

    Args:
      manifest: "files" is {name: sha256} of what `write_file` wrote; "format" is added.
    """
    whole = {"format": FORMAT, **manifest}
    content = (json.dumps({**whole, _SEAL: _digest_of(whole)}, indent=2) + "\n").encode()
    earlier = _listed(folder / MANIFEST) | _listed(folder / PARTIAL)
    fresh = folder / _stored_name(MANIFEST, hashlib.sha256(content).hexdigest())
    _write(fresh, content)
    fresh.replace(folder / MANIFEST)
    _sync(folder)
    kept = {_stored_name(name, digest) for name, digest in whole["files"].items()} | {MANIFEST}
    for path in list(folder.iterdir()):
        ours = path.name in earlier | {PARTIAL} or _OWN_FILE.fullmatch(path.name)
        if ours and path.name not in kept and path.is_file():
            path.unlink(missing_ok=True)


def _read_file(folder: epath.Path, manifest: Mapping[str, Any], name: str) -> bytes | mmap.mmap:
    path = _path(folder, manifest, name)
    try:
        content = _content(path)
    except FileNotFoundError:
        raise UserError(f"search index {folder}: {path.name} is missing; build the index again") from None
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]:
        raise UserError(f"search index {folder}: {path.name} is not what was written (sha256); build the index again")
    return content


def _content(path: epath.Path) -> bytes | mmap.mmap:
    """A memory map of a file of this machine; what is elsewhere, or empty, is read."""
    if _is_remote(path) or not path.stat().length:
        return path.read_bytes()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _path(folder: epath.Path, manifest: Mapping[str, Any], name: str) -> epath.Path:
    return folder / (name if manifest["format"] == FORMAT_1 else _stored_name(name, manifest["files"][name]))


def _stored_name(name: str, digest: str) -> str:
    """ "vectors.npy" -> "vectors-3f6c0b8c1d2e4f5a.npy"."""
    stem, extension = os.path.splitext(name)
    return f"{stem}-{digest[:16]}{extension}"


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _format(path: epath.Path) -> str | None:
    """What a manifest says that it is of; None where it says nothing or is not there."""
    try:
        return files.read_json(path).get("format")
    except UserError:
        return None


def _listed(path: epath.Path) -> set[str]:
    """Names in the folder that a manifest of format 1 lists, whole or of a save that was cut off."""
    if _format(path) != FORMAT_1:
        return set()
    listed = files.read_json(path).get("files")
    return {name for name in listed if _is_plain(name)} if isinstance(listed, dict) else set()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _write(path: epath.Path, content: bytes) -> None:
    """On the disk when this returns: a manifest must not outlive a power cut that its files do not."""
    if _is_remote(path):
        path.write_bytes(content)
        return
    path.unlink(missing_ok=True)  # a damaged one may be mapped by a reader, and is not changed under it
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: epath.Path) -> None:
    if _is_remote(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
