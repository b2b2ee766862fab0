"""siglip-jax bench export: encoded pictures to embeddings by each export: throughput, latency, memory, on the same CPU.

siglip-jax bench export
siglip-jax bench export --transformers=PYTHON          its row, with a Python that has torch and transformers
siglip-jax bench export --model=runs/shop/model --rows=savedmodel,onnx-int8
siglip-jax bench export --preset=small                 a rehearsal

Every export is run by a process of its own, which has what its users have: TensorFlow, onnxruntime, JAX without this
library, torch. Decoding and resizing are part of the work. The processes are asked in turn, and all have all cores.
What an export costs in ranking is `siglip-jax bench formats`.
"""

from __future__ import annotations

import functools
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

HEADER = ("", "file MiB", "pictures/s", "time x JAX", "one, ms", "time x JAX", "peak MiB", "least cosine to JAX")
SIDES = (224, 640)  # of the files


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "preset",
        "google/siglip-base-patch16-224",
        "Architecture of the image tower, of random weights; small: 48 px, 192 x 3 layers.",
        flag_values=values,
    )
    flags.DEFINE_string("model", None, "A model, in the place of --preset.", flag_values=values)
    flags.DEFINE_integer("count", 16, "Pictures of a batch.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repetitions", 3, "Timed batches of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("singles", 9, "Timed pictures of each, one at a time.", lower_bound=1, flag_values=values)
    rows = "jax,savedmodel,stablehlo,onnx,onnx-float16,onnx-int8,transformers"
    flags.DEFINE_list("rows", rows.split(","), "Exports; that of JAX always runs.", flag_values=values)
    flags.DEFINE_string(
        "transformers", None, "A Python that has torch and transformers, for their row.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    import numpy as np

    from tools.bench import measuring
    from tools.bench.export_parts import export_rows
    from tools.bench.export_parts.consumer_process import write_pictures

    model, title = _model(values)
    names = export_rows.chosen(values.rows, python=values.transformers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_pictures(folder / "pictures.npz", _pictures(folder, values.count))
        paths = export_rows.write_exports(model, folder, names)
        found = {name: folder / f"{name}.npy" for name in names}
        with export_rows.consumers_of(
            paths, folder / "pictures.npz", folder=folder, python=values.transformers
        ) as consumers:
            for name, consumer in consumers.items():  # one after the other: loading takes memory and cores
                consumer.embed(0, values.count, batch=values.count, save=found[name])
            batches = measuring.interleaved(_runs(consumers, pictures=values.count), repetitions=values.repetitions)
            ones = measuring.interleaved(_runs(consumers, pictures=1), repetitions=values.singles)
        expected = np.load(found[export_rows.JAX])
        rows = [
            [
                name,
                f"{export_rows.mebibytes(paths[name]):,.0f}",
                f"{values.count / statistics.median(batches[name]):.2f}",
                f"{measuring.ratio(batches[name], batches[export_rows.JAX]):.2f}",
                f"{1e3 * statistics.median(ones[name]):.1f}",
                f"{measuring.ratio(ones[name], ones[export_rows.JAX]):.2f}",
                f"{consumers[name].peak_mib:,.0f}",
                f"{np.sum(np.load(found[name]) * expected, axis=1, dtype=np.float64).min():.6f}",
            ]
            for name in names
        ]
    print(f"{measuring.machine()}; {title}, JPEG files of {SIDES[0]}-{SIDES[1]} px, decoded and resized in each time")
    print(f"medians of {values.repetitions} batches of {values.count}, and of {values.singles} single pictures")
    print(measuring.table(HEADER, rows))


def _runs(consumers: Mapping[str, Any], *, pictures: int) -> dict[str, Callable[[], None]]:
    """Each embeds the first pictures as one batch."""
    return {name: functools.partial(each.embed, 0, pictures, batch=pictures) for name, each in consumers.items()}


def _model(values: flags.FlagValues) -> tuple[Any, str]:
    """The model, and words for it; of a preset the text tower is left small, since nothing runs it."""
    if values.model:
        from siglip_jax.loading import load

        return load(values.model), pathlib.Path(values.model).name
    import dataclasses

    from siglip_jax.model import init
    from siglip_jax.models.architecture import TowerSize
    from siglip_jax.models.towers import TwoTowers
    from siglip_jax.preprocessing import Preprocessing
    from tools.bench import measuring

    architecture = measuring.architecture_of(values.preset)
    text = TowerSize(width=64, depth=1, mlp_dim=64, heads=1)
    architecture = dataclasses.replace(architecture, text=text, vocab_size=1000)
    preprocessing = Preprocessing(image_size=architecture.image_size, text_length=architecture.text_length)
    return init(TwoTowers(architecture), preprocessing, seed=0), f"image tower of {values.preset}"


def _pictures(folder: pathlib.Path, count: int) -> list[bytes]:
    from input_pipeline.dataset import open_split
    from tools.bench.inputs import sample_images

    (folder / "sample").mkdir()
    rows = open_split(sample_images.build(folder / "sample", dataset="", split="", count=count, sides=SIDES), "train")
    return [rows[row]["image"] for row in range(count)]
