"""A JAX function as StableHLO that an older TensorFlow reads.

JAX writes the newest StableHLO, which a TensorFlow that already serves cannot read. So the module is written in an
older StableHLO and an older calling convention of `XlaCallModule`, the operation that runs it in a graph. Any
JAX can then write for any TensorFlow of the table. TensorFlow itself is not needed here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from siglip_jax.errors import UserError, check_choice

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a release of TensorFlow reads.

    Attributes:
      calling_convention: version of XlaCallModule; JAX writes 9 and 10.
      stablehlo: version of StableHLO; later ones have more operations.
    """

    calling_convention: int
    stablehlo: str


# Old versions of both where the release reads them: what an old release reads, every later one reads as well. The newer
# rows are for models with operations that 0.14 lacks, as towers in bfloat16 have. TensorFlow 2.15 ends at
# calling convention 8.
READERS = {
    "2.16": Reader(9, "0.14.0"),
    "2.17": Reader(9, "0.14.0"),
    "2.18": Reader(9, "0.14.0"),
    "2.19": Reader(9, "0.14.0"),
    "2.20": Reader(10, "1.10.0"),
    "2.21": Reader(10, "1.13.0"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StablehloModule:
    """A function of arrays in StableHLO.

    Attributes:
      module: the serialised portable artifact.
      calling_convention: version of XlaCallModule.
      kept: which of the flat arguments the module takes; JAX leaves out those that it does not use.
      outputs: (shape, dtype) of each result; None is a size known only when it runs.
    """

    module: bytes
    calling_convention: int
    kept: tuple[int, ...]
    outputs: tuple[tuple[tuple[int | None, ...], Any], ...]


def lower_for(function: Callable[..., Any], *shapes: Any, target_tensorflow: str) -> StablehloModule:
    """`function` in what TensorFlow `target_tensorflow` reads, for CPU, GPU and TPU.

    Args:
      function: pure function of pytrees.
      *shapes: its arguments as pytrees of `jax.ShapeDtypeStruct`, sizes symbolic where they are to be dynamic.
      target_tensorflow: a release in READERS; later ones read the result as well.

    Raises:
      UserError: a release that is not in READERS, or an operation that its StableHLO lacks.
    """
    check_choice("--target_tensorflow", target_tensorflow, READERS)
    import jax
    from jax import export
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    reader = READERS[target_tensorflow]
    convention = "jax_export_calling_convention_version"
    before = getattr(jax.config, convention)
    try:
        jax.config.update(convention, reader.calling_convention)
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    finally:
        jax.config.update(convention, before)
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        # As text without source locations: TensorFlow 2.18 and earlier stop at ranges of lines, and paths tell of the
        # machine.
        text = str(stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized))
    try:
        with _said_by_the_exception():
            module = stablehlo.serialize_portable_artifact_str(text, reader.stablehlo)
    except Exception as error:  # of MLIR's own types, with the module in the text
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"this model has an operation that StableHLO {reader.stablehlo} lacks ({reason}); "
            f"--target_tensorflow={target_tensorflow} reads no later one: choose a later of {', '.join(READERS)}"
        ) from error
    return StablehloModule(
        module=module,
        calling_convention=exported.calling_convention_version,
        kept=tuple(exported.module_kept_var_idx),
        outputs=tuple(
            (tuple(size if isinstance(size, int) else None for size in array.shape), array.dtype)
            for array in exported.out_avals
        ),
    )


def lower_for_oldest(function: Callable[..., Any], *shapes: Any) -> tuple[str, StablehloModule]:
    """`function` for the oldest TensorFlow of READERS whose StableHLO has all its operations, and that release."""
    oldest = {reader: release for release, reader in reversed(READERS.items())}  # of several that read alike
    *older, newest = sorted(oldest.values())
    for release in older:
        with contextlib.suppress(UserError):
            return release, lower_for(function, *shapes, target_tensorflow=release)
    return newest, lower_for(function, *shapes, target_tensorflow=newest)


@contextlib.contextmanager
def _said_by_the_exception() -> Iterator[None]:
    """Nothing on stderr's own file descriptor, to which MLIR writes the whole operation that it cannot convert."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
