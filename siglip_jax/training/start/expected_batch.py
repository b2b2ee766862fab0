"""What a batch must be like, asked of each before it travels to the devices: a user's own iterator may give anything.

XLA clamps an id beyond the vocabulary, a step takes floats in [0, 1] for black pixels, and eight rows train as well as
sixteen: without these checks all of that ends in a worse model, and in no message.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.preprocessing import Patches
from siglip_jax.training.start.spec import batch_shapes

LOOKED_AT = 64  # images of a batch whose range of pixels is asked for; all of thousands would take longer than a step
UNIT_NORM_ERROR = 0.01  # of a teacher's row


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedBatch:
    """A process's rows of each global batch.

    Attributes:
      shapes: ShapeDtypeStructs, `Patches` or dicts of them, by key.
      vocab_size: of the text tower.
    """

    shapes: Mapping[str, Any]
    vocab_size: int

    @classmethod
    def of(cls, model: Model, *, rows: int, stored: Sequence[str] = (), more: Sequence[str] = ()) -> ExpectedBatch:
        """`rows` are this process's; `stored` and `more` as for `spec.batch_shapes`."""
        assert model.preprocessing is not None
        shapes = batch_shapes(model.module, model.preprocessing, batch_size=rows, stored=stored, more=more)
        return cls(shapes=shapes, vocab_size=model.architecture.vocab_size)

    def check(self, batch: Any) -> None:
        """Raises a UserError where a step would not compute with `batch` what is meant."""
        if not isinstance(batch, Mapping):
            raise UserError(f"train: a batch is a {type(batch).__name__}; expected a dict of {', '.join(self.shapes)}")
        if missing := [key for key in self.shapes if key not in batch]:
            more = "; config.teacher has weights, so each batch needs unit vectors" if missing[0] == "teacher" else ""
            raise UserError(
                f"train: a batch of {', '.join(map(str, batch)) or 'nothing'} has no {missing[0]}; expected "
                f"{', '.join(f'{key} {_wanted(shape)}' for key, shape in self.shapes.items())}{more}"
            )
        for key, shape in self.shapes.items():
            _check_arrays(key, batch[key], shape)
        if "text" in self.shapes:
            _check_ids(batch["text"], self.vocab_size)
        if isinstance(patches := batch.get("image"), Patches):
            _check_patches(patches)
        elif isinstance(self.shapes.get("image"), jax.ShapeDtypeStruct):
            _check_pixels(batch["image"])
        if "teacher" in self.shapes:
            _check_unit(batch["teacher"])


def check_iterator(batches: Any) -> None:
    """Raises a UserError where `batches` is no `loop.BatchIterator`, or its position nothing that can be saved."""
    wanted = ("__next__", "get_state", "set_state")
    if missing := [name for name in wanted if not callable(getattr(batches, name, None))]:
        raise UserError(
            f"train: batches is a {type(batches).__name__} without {', '.join(missing)}; expected an iterator of "
            "batches with get_state() and set_state(state), so that a run can continue (training.loop.BatchIterator)"
        )
    state = batches.get_state()
    try:
        if not isinstance(state, Mapping):
            raise TypeError(f"a {type(state).__name__}")
        json.dumps(dict(state))
    except (TypeError, ValueError) as error:
        raise UserError(f"train: batches.get_state() gives no dict that JSON can hold ({error})") from error


def _wanted(shape: Any) -> str:
    if isinstance(shape, Patches):
        return f"Patches({_wanted(shape.pixels)}, {_wanted(shape.shape)})"
    if isinstance(shape, Mapping):
        return f"{{{', '.join(f'{name}: {_wanted(each)}' for name, each in shape.items())}}}"
    return f"{shape.dtype} {list(shape.shape)}"


def _given(value: Any) -> str:
    if isinstance(value, Patches):
        return f"Patches({_given(value.pixels)}, {_given(value.shape)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_given(each)}' for name, each in value.items())}}}"
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _check_arrays(key: str, value: Any, shape: Any) -> None:
    """Kind, dtype and shape of what stands under a key, and that its floats are finite."""
    if isinstance(shape, Patches):
        parts = list(zip(value, shape, strict=True)) if isinstance(value, Patches) else None
    elif isinstance(shape, Mapping):
        same = isinstance(value, Mapping) and value.keys() == shape.keys()
        parts = [(value[name], each) for name, each in shape.items()] if same else None
    else:
        parts = [(value, shape)]
    if parts is None or not all(_is_like(array, each) for array, each in parts):
        raise UserError(f"train: {key} of a batch is {_given(value)}; expected {_wanted(shape)}{_hint(value, shape)}")
    for array, each in parts:
        if np.issubdtype(each.dtype, np.floating) and not np.isfinite(np.asarray(array)).all():
            raise UserError(f"train: {key} of a batch has NaN or infinite numbers; expected finite ones")


def _is_like(array: Any, shape: jax.ShapeDtypeStruct) -> bool:
    return (
        isinstance(array, (np.ndarray, jax.Array))
        and not isinstance(array, Patches)
        and array.dtype == shape.dtype
        and tuple(array.shape) == tuple(shape.shape)
    )


def _hint(value: Any, shape: Any) -> str:
    """What is most likely meant, after a semicolon."""
    if not isinstance(shape, jax.ShapeDtypeStruct) or not isinstance(value, (np.ndarray, jax.Array)):
        return ""
    if shape.dtype == np.uint8 and value.dtype != np.uint8:
        return ", pixels from 0 to 255 as model.preprocessing.image makes them; the step itself makes floats of them"
    if value.ndim and value.shape[1:] == shape.shape[1:] and len(value) != shape.shape[0]:
        return "; its rows are config.batch_size, divided by the processes that feed different ones"
    return f"; give .astype(np.{shape.dtype})" if tuple(value.shape) == tuple(shape.shape) else ""


def _check_ids(text: Any, vocab_size: int) -> None:
    ids = np.asarray(text)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise UserError(
            f"train: text of a batch has ids from {ids.min()} to {ids.max()}; expected 0 to {vocab_size - 1}, as "
            "model.preprocessing.text gives them"
        )


def _check_patches(patches: Patches) -> None:
    rows, columns = np.asarray(patches.shape, np.int64).T
    most = patches.pixels.shape[1]
    if len(rows) and not (min(rows.min(), columns.min()) >= 1 and (rows * columns).max() <= most):
        raise UserError(
            f"train: the grids of image's Patches are {patches.shape.tolist()[:4]}...; expected rows and columns of at "
            f"least 1, at most {most} patches together"
        )


def _check_pixels(image: Any) -> None:
    some = np.asarray(image[:LOOKED_AT])
    if len(some) > 1 and some.any() and some.max() == 1:
        raise UserError(
            "train: the pixels of a batch are 0 and 1, so its images are black; expected 0 to 255, as "
            "model.preprocessing.image makes them: were floats in [0, 1] cast to uint8?"
        )


def _check_unit(rows: Any) -> None:
    norms = np.linalg.norm(np.asarray(rows, np.float32), axis=1)
    if len(norms) and abs(norms - 1).max() > UNIT_NORM_ERROR:
        raise UserError(
            f"train: teacher of a batch has rows of norm {norms.min():.3g} to {norms.max():.3g}; expected unit vectors"
        )
