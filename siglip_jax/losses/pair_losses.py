"""The losses of pairs that a run can choose from (`config.loss`), under one signature."""

from __future__ import annotations

from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from siglip_jax.losses.sigmoid import sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss


class PairLoss(Protocol):
    """(image [n, d], text [n, d], t, b) -> float32 scalar over the global batch; see the two losses themselves."""

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        t: jax.Array,
        b: jax.Array,
        *,
        groups: jax.Array,
        same_group: str,
        mesh: Mesh,
        axis: str | tuple[str, ...],
    ) -> jax.Array: ...


def _softmax(image: jax.Array, text: jax.Array, t: jax.Array, b: jax.Array, **options: Any) -> jax.Array:
    """Without b, which a softmax takes away again, and without groups: a row's own text is its only positive."""
    return softmax_loss(image, text, t, mesh=options["mesh"], axis=options["axis"])


PAIR_LOSSES: dict[str, PairLoss] = {"sigmoid": sigmoid_loss, "softmax": _softmax}
