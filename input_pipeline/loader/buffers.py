"""Memory of batches that nobody holds any more, given out again.

The system hands out fresh memory page by page and clears it, which takes a tenth as long as decoding the pictures that
go there.
"""

from __future__ import annotations

import collections
import weakref
from typing import Any

import numpy as np

KEPT = 8  # of each size: more than are ever under way, but not all of those that somebody collected
SIZES = 8  # of a batch there are a few, and the last one of a pass is shorter
ALIGNMENT = 64  # bytes: JAX takes such an array on a CPU as it is, and holds it


class Recycler:
    """Arrays whose memory comes back when the last of their views is gone. Threads may share it."""

    def __init__(self) -> None:
        self._free: dict[int, collections.deque[np.ndarray]] = {}  # by the number of bytes

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of unknown content."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size not in self._free and len(self._free) == SIZES:
            self._free = {}
        free = self._free.setdefault(size, collections.deque(maxlen=KEPT))
        try:
            memory = free.popleft()
        except IndexError:
            more = np.empty(size + ALIGNMENT, np.uint8)
            start = -more.ctypes.data % ALIGNMENT
            memory = more[start : start + size]
        return np.asarray(_Loan(memory, free)).view(dtype).reshape(shape)


class _Loan:
    """Owns the memory as far as numpy knows: every view refers to it, and nothing else does."""

    def __init__(self, memory: np.ndarray, free: collections.deque[np.ndarray]):
        self.__array_interface__ = memory.__array_interface__
        weakref.finalize(self, free.append, memory).atexit = False
