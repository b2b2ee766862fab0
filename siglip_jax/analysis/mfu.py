"""How much of the devices a step uses: its FLOPs over what they could do in that time (MFU, arXiv 2204.02311, B)."""

from __future__ import annotations

from typing import Any

import jax

from siglip_jax.analysis.flops import dot_flops

# Dense bfloat16 FLOP/s of one jax device, from the makers' data sheets. The longest name that a device's kind begins
# with counts, so "NVIDIA H100 80GB HBM3" is an "NVIDIA H100".
PEAK_FLOPS = {
    "TPU v3": 61.5e12,  # two cores, two devices a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Of one device, or None where it is not known (a CPU's depends on its clock and on who else uses it)."""
    names = [name for name in PEAK_FLOPS if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def seconds_at_peak(step: Any, state: Any, batch: Any) -> float | None:
    """What step(state, batch) would take with every product at the devices' peak; None where that is not known.

    Args:
      step: without rematerialisation and micro-batches: work done twice is no use made of a device.
      state, batch: arrays or ShapeDtypeStructs of global shape.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else dot_flops(step, state, batch) / (peak * jax.device_count())
