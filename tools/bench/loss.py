"""siglip-jax bench loss: the sigmoid loss with all its gradients, beside its peers and the products it needs.

siglip-jax bench loss --batch=8192 --dim=768
siglip-jax bench loss --batch=32768 --devices=64 --repetitions=0    memory and FLOPs alone, on forced host devices
siglip-jax bench loss --batch=32768 --dtype=bfloat16 --only=ours    with the peak that a GPU reports
siglip-jax bench loss --dtype=bfloat16 --largest_batch              what fits into the device's memory
siglip-jax bench loss --batch=4096 --dtype=bfloat16 --accuracy      errors against float64
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

from absl import flags

NAMES = ("ours", "dense", "checkpointed", "floor", "torch")
TITLES = {
    "ours": "sigmoid_loss",
    "dense": "dense formula under jit",
    "checkpointed": "scan of checkpointed tiles",
    "floor": "floor: three plain matmuls",
    "torch": "dense formula in PyTorch",
}


def define_flags(values: flags.FlagValues) -> None:
    def integer(name: str, default: int, text: str, lower_bound: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=values)

    integer("batch", 8192, "Rows of the global batch.")
    integer("dim", 768, "Width of the embeddings.")
    integer("devices", 1, "Devices to spread the rows over; on a CPU, as many are made.")
    integer("repetitions", 5, "Timed runs of each; 0 for memory and FLOPs alone.", lower_bound=0)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the embeddings.", flag_values=values)
    flags.DEFINE_integer("tile", None, "Rows and columns of a tile.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("communication", "auto", ["auto", "ring", "gather"], "Between devices.", flag_values=values)
    flags.DEFINE_enum(
        "gradient_dtype", "float32", ["float32", "bfloat16"], "Of gradients between devices.", flag_values=values
    )
    flags.DEFINE_multi_enum("only", list(NAMES), NAMES, "What to run; repeat for several.", flag_values=values)
    flags.DEFINE_bool("accuracy", False, "Errors against float64 of the rounded inputs instead.", flag_values=values)
    flags.DEFINE_bool("largest_batch", False, "Search the largest batch that fits instead.", flag_values=values)
    flags.DEFINE_float(
        "memory_gib", None, "For --largest_batch: memory of a device; asked of it when absent.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    from siglip_jax.errors import UserError
    from tools.bench import measuring

    if values.batch % values.devices:
        raise UserError(f"--batch: {values.batch} rows over {values.devices} devices do not divide")
    mesh = make_mesh(values.devices)
    print(f"{measuring.machine()}; {values.devices} device(s), d={values.dim}, {values.dtype}", flush=True)
    if values.largest_batch:
        largest_batches(values, mesh)
    elif values.accuracy:
        accuracy(values, mesh)
    else:
        compare(values, mesh)


def make_mesh(count: int) -> Any:
    """Over the first `count` devices, or None for one; forces host devices where no backend has started yet."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from siglip_jax.errors import UserError

    with contextlib.suppress(RuntimeError):  # the backend has started, with as many as it has
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise UserError(f"--devices: {count} devices asked for, {jax.device_count()} found")
    if count == 1:
        return None
    return Mesh(np.asarray(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))


# --- what is compared -------------------------------------------------------------------------------------------------


