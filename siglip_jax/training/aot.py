"""The training step of a config, compiled before there is a run: memory, FLOPs, bytes between chips, and a verdict.

Nothing is allocated: the step is compiled from shapes, for devices that need not be there. MaxText calls it
ahead-of-time compilation. FLOPs are those of the products in the jaxpr (`siglip_jax.analysis.flops`), bytes are read
from the compiled text (`siglip_jax.analysis.collectives`), both with the trip counts of their loops; XLA's own
`cost_analysis` counts a loop's body once.

The bound on MFU: a step can be no shorter than its FLOPs at the chip's peak, recomputation included, nor than its bytes
at the chip's wires; MFU counts the FLOPs of the model alone, without recomputation. `describe` prints it twice:
over the longer of the two times, as if all transfers were hidden behind products, and over their sum, as if none were.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from siglip_jax.analysis import collectives, flops
from siglip_jax.analysis.hardware import Chip
from siglip_jax.analysis.hlo import memory
from siglip_jax.models.towers import parameter_shapes, storage_dtype
from siglip_jax.training import config as configs
from siglip_jax.training.encode import Batch
from siglip_jax.training.optimizer.adamw import make_optimizer, make_schedule
from siglip_jax.training.optimizer.freezing import frozen_parameters
from siglip_jax.training.parallel.sharding import make_mesh, tree_shardings
from siglip_jax.training.parallel.sharding_table import bytes_per_device
from siglip_jax.training.param_rules import path_name
from siglip_jax.training.start.spec import batch_shapes, outline
from siglip_jax.training.step import State, init_state, make_train_step
from siglip_jax.training.terms import Terms

GIB = 2**30
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.*?\(([\d.]+)([KMG])\) exceeds available", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A config's step on a mesh, ready to lower.

    Attributes:
      function: the jitted step.
      state, batch: ShapeDtypeStructs of its arguments.
      mesh: where it runs.
    """

    function: Any  # a TrainStep with `lower`
    state: State
    batch: Batch
    mesh: Mesh


