"""What a foreign network expects of a picture, from a small JSON beside it: nobody can read that from its graph.

    mobilenet.onnx.json   {"value_range": [0, 1], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Everything has a default; image_size and layout are the network's own where its input says them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

_LAYOUTS = ("nhwc", "nchw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is fed.

    Attributes:
      image_size: (height, width) in pixels, for a network that leaves it open.
      resize, fill, value_range: as of `siglip_jax.preprocessing.Preprocessing`.
      mean, std: of each channel, subtracted and divided by after `value_range`.
      layout: "nhwc" or "nchw"; "" for what the input's shape says.
      output: name of the embedding among several outputs; "" where there is one.
    """

    image_size: tuple[int, int] | None = None
    resize: str = "bilinear"
    fill: str = ""
    value_range: tuple[float, float] = (-1.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    layout: str = ""
    output: str = ""

    @classmethod
    def beside(cls, network: str) -> Settings:
        """Those of `<network>.json`, the defaults where there is none. UserError on an unknown or malformed field."""
        path = epath.Path(str(network).rstrip("/") + ".json")
        if not path.exists():
            return cls()
        given = files.read_json(path)
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"{path}: unknown field {unknown[0]!r}; expected any of {', '.join(known)}")
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
        settings = cls(**fields)
        sized = settings if settings.image_size is not None else dataclasses.replace(settings, image_size=(1, 1))
        try:
            _ = sized.preprocessing  # knows good fields from bad
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix('preprocessing: ')}") from None
        for name in ("mean", "std"):
            numbers = getattr(settings, name)
            if not (isinstance(numbers, tuple) and len(numbers) == 3 and all(type(x) in (int, float) for x in numbers)):
                raise UserError(f"{path}: {name}={numbers!r}; expected three numbers, one for each channel")
        if not all(settings.std):
            raise UserError(f"{path}: std={settings.std!r}; expected no zero")
        if settings.layout not in ("", *_LAYOUTS):
            raise UserError(f"{path}: layout={settings.layout!r}; expected nhwc or nchw")
        return settings

    def for_input(self, shape: Sequence[Any], *, network: str) -> Settings:
        """With size and layout completed by an input's shape [n, h, w, 3] or [n, 3, h, w]; no number where it is open.

        Raises:
          UserError: no picture input, or a size that is neither in the graph nor in the settings.
        """
        places = {"nhwc": (3, (1, 2)), "nchw": (1, (2, 3))}
        fitting = [name for name, (channel, _) in places.items() if len(shape) == 4 and shape[channel] == 3]
        wanted = [name for name in fitting if self.layout in ("", name)]
        if len(wanted) != 1:
            raise UserError(
                f"{network}: takes {list(shape)}; expected pictures [n, h, w, 3] or [n, 3, h, w]"
                + (f' and "layout" in {network}.json' if fitting else "")
            )
        fixed = [shape[axis] for axis in places[wanted[0]][1]]
        sizes: Any = tuple(own if isinstance(own, int) and own > 0 else None for own in fixed)
        if None in sizes and self.image_size is None:
            raise UserError(f'{network}: takes pictures of any size; say which in {network}.json, "image_size": [h, w]')
        asked: Any = self.image_size or sizes
        if any(own not in (None, size) for own, size in zip(sizes, asked, strict=False)):
            raise UserError(f"{network}: takes pictures of {list(sizes)}, {network}.json says {list(asked)}")
        return dataclasses.replace(self, image_size=asked, layout=wanted[0])

    @property
    def preprocessing(self) -> Preprocessing:
        assert self.image_size is not None
        return Preprocessing(
            image_size=self.image_size, resize=self.resize, fill=self.fill, value_range=self.value_range
        )

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] -> float32 in the network's range and layout."""
        out = (self.preprocessing.to_float(images) - np.asarray(self.mean, np.float32)) / np.asarray(
            self.std, np.float32
        )
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2)) if self.layout == "nchw" else out

    def vectors(self, found: np.ndarray, *, network: str) -> np.ndarray:
        """[n, d] or [n, d, 1, 1] -> float32 [n, d]; UserError on a map of features."""
        if found.ndim < 2 or found[0].size != max(found.shape[1:]):
            raise UserError(
                f'{network}: gives {list(found.shape)}; expected one vector a picture: name a pooled output in "output"'
            )
        return found.reshape(len(found), -1).astype(np.float32)


def describe(path: str, content_sha256: str) -> dict[str, Any]:
    """For the manifest of a store."""
    name = pathlib.PurePath(str(path).rstrip("/")).name
    return {"name": name, "sha256": content_sha256}
