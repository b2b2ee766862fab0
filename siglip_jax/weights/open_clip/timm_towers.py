"""What timm's names of SigLIP image towers stand for (timm/models/vision_transformer.py, 1.0.31)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from siglip_jax.errors import UserError
from siglip_jax.models.architecture import TowerSize
from siglip_jax.models.presets import SIZES

_Sides = dict[str, dict[int, tuple[int, ...]]]
# Those with timm's usual GELU, which is exact; the others are tanh's.
_EXACT: _Sides = {
    "base": {16: (224, 256, 384, 512)},
    "large": {16: (256, 384)},
    "so400m": {14: (224, 378, 384)},
}
_TANH: _Sides = {
    "base": {32: (256,)},
    "large": {16: (512,)},
    "so400m": {16: (256, 384, 512)},
    "giant-opt": {16: (256, 384)},
}
_ACTIVATIONS = {"gelu": "exact", "gelu_tanh": "tanh"}
# What `timm.create_model` may be told besides, and what it must be where it is told.
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "act_layer")
_FIXED = {"class_token": False, "global_pool": "map", "qkv_bias": True, "num_classes": 0}
_NEUTRAL = ("dynamic_img_size", "drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate", "patch_drop_rate")


@dataclasses.dataclass(frozen=True)
class TimmTower:
    """Sizes of an image tower, the side of its patches and (height, width) of its images."""

    size: TowerSize
    patch_size: int
    image_size: tuple[int, int]

    def options(self) -> dict[str, Any]:
        """All of it as options of `timm.create_model`."""
        size, (height, width) = self.size, self.image_size
        return {
            "img_size": height if height == width else [height, width],
            "patch_size": self.patch_size,
            "embed_dim": size.width,
            "depth": size.depth,
            "num_heads": size.heads,
            "mlp_ratio": mlp_ratio(size),
            "act_layer": next(name for name, gelu in _ACTIVATIONS.items() if gelu == size.gelu),
        }


def mlp_ratio(size: TowerSize) -> float:
    """What torch code multiplies the width with, to cut the product off at the MLP's width."""
    ratio = size.mlp_dim / size.width
    return ratio if int(size.width * ratio) == size.mlp_dim else (size.mlp_dim + 0.5) / size.width


def _known() -> dict[str, TimmTower]:
    found = {}
    for gelu, towers in (("exact", _EXACT), ("tanh", _TANH)):
        for name, patches in towers.items():
            for patch, sides in patches.items():
                for side in sides:
                    size = dataclasses.replace(SIZES[name], gelu=gelu)
                    short = name.replace("-", "")
                    found[f"vit_{short}_patch{patch}_siglip_{side}"] = TimmTower(size, patch, (side, side))
    return found


TOWERS = _known()


def read_tower(name: object, options: Mapping[str, Any], *, source: object) -> TimmTower:
    """A name, perhaps with a tag behind a dot, and the options that differ -> the tower.

    Raises:
      UserError: a name or an option that is no SigLIP tower with map pooling.
    """
    tower = TOWERS.get(name.split(".")[0]) if isinstance(name, str) else None
    if tower is None:
        raise UserError(
            f"{source}: timm_model_name={name!r}; expected one of timm's SigLIP towers of one image size with map "
            f"pooling, such as {next(iter(TOWERS))}"
        )
    unknown = {
        key: value
        for key, value in options.items()
        if key not in (*_SIZES, *_NEUTRAL) and value not in (None, False) and _FIXED.get(key) != value
    }
    if unknown or any(options.get(key, value) != value for key, value in _FIXED.items()):
        raise UserError(f"{source}: timm_model_kwargs={dict(options)}; expected {', '.join(_SIZES)}, no others")
    all_options = tower.options() | {key: options[key] for key in _SIZES if key in options}
    side, act = all_options["img_size"], all_options["act_layer"]
    if act not in _ACTIVATIONS:
        raise UserError(f"{source}: act_layer={act!r}; expected one of {', '.join(_ACTIVATIONS)}")
    try:
        width = all_options["embed_dim"]
        return TimmTower(
            TowerSize(
                width=width,
                depth=all_options["depth"],
                mlp_dim=int(width * all_options["mlp_ratio"]),
                heads=all_options["num_heads"],
                gelu=_ACTIVATIONS[act],
            ),
            all_options["patch_size"],
            tuple(side) if isinstance(side, list) else (side, side),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: timm_model_kwargs={dict(options)}; expected numbers ({error})") from error


def write_tower(tower: TimmTower) -> tuple[str, dict[str, Any]]:
    """The nearest name, and the options in which the tower differs from it."""
    own = tower.options()

    def differing(name: str) -> dict[str, Any]:
        there = TOWERS[name].options()
        return {key: value for key, value in own.items() if there[key] != value}

    name = min(TOWERS, key=lambda each: len(differing(each)))
    return name, differing(name)