def build_step(
    config: ml_collections.ConfigDict, *, devices: list[Any] | None = None, stored: Collection[str] = ()
) -> Step:
    """The step of `training.loop`, from shapes alone.

    Args:
      stored: see `start.spec.batch_shapes`.

    Raises:
      UserError: a config that no run could use, or one that does not fit these devices.
    """
    configs.check(config)
    mesh = make_mesh(config.mesh, devices)
    module, preprocessing = outline(config, platform=mesh.devices.flat[0].platform)
    configs.check_batch(config, mesh)
    optimizer = make_optimizer(config)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x.update(dtype=storage_dtype(path_name(path), config.model.param_dtype)),
        parameter_shapes(module.architecture),
    )
    state = jax.eval_shape(lambda tree: init_state(tree, optimizer, ema_decay=config.ema_decay), params)
    terms = Terms.of(config, embedding_dim=module.architecture.embedding_dim)
    function, _ = make_train_step(
        module,
        optimizer,
        to_float=preprocessing.to_float,
        mesh=mesh,
        state=state,
        schedule=make_schedule(config),
        loss=config.loss,
        same_group=config.same_group,
        microbatch=config.microbatch,
        frozen=frozen_parameters(config, params),
        ema_decay=config.ema_decay,
        terms=terms,
    )
    batch = batch_shapes(module, preprocessing, batch_size=config.batch_size, stored=stored, more=terms.batch_keys)
    return Step(function=function, state=state, batch=batch, mesh=mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a step takes of the machine it was compiled for.

    Attributes:
      devices: of the mesh.
      capacity: bytes of memory of a device, or None where it is not known.
      needed: bytes of it that the step takes at once.
      memory: {"arguments", "outputs", "temporary"} in bytes per device; None when the compiler gave up for memory.
      state: bytes per device of parameters and optimiser.
      flops: of one step, all devices together, recomputation included.
      model_flops: the same without recomputation, the numerator of MFU.
      sent: bytes that a device sends in a step, by collective; None when the compiler gave up.
      fits: whether it runs.
      advice: what to try where it does not fit.
    """

    devices: int
    capacity: float | None
    needed: float
    memory: dict[str, int] | None
    state: int
    flops: float
    model_flops: float
    sent: dict[str, float] | None
    fits: bool
    advice: str

    def seconds(self, chip: Chip, *, devices_per_chip: int = 1) -> tuple[float, float, float]:
        """The least a step can take on `chip`: (products of the model, all products, transfers)."""
        peak = chip.flops * self.devices / devices_per_chip
        sent = sum((self.sent or {}).values()) * devices_per_chip
        return self.model_flops / peak, self.flops / peak, sent / chip.wire


def compile_step(config: ml_collections.ConfigDict, step: Step, *, capacity: float | None) -> tuple[Report, Any]:
    """Compiles `step`; returns the report and the `jax.stages.Compiled`, None where memory did not suffice."""
    state = bytes_per_device(step.state, tree_shardings(step.state, step.mesh))
    compiled, used, sent = None, None, None
    try:
        compiled = step.function.lower(step.state, step.batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if not (match := _OUT_OF_MEMORY.search(str(error))):
            raise
        needed = float(match[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[match[2]] + state
    else:
        used = memory(compiled)
        needed = float(sum(used.values()))
        sent = collectives.sent(compiled.as_text(), devices=step.mesh.size)
    fits = compiled is not None and (capacity is None or needed <= capacity)
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain.model.remat, plain.microbatch = "none", 0
    model = build_step(plain, devices=step.mesh.devices.ravel().tolist())
    report = Report(
        devices=step.mesh.size,
        capacity=capacity,
        needed=needed,
        memory=used,
        state=state,
        flops=flops.dot_flops(step.function, step.state, step.batch),
        model_flops=flops.dot_flops(model.function, model.state, model.batch),
        sent=sent,
        fits=fits,
        advice="" if fits else _advice(config, step.mesh, state=state, capacity=capacity),
    )
    return report, compiled


def time_step(step: Step, compiled: Any, *, repetitions: int = 2) -> float:
    """Seconds of one step on the machine the step was compiled for, on zeros: the shortest of a few, after one."""
    state_at, batch_at = compiled.input_shardings[0]

    def zeros(shapes: Any, shardings: Any) -> Any:
        return jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=shardings)()

    state, batch = zeros(step.state, state_at), zeros(step.batch, batch_at)
    seconds = []
    for _ in range(1 + repetitions):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def device_memory() -> float | None:
    """Bytes that this machine has for each of its devices; None where neither the device nor the system tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    if jax.local_devices()[0].platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()


def _advice(config: ml_collections.ConfigDict, mesh: Mesh, *, state: int, capacity: float | None) -> str:
    """The cheapest change first: making attention again costs a few percent, a whole forward pass a quarter."""
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    if capacity and state > capacity / 3 and mesh.shape["data"] > 1:
        return f"--config.mesh.fsdp={mesh.shape['fsdp'] * mesh.shape['data']} --config.mesh.data=1"
    if config.model.remat != "full":
        return f"--config.model.remat={'full' if config.model.remat == 'dots_no_batch' else 'dots_no_batch'}"
    smaller = (config.microbatch or rows) // 2
    if smaller and rows % smaller == 0:
        return f"--config.microbatch={smaller}"
    return f"more chips, or --config.batch_size={config.batch_size // 2}"


def describe(report: Report, *, chip: Chip | None = None, devices_per_chip: int = 1) -> str:
    """The report in lines for people, the verdict last."""
    unit = "device" if chip is None else f"{chip.name} chip"
    each = devices_per_chip if chip else 1
    lines = [f"{report.devices // each} {unit}s"]
    if report.memory is None:
        lines.append(f"memory per {unit}: {report.needed * each / GIB:.2f} GiB asked for; the compiler gave up")
    else:
        parts = ", ".join(f"{name} {size * each / GIB:.2f}" for name, size in report.memory.items())
        lines.append(f"memory per {unit}: {report.needed * each / GIB:.2f} GiB ({parts})")
    lines.append(f"  of it parameters and optimiser: {report.state * each / GIB:.2f} GiB")
    extra = report.flops / report.model_flops - 1
    lines.append(
        f"FLOPs per step: {report.flops:.3e}, per {unit} {report.flops / report.devices * each:.3e}; recomputation "
        f"adds {100 * extra:.0f} %"
    )
    if report.sent is not None:
        total = sum(report.sent.values()) * each
        kinds = ", ".join(f"{kind} {size * each / 2**20:,.1f}" for kind, size in report.sent.items())
        lines.append(f"sent per step and {unit}: {total / 2**20:,.1f} MiB" + (f" ({kinds})" if kinds else ""))
    if chip is not None and report.sent is not None:
        useful, compute, wires = report.seconds(chip, devices_per_chip=each)
        lines.append(
            f"a step takes at least {1e3 * max(compute, wires):.1f} ms: products {1e3 * compute:.1f} at "
            f"{chip.flops / 1e12:.0f} TFLOP/s, transfers {1e3 * wires:.1f} at {chip.wire / 1e9:.0f} GB/s"
        )
        lines.append(
            f"MFU at most {100 * useful / max(compute, wires):.0f} % with all transfers hidden behind products, "
            f"{100 * useful / (compute + wires):.0f} % with none"
        )
    return "\n".join(lines)


def verdict(report: Report, *, devices_per_chip: int = 1) -> str:
    """One plain line."""
    needed = f"{report.needed * devices_per_chip / GIB:.2f}"
    if report.capacity is None:
        return f"needs {needed} GiB; how much there is, is not known"
    of = f"{needed} of {report.capacity * devices_per_chip / GIB:.0f} GiB"
    return f"fits: {of}" if report.fits else f"does not fit: {of}, try {report.advice}"
