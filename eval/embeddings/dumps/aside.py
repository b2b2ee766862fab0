"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from siglip_jax.errors import UserError


@contextlib.contextmanager
def written_aside(output: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to write into; what is in it then moves to where `output` is, the name of `output` itself last.

    Example:
      with written_aside("out/vectors.npy") as folder:
          (folder / "vectors.ids.txt").write_text(ids)
          np.save(folder / "vectors.npy", vectors)

    Raises:
      UserError: something has one of these names already; nothing is written then.
    """
    output = pathlib.Path(output)
    _check_free(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = pathlib.Path(temporary)
        yield folder
        made = sorted(folder.iterdir(), key=lambda path: path.name == output.name)
        for path in made:
            _check_free(output.parent / path.name)
        for path in made:
            path.rename(output.parent / path.name)


def _check_free(path: pathlib.Path) -> None:
    if path.exists():
        raise UserError(f"{path} exists already; choose another --output or remove it")
