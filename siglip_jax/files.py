"""Files that anybody may have written: what kind they are, JSON, and how two JSON objects differ."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from etils import epath

from siglip_jax.errors import UserError

MAX_JSON_BYTES = 64 * 2**20


def is_regular(path: epath.Path) -> bool:
    """Whether it is a file that ends; a pipe or a device would be waited for, or read, without end."""
    if "://" in str(path):
        return path.exists() and not path.is_dir()
    return os.path.isfile(path)  # epath's is_file takes everything that is no folder


def sha256(path: epath.Path) -> str:
    """Of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: epath.Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
      UserError: no regular file, too large, too deeply nested, not UTF-8, not JSON, or not an object.
    """
    try:
        if not is_regular(path):
            raise UserError(f"{path}: not a file; expected a JSON object")
        if (size := path.stat().length) > MAX_JSON_BYTES:
            raise UserError(f"{path}: {size} bytes; the limit is {MAX_JSON_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not a JSON object ({_short(error)}); copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object (it holds a {type(value).__name__}); copy it again")
    return value


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines such as "model.patch_size: 8 here, 16 there" for every leaf of two JSON objects that differs."""
    lines: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} here, {b!r} there")
    return lines


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
