"""siglip-jax bench encode: `Model.encode_image` on pixels, beside the bare jitted function.

siglip-jax bench encode
siglip-jax bench encode --preset=google/siglip-base-patch16-224 --count=16
"""

from __future__ import annotations

import statistics

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "preset", "small", "Architecture, of random weights; small: 48 px, 192 x 3 layers.", flag_values=values
    )
    flags.DEFINE_integer("count", 256, "Pictures of a call.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repetitions", 9, "Timed calls of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("dtype", "float32", "Of computing.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    import jax
    import numpy as np

    from siglip_jax.model import init
    from siglip_jax.models.towers import TwoTowers
    from tools.bench import measuring

    architecture = measuring.architecture_of(values.preset)
    model = init(TwoTowers(architecture, dtype=values.dtype), None, seed=0)
    images = np.random.default_rng(0).uniform(-1, 1, (values.count, *architecture.image_size, 3)).astype(np.float32)
    params = jax.device_put(model.params)
    bare = jax.jit(lambda params, x: model.module.apply({"params": params}, x, method="encode_image"))
    seconds = measuring.interleaved(
        {
            "bare": lambda: jax.block_until_ready(bare(params, images)),
            "ours": lambda: model.encode_image(images, batch_size=values.count),
        },
        repetitions=values.repetitions,
    )
    titles = {"bare": "bare jitted function", "ours": "Model.encode_image"}
    rows = [
        [
            title,
            f"{statistics.median(seconds[name]) * 1e3:.1f}",
            f"{measuring.ratio(seconds[name], seconds['bare']):.2f}",
            f"{values.count / statistics.median(seconds[name]):.0f}",
        ]
        for name, title in titles.items()
    ]
    print(f"{measuring.machine()}; {values.preset}, {values.count} pictures, {values.dtype}")
    print(f"second and later calls, median of {values.repetitions} interleaved repetitions")
    print(measuring.table(["", "ms", "x bare", "images/s"], rows))
