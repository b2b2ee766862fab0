"""JPEG files such as shops have, of many sizes and qualities, made from the pictures of a dataset, for the benches."""

from __future__ import annotations

import contextlib
import io
import pathlib

import numpy as np
import PIL.Image

from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image
from tools.workflow import data

QUALITIES = (75, 85, 92)
SUBSAMPLINGS = (2, 2, 1, 0)  # 4:2:0 twice as often as 4:2:2 and 4:4:4


def reencode(picture: bytes, *, longer_side: int, quality: int, subsampling: int) -> bytes:
    """The picture as a JPEG whose longer side has that many pixels."""
    image = PIL.Image.fromarray(decode_image(picture))
    scale = longer_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    resized.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def build(
    folder: pathlib.Path,
    *,
    dataset: str,
    split: str,
    count: int,
    sides: tuple[int, int],
    copies: int = 1,
    seed: int = 0,
) -> pathlib.Path:
    """A dataset of one split, "train", in `folder`: `count` pictures of `dataset`, or of a synthetic catalogue where
    it is "", their longer sides uniform in `sides`; all of them once, then all again, `copies` times."""
    if not dataset:
        from input_pipeline.synthetic.synthetic_catalogue import write_synthetic_catalogue

        # About 1 % of the rows are faulty, and a third of some are equal pictures.
        write_synthetic_catalogue(folder / "synthetic", items=max(2 * count, 40), seed=seed, size=224)
        dataset, split = str(folder / "source"), "train"
        with contextlib.redirect_stdout(None):
            data.build_data(str(folder / "synthetic"), dataset, max_left_out=1)
    rows = open_split(dataset, split)
    if len(rows) < count:
        raise UserError(f"--count={count}: split {split} of {dataset} has {len(rows)} rows; give fewer")
    rng, lines = np.random.default_rng(seed), ["id\ttitle\timage"]
    (folder / "images").mkdir()
    for number, row in enumerate(np.linspace(0, len(rows) - 1, count).astype(int)):
        record = rows[int(row)]
        encoded = reencode(
            record["image"],
            longer_side=int(rng.integers(sides[0], sides[1] + 1)),
            quality=int(rng.choice(QUALITIES)),
            subsampling=int(rng.choice(SUBSAMPLINGS)),
        )
        (folder / "images" / f"{number}.jpg").write_bytes(encoded)
        lines.append(f"{number}\t{' '.join(record['title'].split())}\timages/{number}.jpg")
    lines += [f"{copy}-{line}" for copy in range(1, copies) for line in lines[1:]]
    (folder / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with contextlib.redirect_stdout(None):  # its words are of no dataset of the user's
        data.build_data(str(folder), folder / "dataset", fractions={"train": 1.0})
    return folder / "dataset"
