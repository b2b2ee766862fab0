"""siglip-jax bench resize: what each way of resizing does to the ranking of one encoder.

  siglip-jax bench resize --config=configs/fashion.py --dataset=data/fashion --model=mobilenet.tflite \\
    --resize=bilinear --resize=bilinear_pad:white
  siglip-jax bench resize ... --resize=bilinear --resize=bilinear_scaled_decode --enlarge=2

The split's pictures are embedded once for each --resize, by the same encoder, and each item is ranked against the
others, as `siglip-jax rank` does; differences are those of the last --resize to the others, paired by query. A model
trained on one kind of pictures is at its best with that kind: this tells what changing it costs, not what training
with another would give. --enlarge makes larger JPEG files of the pictures first, since scaled decoding leaves alone
what is smaller than twice the encoder's size.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

BATCH = 64
QUALITY, SUBSAMPLING = 90, 2  # of the enlarged files


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="fashion.py")
    common_flags.define_dataset(values)
    common_flags.define_model(values)
    flags.DEFINE_multi_string(
        "resize", None, "A preprocessing's resize, with its fill as in bilinear_pad:edge; repeatable.",
        required=True, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float("enlarge", 1, "How much larger the files are made first.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    from eval.comparison.build_report import build_report
    from eval.comparison.by_attributes import rank_by_attributes, relevance_over
    from eval.comparison.choose_rankers import RankersToCompare
    from eval.comparison.items import read_split
    from eval.rankers import VectorRanker
    from eval.report import format_table
    from tools.workflow import embedding

    split = values.config.evaluation.split
    items = read_split(values.dataset, split)
    relevance_over(values.config, items)  # says at once what is wrong with it
    encoder = embedding.load_encoder(values.model)
    kinds = list(dict.fromkeys(values.resize))
    variants = {kind: with_resize(encoder, kind) for kind in kinds}
    if len(kinds) < 2:
        raise UserError(f"--resize={kinds[0]} alone: nothing to compare it with; give two or more")
    rankers = {}
    for kind, variant in variants.items():
        parts = embed(variant, values.dataset, split, enlarge=values.enlarge, label=kind)
        rankers[kind] = VectorRanker(kind, np.concatenate(list(parts)), ids=items.ids)
    result = rank_by_attributes(rankers.values(), config=values.config, dataset=values.dataset, items=items)
    report = build_report(
        result,
        RankersToCompare(rankers=rankers, items=items, new=kinds[-1], against=kinds[0]),
        title=f"Resizing of {pathlib.Path(values.dataset).name}",
        provenance={"model": encoder.description, "enlarge": values.enlarge},
    )
    print(format_table(report))


def with_resize(encoder: Any, kind: str) -> Any:
    """The encoder fed in another way.

    Raises:
      UserError: an unknown kind, or a NaFlex model.
    """
    from siglip_jax.preprocessing import NAFLEX

    resize, _, fill = kind.partition(":")
    if NAFLEX in (resize, encoder.preprocessing.resize):
        raise UserError(f"--resize={kind}: pictures of one fixed size are compared; give a model of one")
    return dataclasses.replace(encoder, preprocessing=encoder.preprocessing.replace(resize=resize, fill=fill))


def embed(encoder: Any, dataset: str, split: str, *, enlarge: float, label: str) -> Iterator[np.ndarray]:
    """float32 [b, d] of a few rows at a time, in order."""
    from input_pipeline.dataset import open_split
    from input_pipeline.progress import progress
    from siglip_jax.preprocessing import decode_image
    from tools.bench.inputs.sample_images import reencode

    def enlarged(picture: bytes) -> bytes:
        if enlarge == 1:
            return picture
        longer = round(max(decode_image(picture).shape[:2]) * enlarge)
        return reencode(picture, longer_side=longer, quality=QUALITY, subsampling=SUBSAMPLING)

    rows, value = open_split(dataset, split), encoder.preprocessing
    starts = range(0, len(rows), BATCH)
    for start in progress(starts, total=len(rows), step=BATCH, label=label, unit="images"):
        records = rows.__getitems__(range(start, min(start + BATCH, len(rows))))
        yield encoder.encode(value.batch([value.image(enlarged(record["image"])) for record in records]))
