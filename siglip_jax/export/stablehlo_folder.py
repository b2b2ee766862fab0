"""Both towers as StableHLO programs, for whoever runs JAX but not this library: `jax.export`, weights, a consumer.

    image.jax, text.jax     programs; float32 pixels [n, h, w, 3] or an adapter's vectors by name, int32 ids [n, length]
    weights.safetensors     float32, named as in the parameter tree, img/embedding/kernel
    consume.py              twenty lines that run them
    siglip_jax.json         signatures, preprocessing

A program runs on CPU, GPU and TPU, in batches of any size from 1. JAX reads those of the six months before it.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_jax import __version__
from siglip_jax.errors import UserError
from siglip_jax.export import consume
from siglip_jax.export.stablehlo import PLATFORMS

if TYPE_CHECKING:
    from siglip_jax.model import Model

WEIGHTS, MANIFEST = "weights.safetensors", "siglip_jax.json"
PARTS = {"image": "img", "text": "txt"}  # of the parameter tree


def export_programs(model: Model, folder: str | pathlib.Path) -> None:
    """Writes the folder.

    Args:
      model: of pictures of one size, or an adapter.
      folder: where to; it must not exist.

    Raises:
      UserError: the folder exists, or a model of NaFlex pictures.
    """
    import jax
    from jax import export
    from safetensors.numpy import save_file

    folder, architecture = pathlib.Path(folder), model.architecture
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --output or remove it")
    if architecture.naflex:
        raise UserError("this model takes NaFlex pictures, whose sizes differ; expected a model of one size")
    (batch,) = export.symbolic_shape("batch")
    image: Any = {name: jax.ShapeDtypeStruct((batch, d), np.float32) for name, d in architecture.features.items()}
    if not image:
        image = jax.ShapeDtypeStruct((batch, *architecture.image_size, 3), np.float32)
    inputs = {"image": image, "text": jax.ShapeDtypeStruct((batch, architecture.text_length), np.int32)}
    folder.mkdir(parents=True)
    weights: dict[str, np.ndarray] = {}
    for tower, part in PARTS.items():
        flat = _flat(model.params[part], part)
        weights |= {name: np.asarray(x, np.float32) for name, x in flat.items()}
        dtypes = {name: x.dtype for name, x in flat.items()}

        def encode(named: Any, given: Any, tower: str = tower, part: str = part, dtypes: Any = dtypes) -> Any:
            tree = _nested({name: x.astype(dtypes[name]) for name, x in named.items()})
            params = {**tree, "t": model.params["t"], "b": model.params["b"]}
            return model.module.apply({"params": params}, given, method=f"encode_{tower}")

        shapes = {name: jax.ShapeDtypeStruct(x.shape, np.float32) for name, x in flat.items()}
        program = export.export(jax.jit(encode), platforms=PLATFORMS)(shapes, inputs[tower])
        (folder / f"{tower}.jax").write_bytes(program.serialize())
    save_file(weights, folder / WEIGHTS)
    manifest = {
        "programs": {
            "image": ", ".join(f"{name}: float32 [n, {d}]" for name, d in architecture.features.items())
            or "float32 [n, {}, {}, 3]".format(*architecture.image_size),
            "text": f"int32 [n, {architecture.text_length}]",
        },
        "output": f"float32 [n, {architecture.embedding_dim}], unit norm",
        "platforms": PLATFORMS,
        "preprocessing": model.preprocessing and model.preprocessing.to_json(),
        "siglip_jax": __version__,
        "jax": jax.__version__,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.copyfile(consume.__file__, folder / "consume.py")


def _flat(tree: Any, name: str) -> dict[str, Any]:
    if not hasattr(tree, "items"):
        return {name: np.ascontiguousarray(tree)}
    return {key: x for child in tree for key, x in _flat(tree[child], f"{name}/{child}").items()}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, x in flat.items():
        *folders, leaf = name.split("/")
        place = tree
        for each in folders:
            place = place.setdefault(each, {})
        place[leaf] = x
    return tree
