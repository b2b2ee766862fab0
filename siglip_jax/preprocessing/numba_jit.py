"""numba.njit as every loop over pixels wants it: without the GIL, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(*signatures: Any, fastmath: Any = False) -> Callable[[Any], Any]:
    """A decorator. The machine code is kept next to the source or in the user's own cache, where there is a folder.

    Indices are not checked. Sums and products stay as they are written, the same bits on every machine, unless
    `fastmath` names what LLVM may do to them.
    """

    njit: Any = numba.njit
    options = dict(nogil=True, boundscheck=False, error_model="numpy", fastmath=fastmath)

    def decorate(function: Any) -> Any:
        try:
            return njit(*signatures, cache=True, **options)(function)
        except RuntimeError:  # numba: no locator available
            return njit(*signatures, **options)(function)

    return decorate
