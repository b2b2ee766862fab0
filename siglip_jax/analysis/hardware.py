"""What TPU chips have: memory, arithmetic, wires; as Google publishes it.

Sources, per chip: https://cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x and /v4 ("HBM capacity", "peak compute
per chip (bf16)", "bidirectional inter-chip interconnect bandwidth"). A chip sends half of its bidirectional bandwidth,
over all of its links together. v4's page gives 2,400 Gbit/s one way.
"""

from __future__ import annotations

import dataclasses
import math
import re

from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      name: as in a topology, "v5e".
      hbm: bytes of memory.
      flops: bfloat16 per second, peak.
      wire: bytes per second that a chip sends to its neighbours, all links together.
    """

    name: str
    hbm: float
    flops: float
    wire: float


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", hbm=32 * 2**30, flops=275e12, wire=300e9),
        Chip("v5e", hbm=16 * 2**30, flops=197e12, wire=200e9),
        Chip("v5p", hbm=95 * 2**30, flops=459e12, wire=600e9),
        Chip("v6e", hbm=32 * 2**30, flops=918e12, wire=400e9),
        Chip("tpu7x", hbm=192 * 2**30, flops=2307e12, wire=600e9),
    )
}


def parse_topology(topology: str) -> tuple[Chip, int]:
    """ "v5e:16x16" -> (chip, 256).

    Raises:
      UserError: another form, or a chip that is not in CHIPS.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        raise UserError(
            f"--topology={topology!r}; expected one of {', '.join(CHIPS)} and its shape in chips, as in v5e:16x16 or "
            "v5p:8x8x8"
        )
    return CHIPS[name], math.prod(map(int, shape.split("x")))
