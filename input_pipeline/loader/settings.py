"""Settings of a loader that belong together: whose rows it gives, and how fast. Neither changes what a run learns."""

from __future__ import annotations

import dataclasses
import os

from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataShare:
    """The part of every global batch that one of several processes has.

    Attributes:
      process_index: 0 ... process_count - 1.
      process_count: how many processes share the batches. Some may have the same share, on meshes that ask for it.
    """

    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.process_count < 1:
            raise UserError(f"process_count={self.process_count}; expected 1 or more")
        if not 0 <= self.process_index < self.process_count:
            raise UserError(f"process_index={self.process_index}; expected 0 to {self.process_count - 1}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """How batches are prepared.

    Attributes:
      num_threads: for decoding; None for the machine's cores, shared out over the workers.
      num_workers: processes that prepare batches; 0 stays in this one, whose threads decode.
      cache: keep decoded, resized images and ids in memory, by one pass at the start. None: where they take little
        memory, `num_workers` is 0 and the augmentation works on resized images.
    """

    num_threads: int | None = None
    num_workers: int = 0
    cache: bool | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers}; expected 0 or more")

    @property
    def threads(self) -> int:
        """That decode in each process."""
        return self.num_threads or max(1, (os.cpu_count() or 1) // max(1, self.num_workers))


WHOLE = DataShare()
DEFAULT_SPEED = Speed()
