"""What every format of model files is read to and written from, and what an entry of the table of formats says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from siglip_jax.models.architecture import Architecture
from siglip_jax.models.presets import Preset
from siglip_jax.preprocessing import Preprocessing

LAYOUTS = ("stacked", "layers")
SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How files are written, where a format knows more than one way.

    Attributes:
      layout: of LAYOUTS, of the layers in an .npz.
      shard_bytes: the most that one safetensors file of a Hugging Face folder holds, but for a larger tensor.
    """

    layout: str = LAYOUTS[0]
    shard_bytes: int = SHARD_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model as its files hold it.

    Attributes:
      params: our parameter tree {"img", "txt", "t", "b"}, big_vision's names with layers stacked; numpy arrays, dtypes
        as stored. Names, shapes and finite numbers are checked by whoever reads, so a format need not.
      architecture: of both towers.
      preprocessing: what the files say of it; None where they say nothing.
      dtype: of computing.
      source: the file or folder that errors about the parameters name; None for one to be written.
      check_bytes: called after all other checks; raises a UserError where the file is not the one that was written.
    """

    params: Any
    architecture: Architecture
    preprocessing: Preprocessing | None = None
    dtype: str = "float32"
    source: object = None
    check_bytes: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One format of model files.

    Attributes:
      description: after "expected", such as "a big_vision .npz".
      detect: whether an existing path, a folder or a regular file, is of this format; by names alone, without reading.
      read: (path, the preset that was asked for by name or None) -> the model. UserError for damaged files.
      write: (model, path, options) -> what the format cannot hold, a line each. The path does not exist, or is an
        empty folder. None where the format is only read.
    """

    description: str
    detect: Callable[[epath.Path], bool]
    read: Callable[[epath.Path, Preset | None], StoredModel]
    write: Callable[[StoredModel, epath.Path, WriteOptions], list[str]] | None = None
