"""Random changes to training examples that leave the product what it is, drawn for each (seed, epoch, row).

A draw belongs to its row, so batches do not depend on the batch size, the number of processes or of workers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.augment.colour_jitter import change_colours, colour_map, mean_luma
from input_pipeline.augment.row_random import Purpose, draws, unit
from input_pipeline.augment.title_changes import change_title
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import NAFLEX, SCALED_DECODE, Patches, Preprocessing

__all__ = ["NO_AUGMENTATION", "Augmentation", "draws"]

_COLOURS = {
    "brightness": Purpose.BRIGHTNESS,
    "contrast": Purpose.CONTRAST,
    "saturation": Purpose.SATURATION,
    "hue": Purpose.HUE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to an example, in this order.

    Attributes:
      choose_image: one of the item's pictures, each as likely; its first when off.
      crop_area: (low, high), the share of the picture's area that a window of it has, which is all that is kept; cut
        out of the picture as it came, before it is resized, so that no resolution is lost. (1, 1) for the whole.
      crop_aspect: (low, high), width to height of that window, relative to the picture's own; 2 is as likely as 1/2.
        A window that would stick out is cut off at the edge, and then has less area.
      flip: mirror half of the pictures.
      shift: move by up to this many pixels along each side; the uncovered edge repeats the outermost pixels.
      zoom: enlarge or shrink about the centre by up to this share (0.2: 0.8 to 1.2 times), by nearest pixels.
      brightness, contrast, saturation: change by a factor of up to 1 - share ... 1 + share. Colour is an attribute of
        many products: leave these and the hue at 0 where it is.
      hue: up to this part of the colour circle to either side (0.5: any hue).
      choose_title: one of the item's titles, each as likely; its first when off.
      title_attributes: names of attributes whose values are kept together as one part of the title, and added to it
        where it does not have them.
      title_dropout: probability of each part (word, or value) of the title to be left out; one stays at least.
      title_shuffle: share of the titles whose parts come in an order drawn at random.
    """

    choose_image: bool = False
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    shift: int = 0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    choose_title: bool = False
    title_attributes: tuple[str, ...] = ()
    title_dropout: float = 0.0
    title_shuffle: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_aspect", "title_attributes"):  # lists of JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ranges = [len(x) == 2 and 0 < x[0] <= x[1] for x in (self.crop_area, self.crop_aspect)]
        for name, good, expected in (
            ("shift", self.shift >= 0, "0 or more pixels"),
            ("zoom", 0 <= self.zoom < 1, "a share from 0 to less than 1"),
            ("crop_area", ranges[0] and self.crop_area[1] <= 1, "(low, high) shares, more than 0 and up to 1"),
            ("crop_aspect", ranges[1], "(low, high), both more than 0, such as (0.9, 1.1)"),
            *((name, 0 <= getattr(self, name) <= 1, "a share from 0 to 1") for name in _COLOURS if name != "hue"),
            ("hue", 0 <= self.hue <= 0.5, "a part of the colour circle from 0 to 0.5"),
            ("title_dropout", 0 <= self.title_dropout < 1, "a probability from 0 to less than 1"),
            ("title_shuffle", 0 <= self.title_shuffle <= 1, "a share from 0 to 1"),
        ):
            if not good:
                raise UserError(f"augmentation: {name}={getattr(self, name)}; expected {expected}")

    @property
    def crops(self) -> bool:
        return (self.crop_area, self.crop_aspect) != ((1, 1), (1, 1))

    @property
    def needs_files(self) -> str:
        """The fields that want a picture as it came, for a message; "" where prepared pictures do."""
        found = {"crop_area": self.crop_area != (1, 1), "crop_aspect": self.crop_aspect != (1, 1)}
        return ", ".join(name for name, on in {**found, "choose_image": self.choose_image}.items() if on)

    @property
    def changes_pictures(self) -> str:
        """The fields that make a picture another one in each epoch, but for `flip`, which has two; "" for none."""
        names = ("shift", "zoom", *_COLOURS)
        return ", ".join(filter(None, [self.needs_files, *(name for name in names if getattr(self, name))]))

    @property
    def changes_titles(self) -> bool:
        return bool(self.choose_title or self.title_attributes or self.title_dropout or self.title_shuffle)

    def check(self, preprocessing: Preprocessing, attributes: Iterable[str] | None = None) -> None:
        """Raises a UserError where examples of this preprocessing, with these attributes, cannot be changed so."""
        if preprocessing.resize == NAFLEX and (self.shift or self.zoom):
            raise UserError(
                f"augmentation: shift={self.shift}, zoom={self.zoom} with NaFlex pictures, whose sizes differ; these "
                "can only be flipped: give shift=0, zoom=0; a crop, made before the resize, does the same"
            )
        if self.crops and preprocessing.resize == SCALED_DECODE:
            raise UserError(
                f"augmentation: a crop with resize={SCALED_DECODE!r}: windows are cut from whole decoded pictures, "
                "which the model would not see later; give crop_area=(1, 1), crop_aspect=(1, 1), or another resize"
            )
        if attributes is not None and (missing := [x for x in self.title_attributes if x not in set(attributes)]):
            known = ", ".join(attributes) or "none"
            raise UserError(f"augmentation: title_attributes has {', '.join(missing)}; attributes are {known}")

    # --- pictures as they came ------------------------------------------------------------------------------------

    def choose_picture(self, pictures: Sequence[bytes], row: int, *, seed: int, epoch: int) -> bytes:
        """One of an item's encoded pictures."""
        if not self.choose_image or len(pictures) == 1:
            return pictures[0]
        drawn = unit(draws(np.array([row]), seed=seed, epoch=epoch, purpose=Purpose.IMAGE))[0]
        return pictures[int(drawn * len(pictures))]

    def crop(self, image: np.ndarray, row: int, *, seed: int, epoch: int) -> np.ndarray:
        """uint8 [H, W, 3] -> a view of a window of it."""
        area, aspect, down, right = (
            float(unit(draws(np.array([row]), seed=seed, epoch=epoch, purpose=purpose))[0])
            for purpose in (Purpose.CROP_AREA, Purpose.CROP_ASPECT, Purpose.CROP_DOWN, Purpose.CROP_RIGHT)
        )
        area = self.crop_area[0] + area * (self.crop_area[1] - self.crop_area[0])
        aspect = self.crop_aspect[0] * (self.crop_aspect[1] / self.crop_aspect[0]) ** aspect
        height, width = image.shape[:2]
        h = min(height, max(1, round(height * math.sqrt(area / aspect))))
        w = min(width, max(1, round(width * math.sqrt(area * aspect))))
        top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
        return image[top : top + h, left : left + w]

    # --- prepared pictures ----------------------------------------------------------------------------------------

    def __call__(
        self, images: np.ndarray | Patches, rows: np.ndarray, *, seed: int, epoch: int
    ) -> np.ndarray | Patches:
        """uint8 [b, h, w, 3] or `Patches` of uint8 of the given rows -> a new value of the same shapes."""
        if isinstance(images, Patches):
            changed: np.ndarray | Patches = Patches(images.pixels.copy(), images.shape.copy())
        else:
            changed = images.copy(order="C")
        self.change(changed, rows, seed=seed, epoch=epoch)
        return changed

    def change(self, images: np.ndarray | Patches, rows: np.ndarray, *, seed: int, epoch: int) -> None:
        """The same in place: fresh memory for each batch costs more than the changes. Arrays in row-major order."""
        if self.flip:
            mirror(images, self.mirrored(rows, seed=seed, epoch=epoch))
        if self.shift or self.zoom:
            self._move(images, rows, seed=seed, epoch=epoch)
        if any(getattr(self, name) for name in _COLOURS):
            self._colour(images, rows, seed=seed, epoch=epoch)

    def mirrored(self, rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """bool [b]: which of the rows have a mirrored picture."""
        if not self.flip:
            return np.zeros(len(rows), bool)
        return (draws(rows, seed=seed, epoch=epoch, purpose=Purpose.FLIP) >> np.uint64(63)).astype(bool)

    def _move(self, images: Any, rows: np.ndarray, *, seed: int, epoch: int) -> None:
        from input_pipeline.augment import pixel_kernels

        down, right, zoom = (
            unit(draws(rows, seed=seed, epoch=epoch, purpose=purpose))
            for purpose in (Purpose.SHIFT_DOWN, Purpose.SHIFT_RIGHT, Purpose.ZOOM)
        )
        scale = 1 + self.zoom * (2 * zoom - 1)
        y, x = (
            _sources(side, np.floor(drawn * (2 * self.shift + 1)) - self.shift, scale)
            for side, drawn in zip(images.shape[1:3], (down, right), strict=True)
        )
        pixel_kernels.move(images, y, x)

    def _colour(self, images: np.ndarray | Patches, rows: np.ndarray, *, seed: int, epoch: int) -> None:
        amounts = {
            name: getattr(self, name) * (2 * unit(draws(rows, seed=seed, epoch=epoch, purpose=purpose)) - 1)
            for name, purpose in _COLOURS.items()
        }
        for k, picture in enumerate(images.pixels if isinstance(images, Patches) else images):
            there = int(images.shape[k].prod()) if isinstance(images, Patches) else len(picture)
            colours = picture[:there].reshape(-1, 3)  # without patches that are none
            factors = {name: float(amount[k]) + (name != "hue") for name, amount in amounts.items()}
            change_colours(colours, *colour_map(mean_luma(colours), **factors))

    # --- titles ---------------------------------------------------------------------------------------------------

    def titles(self, records: Sequence[Mapping[str, Any]], rows: np.ndarray, *, seed: int, epoch: int) -> list[str]:
        """The titles of the given rows of a split."""
        if not self.changes_titles:
            return [record["title"] for record in records]
        return [
            change_title(
                record,
                int(row),
                dropout=self.title_dropout,
                shuffle=self.title_shuffle,
                attributes=self.title_attributes,
                choose=self.choose_title,
                seed=seed,
                epoch=epoch,
            )
            for record, row in zip(records, rows, strict=True)
        ]


NO_AUGMENTATION = Augmentation(flip=False)


def mirror(images: np.ndarray | Patches, which: np.ndarray) -> None:
    """Mirrors pictures in place, where bool [b] says so."""
    if isinstance(images, Patches):
        _mirror_patches(images, which)
    else:
        from input_pipeline.augment import pixel_kernels

        pixel_kernels.mirror(images, which)


def _mirror_patches(patches: Patches, mirrored: np.ndarray) -> None:
    """Those pictures left to right: the patches of each row in reverse order, and each patch mirrored itself."""
    y, x = patches.coordinates
    columns = patches.shape[:, 1:]
    number = np.arange(patches.pixels.shape[1])
    source = np.where(patches.mask, y * columns + (columns - 1 - x), number)
    side = math.isqrt(patches.pixels.shape[2] // 3)
    for k in np.flatnonzero(mirrored):
        picture = patches.pixels[k]
        picture[:] = picture[source[k]].reshape(-1, side, side, 3)[:, :, ::-1].reshape(picture.shape)


def _sources(side: int, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int64 [b, side]: which pixel each one is taken from, after a move by `shift` [b] and a zoom by `scale` [b]."""
    centre = (side - 1) / 2
    position = centre + (np.arange(side) - shift[:, None] - centre) / scale[:, None]
    return np.clip(np.floor(position + 0.5), 0, side - 1).astype(np.int64)
