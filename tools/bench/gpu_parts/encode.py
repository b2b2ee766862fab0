"""Image towers alone, then `embed` of JPEG files from end to end: who waits for whom, the loader or the tower."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from tools.bench.gpu_parts.budget import PartBudget, Row, median_seconds, mfu, reason
from tools.bench.gpu_parts.synthetic_images import SPLIT, dataset_of

TITLE = "Image towers, and embed from end to end"
TOWERS = (("google/siglip-base-patch16-224", 1024), ("google/siglip-so400m-patch14-384", 256))


def rows(budget: PartBudget) -> Iterator[Row]:
    for preset, batch in budget.choose(TOWERS, (("small", 8),)):
        yield of_tower(preset, batch, dtype=budget.choose("bfloat16", "float32"))
    yield from end_to_end(budget, budget.choose(TOWERS[0][0], "small"))


def model_of(preset: str, dtype: str) -> Any:
    """Random weights; antialiased bilinear images."""
    from siglip_jax.model import init
    from siglip_jax.models.towers import TwoTowers
    from siglip_jax.preprocessing import Preprocessing
    from tools.bench import measuring

    architecture = measuring.architecture_of(preset)
    preprocessing = Preprocessing(image_size=architecture.image_size, text_length=architecture.text_length)
    return init(TwoTowers(architecture, dtype=dtype), preprocessing, seed=0)


def of_tower(preset: str, batch: int, *, dtype: str) -> Row:
    """Images that lie on the device already, float32 in [-1, 1]."""
    import jax

    from siglip_jax.analysis.flops import dot_flops

    row: Row = {"what": f"image tower, {preset}", "dtype": dtype, "rows": batch}
    try:
        model = model_of(preset, dtype)
        params = jax.device_put(model.params)
        shape = (batch, *model.architecture.image_size, 3)
        images = jax.random.uniform(jax.random.key(0), shape, minval=-1, maxval=1)

        def tower(params: Any, images: Any) -> Any:
            return model.module.apply({"params": params}, images, method="encode_image")

        compiled = jax.jit(tower)
        seconds = median_seconds(lambda: jax.block_until_ready(compiled(params, images)))
        flops = dot_flops(tower, params, images)
    except Exception as error:
        return row | {"error": reason(error)}
    figures = {"images/s": batch / seconds, "TFLOP/s": flops / seconds / 1e12, "MFU %": mfu(flops, seconds)}
    return row | {"ms": seconds * 1e3, **figures}


def end_to_end(budget: PartBudget, preset: str) -> Iterator[Row]:
    """The loader alone, `encode_image` on host arrays alone, and `embed`, which has both and writes a store."""
    import numpy as np

    from input_pipeline.dataset import open_split
    from input_pipeline.loader import iterate_split
    from tools.bench import measuring
    from tools.workflow import embedding

    dataset = dataset_of(budget)
    count = len(open_split(dataset, SPLIT))
    encoder = embedding.image_encoder(model_of(preset, budget.choose("bfloat16", "float32")), name=preset)
    batch = min(embedding.EMBED_BATCH, count)

    def load() -> None:
        options: dict[str, Any] = dict(preprocessing=encoder.preprocessing, batch_size=batch)
        for _ in iterate_split(dataset, split=SPLIT, **options):
            pass

    load()  # compiles the resizing
    _, loading = measuring.timed(load)
    yield {"what": "loader alone, JPEG to uint8", "rows": count, "images/s": count / loading}
    images = np.random.default_rng(0).integers(0, 256, (batch, *encoder.preprocessing.image_size, 3), np.uint8)
    seconds = median_seconds(lambda: encoder.encode(images))
    yield {"what": "encoder alone, uint8 to vectors on the host", "rows": batch, "images/s": batch / seconds}
    encoding = 0.0

    def timed_encode(images: Any) -> np.ndarray:
        nonlocal encoding
        begin = time.perf_counter()
        vectors = encoder.encode(images)
        encoding += time.perf_counter() - begin
        return vectors

    whole = dataclasses.replace(encoder, encode=timed_encode)
    output = budget.folder / "embeddings"
    if count % batch:  # the last batch has another shape, to compile before
        encoder.encode(images[: count % batch])
    _, total = measuring.timed(
        lambda: embedding.embed(whole, dataset=dataset, split=SPLIT, output=output, overwrite=True)
    )
    yield {
        "what": "embed, end to end",
        "rows": count,
        "images/s": count / total,
        "% of the time encoding": 100 * encoding / total,
        "% waiting for the loader and writing": 100 * (1 - encoding / total),
    }
