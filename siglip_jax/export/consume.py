"""Runs exported programs with JAX and safetensors alone.

from consume import load
encode_image = load("image")   # beside this file
encode_image(pixels)           # float32 [n, h, w, 3] in the range that siglip_jax.json says -> unit-norm float32 [n, d]
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parent


def load(tower: str, folder: pathlib.Path = HERE) -> Callable[[Any], Any]:
    """The program "image" or "text" with its weights."""
    from jax import export
    from safetensors.numpy import load_file

    part = {"image": "img/", "text": "txt/"}[tower]
    program = export.deserialize(bytearray((folder / f"{tower}.jax").read_bytes()))
    weights = {name: x for name, x in load_file(folder / "weights.safetensors").items() if name.startswith(part)}
    return lambda given: program.call(weights, given)