def functions(values: flags.FlagValues, mesh: Any) -> dict[str, Any]:
    """name -> function of (x, y, t, b); all but the floor return (loss, gradients of all four)."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import PartitionSpec

    from siglip_jax.losses import sigmoid_loss
    from siglip_jax.losses.reference import dense_sigmoid_loss

    options = dict(communication=values.communication, gradient_dtype=values.gradient_dtype, tile=values.tile)

    def ours(x: jax.Array, y: jax.Array, t: jax.Array, b: jax.Array) -> jax.Array:
        return sigmoid_loss(x, y, t, b, mesh=mesh, **options)

    def local_checkpointed(x: jax.Array, y: jax.Array, t: jax.Array, b: jax.Array) -> jax.Array:
        """The usual remedy for memory: each tile's logits are made again in the backward pass."""
        n = x.shape[0]
        tile = next(size for size in range(min(values.tile or 1024, n), 0, -1) if n % size == 0)
        first = 0 if mesh is None else lax.axis_index("data") * n
        everyone = y if mesh is None else lax.all_gather(y, "data", tiled=True)

        @jax.checkpoint
        def losses(tile_rows: jax.Array, start: jax.Array) -> jax.Array:
            dots = jnp.dot(tile_rows, everyone.T, preferred_element_type=jnp.float32)
            logits = jnp.exp(t) * dots + b
            pair = (start + jnp.arange(tile))[:, None] == jnp.arange(everyone.shape[0])[None, :]
            return jnp.sum(jax.nn.softplus(jnp.where(pair, -logits, logits)))

        starts = first + tile * jnp.arange(n // tile)
        total = jnp.sum(lax.map(lambda one: losses(*one), (x.reshape(-1, tile, x.shape[1]), starts)))
        return (total if mesh is None else lax.psum(total, "data")) / everyone.shape[0]

    def local_floor(x: jax.Array, y: jax.Array, t: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The products alone, on logits kept whole: no exponential, no sum, nothing sent."""
        logits = x @ y.T
        return logits @ y, logits.T @ x

    rows, whole = PartitionSpec("data"), PartitionSpec()
    checkpointed, floor = local_checkpointed, local_floor
    if mesh is not None:
        shapes = dict(mesh=mesh, in_specs=(rows, rows, whole, whole))
        checkpointed = jax.shard_map(local_checkpointed, out_specs=whole, **shapes)
        floor = jax.shard_map(
            local_floor, mesh=mesh, in_specs=(rows, whole, whole, whole), out_specs=(rows, rows), check_vma=False
        )

    def with_gradients(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))

    return {
        "ours": with_gradients(ours),
        "dense": with_gradients(dense_sigmoid_loss),
        "checkpointed": with_gradients(checkpointed),
        "floor": floor,
    }


def torch_run(values: flags.FlagValues, arrays: Any) -> Any:
    """The dense formula and its gradients in PyTorch, without arguments; on the GPU where torch has one."""
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = [getattr(torch, values.dtype)] * 2 + [torch.float32] * 2
    x, y, t, b = (
        torch.tensor(np.asarray(a, np.float32)).to(device, kind).requires_grad_()
        for a, kind in zip(arrays, kinds, strict=True)
    )

    def run() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        logits = (x @ y.T).float() * t.exp() + b
        signs = 2 * torch.eye(len(x), device=device) - 1
        loss = -torch.nn.functional.logsigmoid(signs * logits).sum() / len(x)
        gradients = torch.autograd.grad(loss, (x, y, t, b))
        if device == "cuda":
            torch.cuda.synchronize()
        return loss, gradients

    return run


def shapes(batch: int, values: flags.FlagValues, mesh: Any) -> list[Any]:
    """Of x, y, t, b, with their shardings."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    def array(shape: tuple[int, ...], dtype: str, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = array((batch, values.dim), values.dtype, PartitionSpec("data"))
    scalar = array((1,), "float32", PartitionSpec())
    return [rows, rows, scalar, scalar]


def embeddings(values: flags.FlagValues) -> list[Any]:
    """x, y, t, b: random directions at the largest published logits, exp(t) = 112.3."""
    import jax
    import jax.numpy as jnp

    x, y = jax.random.normal(jax.random.key(0), (2, values.batch, values.dim))
    unit = [(a / jnp.linalg.norm(a, axis=1, keepdims=True)).astype(values.dtype) for a in (x, y)]
    return [*unit, jnp.log(jnp.full(1, 112.3)), jnp.full(1, -16.5)]


# --- the three benches ------------------------------------------------------------------------------------------------


def compare(values: flags.FlagValues, mesh: Any) -> None:
    """Time, memory and FLOPs of each."""
    import jax

    from siglip_jax.analysis.flops import dot_flops
    from siglip_jax.analysis.hlo import memory
    from tools.bench import measuring

    like = shapes(values.batch, values, mesh)
    arrays = embeddings(values)
    needed = 6.0 * values.batch * values.batch * values.dim
    figures: dict[str, list[str]] = {}
    sizes: dict[str, dict[str, int]] = {}
    runs: dict[str, Any] = {}
    for name, function in functions(values, mesh).items():
        if name not in values.only:
            continue
        compiled = jax.jit(function).lower(*like).compile()
        sizes[name] = memory(compiled)
        mebibytes = [*sizes[name].values(), sum(sizes[name].values())]
        figures[name] = [*(f"{size / 2**20:.1f}" for size in mebibytes), f"{dot_flops(function, *like) / needed:.3f}"]
        if values.repetitions:
            placed = [jax.device_put(a, s) for a, s in zip(arrays, compiled.input_shardings[0], strict=True)]
            runs[name] = lambda compiled=compiled, placed=placed: jax.block_until_ready(compiled(*placed))
    if "torch" in values.only and values.repetitions and mesh is None and importlib.util.find_spec("torch"):
        figures["torch"] = ["-"] * 5
        runs["torch"] = torch_run(values, arrays)
    seconds = measuring.interleaved(runs, repetitions=values.repetitions) if values.repetitions else {}
    rows = []
    for name, cells in figures.items():
        times = ["-"] * 4
        if name in seconds:
            median = statistics.median(seconds[name])
            ratios = [
                f"{measuring.ratio(seconds[name], seconds[to]):.2f}" if to in seconds else "-"
                for to in ("floor", "ours")
            ]
            times = [f"{median * 1e3:.1f}", *ratios, f"{needed / median / 1e9:.0f}"]
        rows.append([TITLES[name], *times, *cells])
    print(f"global batch {values.batch}; median of {values.repetitions} interleaved repetitions; MiB per device by XLA")
    header = ["", "ms", "x floor", "x ours", "GFLOP/s", "arguments", "results", "temporary", "total", "FLOPs / 6nBd"]
    print(measuring.table(header, rows))
    copies = cpu_copies(values)
    if copies and "ours" in sizes:
        total = sum(sizes["ours"].values()) - copies
        print(
            f"{copies / 2**20:.1f} MiB of the temporary memory of {TITLES['ours']} are float32 copies of its "
            f"embeddings, which only a CPU makes for a product of bfloat16; without them the total is "
            f"{total / 2**20:.1f} MiB"
        )
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:  # of the whole process: one at a time with --only
        print(f"peak device memory of this process: {stats['peak_bytes_in_use'] / 2**20:.1f} MiB")


def cpu_copies(values: flags.FlagValues) -> int:
    """Bytes that one plain product of a device's embeddings takes beside them; on a GPU or TPU it takes none."""
    import jax
    import jax.numpy as jnp

    from siglip_jax.analysis.hlo import memory

    if jax.default_backend() != "cpu":
        return 0
    rows = jax.ShapeDtypeStruct((values.batch // values.devices, values.dim), values.dtype)
    product = functools.partial(jnp.einsum, "nd,ne->de", preferred_element_type=jnp.float32)
    return memory(jax.jit(product).lower(rows, rows).compile())["temporary"]


def accuracy(values: flags.FlagValues, mesh: Any) -> None:
    """max |found - exact| / max |exact| of the loss and each gradient; the exact one in float64 of the same inputs."""
    import jax
    import numpy as np

    from tools.bench import measuring

    arrays = embeddings(values)
    x, y, t, b = (np.asarray(a).astype(np.float64) for a in arrays)
    n, scale = len(x), np.exp(t)
    signs = 2 * np.eye(n) - 1

    def in_float64(similarity: Any) -> list[Any]:
        logits = scale * similarity + b
        loss = np.sum(np.logaddexp(0, -signs * logits)) / n
        by_logit = -signs * np.exp(-np.logaddexp(0, signs * logits)) / n
        by_t, by_b = np.sum(by_logit * (logits - b)), np.sum(by_logit)
        return [loss, scale * by_logit @ y, scale * by_logit.T @ x, by_t, by_b]

    def rounded(array: Any) -> Any:
        return np.asarray(jax.numpy.asarray(array, values.dtype), np.float64)

    similarity = x @ y.T
    exact = in_float64(similarity)
    found = {"the exact one, rounded": [exact[0], *map(rounded, exact[1:3]), *exact[3:]]}
    if values.dtype == "bfloat16":  # as kernels do that hand on their first product in the dtype of its operands
        found["<x, y> in bfloat16, else float64"] = in_float64(rounded(similarity))
    for name, function in functions(values, mesh).items():
        if name in values.only and name != "floor":
            compiled = jax.jit(function).lower(*shapes(values.batch, values, mesh)).compile()
            placed = [jax.device_put(a, s) for a, s in zip(arrays, compiled.input_shardings[0], strict=True)]
            value, gradients = compiled(*placed)
            found[TITLES[name]] = [np.asarray(a).astype(np.float64) for a in (value, *gradients)]
    rows = []
    for title, results in found.items():
        errors = (np.max(np.abs(a - e)) / np.max(np.abs(e)) for a, e in zip(results, exact, strict=True))
        rows.append([title, *(f"{error:.1e}" for error in errors)])
    print(f"global batch {values.batch}; largest error over largest value, against float64 of the same inputs")
    print(measuring.table(["", "loss", "x", "y", "t", "b"], rows))


def largest_batches(values: flags.FlagValues, mesh: Any) -> None:
    """By what XLA allocates for the compiled program: arguments, results and temporary memory. Nothing is run."""
    import jax

    from siglip_jax.analysis.hlo import memory
    from siglip_jax.errors import UserError
    from tools.bench import measuring

    limit = values.memory_gib and values.memory_gib * 2**30
    limit = limit or (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        raise UserError("--largest_batch: this device does not tell its memory; give --memory_gib")

    def fits(function: Callable[..., Any], batch: int) -> bool:
        try:
            compiled = jax.jit(function).lower(*shapes(batch, values, mesh)).compile()
        except jax.errors.JaxRuntimeError as error:  # XLA itself refuses what no device could hold
            if "RESOURCE_EXHAUSTED" in str(error):
                return False
            raise
        return sum(memory(compiled).values()) <= limit

    rows = []
    for name, function in functions(values, mesh).items():
        if name not in values.only or name == "floor":
            continue
        found = measuring.largest(functools.partial(fits, function), step=1024 * values.devices)
        rows.append([TITLES[name], f"{found:,}"])
    print(f"largest global batch in {limit / 2**30:.1f} GiB a device, to 6 %")
    print(measuring.table(["", "rows"], rows))
