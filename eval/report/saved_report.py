"""The .json that `siglip-jax rank` writes beside its page, read back."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from etils import epath

from siglip_jax.errors import UserError


def read_report(path: epath.PathLike, *, flag: str, needs: Collection[str]) -> dict[str, Any]:
    """A report as `eval.report.report_page` describes it.

    Args:
      flag: that named the file, for messages.
      needs: the keys that are asked of it.

    Raises:
      UserError: another file, or none.
    """
    try:
        found = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--{flag}={path}: cannot be read; expected the .json beside a report that siglip-jax rank wrote"
        ) from error
    if not isinstance(found, dict) or not set(needs) <= found.keys():
        raise UserError(f"--{flag}={path}: no report of rank; expected the .json that it writes beside the page")
    return found
