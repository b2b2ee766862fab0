"""siglip-jax bench step: a training step of a preset, beside transformers' SiglipModel in PyTorch on the same device.

siglip-jax bench step                                       SigLIP 2 B/16-256, bfloat16: img/s, step time, MFU
siglip-jax bench step --batch=1024 --microbatch=128         exact large batches as well
siglip-jax bench step --largest_batch --microbatch=128      the largest batch that fits, for each
siglip-jax bench step --preset=small --batch=16             in seconds, on a CPU
siglip-jax bench step --unroll=1 --only=ours                one body for all layers

Both start from the same weights and take the same batch: uint8 pictures, int32 ids, already on the device. Both make
the exact sigmoid loss over that batch, clip by the global norm and step AdamW on float32 parameters. PyTorch runs under
torch.compile, autocast and SDPA; its row is left out where torch or transformers is absent.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

from absl import flags

NAMES = ("ours", "microbatched", "torch")
LEAST_ROWS = 8  # of the largest batch


def define_flags(values: flags.FlagValues) -> None:
    def integer(name: str, default: int, text: str, lower_bound: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=values)

    flags.DEFINE_string(
        "preset",
        "google/siglip2-base-patch16-256",
        "Architecture, of random weights; small: 48 px, 192 x 3 layers.",
        flag_values=values,
    )
    integer("batch", 128, "Rows.")
    integer("microbatch", 0, "Also with the towers run on so many rows at a time; 0 for no such line.", lower_bound=0)
    integer("unroll", 0, "Layers in one body, as config.model.unroll; 0 for automatic.", lower_bound=0)
    integer("repetitions", 9, "Timed steps of each, in turn.")
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the towers' products.", flag_values=values)
    flags.DEFINE_string(
        "remat", "none", "Rematerialisation; full has PyTorch checkpoint its layers as well.", flag_values=values
    )
    flags.DEFINE_multi_enum("only", list(NAMES), NAMES, "What to run; repeat for several.", flag_values=values)
    flags.DEFINE_bool("largest_batch", False, "Search the largest batch that fits instead.", flag_values=values)
    flags.DEFINE_float(
        "memory_gib", None, "For --largest_batch: memory of the device; asked of it when absent.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    # PyTorch lives beside JAX in this process, so JAX takes what it needs and not three quarters at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    from siglip_jax.errors import UserError
    from tools.bench import measuring, peer_transformers

    if values.microbatch and values.batch % values.microbatch:
        raise UserError(f"--microbatch={values.microbatch} does not divide --batch={values.batch}")
    names = [name for name in NAMES if name in values.only and (name != "microbatched" or values.microbatch)]
    print(f"{measuring.machine()}; {values.preset}, {values.dtype}, remat {values.remat}", flush=True)
    if "torch" in names and (reason := peer_transformers.missing(measuring.architecture_of(values.preset))):
        print(f"transformers left out: {reason}")
        names.remove("torch")
    (largest_batches if values.largest_batch else compare)(values, names)


# --- ours -------------------------------------------------------------------------------------------------------------


def config_of(values: flags.FlagValues, *, batch: int, microbatch: int) -> Any:
    """The training config of the step, for one device."""
    import dataclasses

    from siglip_jax.training.config import default_config
    from tools.bench import measuring

    config = default_config()
    if values.preset == measuring.SMALL:
        small = measuring.architecture_of(values.preset)
        config.preprocessing.image_size, config.model.patch_size = small.image_size, small.patch_size
        config.preprocessing.text_length, config.preprocessing.vocab_size = small.text_length, small.vocab_size
        config.model.image, config.model.text = (dataclasses.asdict(size) for size in (small.image, small.text))
    else:
        config.init = values.preset
    config.model.dtype, config.model.remat, config.model.unroll = values.dtype, values.remat, values.unroll
    config.batch_size, config.microbatch = batch, microbatch
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-5, 0
    return config


def compiled_step(values: flags.FlagValues, *, batch: int, microbatch: int, capacity: float | None = None) -> Any:
    """(step, report, compiled) of `siglip_jax.training.aot`."""
    import jax

    from siglip_jax.training import aot

    config = config_of(values, batch=batch, microbatch=microbatch)
    step = aot.build_step(config, devices=jax.devices()[:1])
    return step, *aot.compile_step(config, step, capacity=capacity)


def start_model(values: flags.FlagValues) -> Any:
    """Random weights, the same for all."""
    from siglip_jax.model import init
    from siglip_jax.models.towers import TwoTowers
    from tools.bench import measuring

    return init(TwoTowers(measuring.architecture_of(values.preset), dtype=values.dtype), None, seed=0)


def random_batch(architecture: Any, rows: int) -> dict[str, Any]:
    """Noise: a device spends less power, and less time, on zeros."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, *architecture.image_size, 3), np.uint8),
        "text": rng.integers(0, architecture.vocab_size, (rows, architecture.text_length), np.int32),
        "group": np.arange(rows, dtype=np.int32),
    }


def run_of(values: flags.FlagValues, step: Any, compiled: Any, model: Any, batch: dict[str, Any]) -> Any:
    """A function that trains one step more and returns its loss."""
    import jax

    from siglip_jax.training.optimizer.adamw import make_optimizer
    from siglip_jax.training.step import init_state

    optimizer = make_optimizer(config_of(values, batch=len(batch["text"]), microbatch=0))
    state_at, batch_at = compiled.input_shardings[0]
    state = jax.device_put(jax.jit(lambda params: init_state(params, optimizer))(model.params), state_at)
    placed = jax.device_put(batch, batch_at)
    held = [state]

    def run() -> float:
        state, metrics = compiled(held.pop(), placed)
        held.append(jax.block_until_ready(state))
        return float(metrics["loss"])

    return run


# --- the two benches --------------------------------------------------------------------------------------------------


def compare(values: flags.FlagValues, names: list[str]) -> None:
    """Time and memory of each, on one batch."""
    import jax

    from siglip_jax.analysis.mfu import peak_flops
    from tools.bench import measuring, peer_transformers

    model = start_model(values)
    batch = random_batch(model.architecture, values.batch)
    runs: dict[str, Any] = {}
    titles, gibibytes, losses = {}, {}, {}
    flops = None
    for name, microbatch in (("ours", 0), ("microbatched", values.microbatch)):
        if name in names:
            step, report, compiled = compiled_step(values, batch=values.batch, microbatch=microbatch)
            runs[name] = run_of(values, step, compiled, model, batch)
            flops, gibibytes[name] = report.model_flops, f"{report.needed / 2**30:.2f}"
            titles[name] = "siglip-jax" + (f", micro-batches of {microbatch}" if microbatch else "")
    if "torch" in names:
        peer = peer_transformers.TransformersStep(model, dtype=values.dtype, checkpointed=values.remat == "full")
        runs["torch"], titles["torch"] = lambda: peer.run(batch), peer.title
    for name, run in runs.items():
        losses[name] = run()  # of the start: the same weights and batch
    seconds = measuring.interleaved(runs, repetitions=values.repetitions)
    if "torch" in names:
        gibibytes["torch"] = peer.peak_gib()
    if flops is None:
        _, report, _ = compiled_step(values, batch=values.batch, microbatch=0)
        flops = report.model_flops
    peak = peak_flops(jax.devices()[0].device_kind)
    rows = []
    for name in runs:
        median = statistics.median(seconds[name])
        mfu = "-" if peak is None else f"{100 * flops / (peak * median):.1f} %"
        ratio = f"{measuring.ratio(seconds[name], seconds['ours']):.2f}" if "ours" in seconds else "-"
        figures = [f"{median * 1e3:.1f}", f"{values.batch / median:.1f}", ratio, f"{flops / median / 1e12:.3g}", mfu]
        rows.append([titles[name], *figures, gibibytes[name], f"{losses[name]:.4f}"])
    print(f"batch {values.batch}; median of {values.repetitions} interleaved repetitions; loss of the start")
    print(measuring.table(["", "ms", "img/s", "x ours", "TFLOP/s", "MFU", "GiB", "loss"], rows))


def largest_batches(values: flags.FlagValues, names: list[str]) -> None:
    """Ours by what XLA allocates for the compiled step, nothing run; PyTorch by running a step."""
    import jax

    from siglip_jax.errors import UserError
    from tools.bench import measuring, peer_transformers

    limit = values.memory_gib and values.memory_gib * 2**30
    limit = limit or (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        raise UserError("--largest_batch: this device does not tell its memory; give --memory_gib")
    rows = []
    for name, microbatch in (("ours", 0), ("microbatched", values.microbatch)):
        if name not in names:
            continue

        def fits(batch: int, microbatch: int = microbatch) -> bool:
            try:
                return compiled_step(values, batch=batch, microbatch=microbatch, capacity=limit)[1].fits
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" in str(error):
                    return False
                raise

        found = measuring.largest(fits, step=microbatch or LEAST_ROWS)
        rows.append(["siglip-jax" + (f", micro-batches of {microbatch}" if microbatch else ""), f"{found:,}"])
    if "torch" in names:
        if reason := peer_transformers.limit_memory(limit):
            print(f"transformers left out: {reason}")
        else:
            model = start_model(values)
            peer = peer_transformers.TransformersStep(model, dtype=values.dtype, checkpointed=values.remat == "full")
            found = measuring.largest(lambda batch: peer.fits(random_batch(model.architecture, batch)), step=LEAST_ROWS)
            rows.append([peer.title, f"{found:,}"])
    print(f"largest exact batch in {limit / 2**30:.1f} GiB, to 6 %")
    print(measuring.table(["", "rows"], rows))
