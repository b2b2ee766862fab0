"""What a run minimises beside the loss of its pairs: terms of a teacher, and the loss of prefixes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_collections

from siglip_jax.errors import UserError
from siglip_jax.losses.matryoshka import PairLoss, prefix_losses
from siglip_jax.losses.teacher import TEACHER_TERMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms that have a weight, and it.

    Attributes:
      teacher: {name in `losses.teacher.TEACHER_TERMS`: weight}, of the images alone. Where it is not empty, a batch has
        "teacher", float32 [n, d] of unit rows.
      prefixes: {width: weight}, of images and texts.
    """

    teacher: dict[str, float] = dataclasses.field(default_factory=dict)
    prefixes: dict[int, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, *, embedding_dim: int) -> Terms:
        """Those of `config.teacher` and `config.matryoshka`, without any of weight 0.

        Raises:
          UserError: a prefix that is not shorter than the embedding.
        """
        matryoshka = config.matryoshka
        if too_wide := [width for width in matryoshka.widths if width >= embedding_dim]:
            raise UserError(
                f"config.matryoshka.widths={tuple(matryoshka.widths)}: {too_wide[0]} is no prefix of embeddings of "
                f"{embedding_dim} numbers; expected widths below {embedding_dim}"
            )
        prefixes = dict(zip(matryoshka.widths, matryoshka.weights, strict=True))
        return cls(
            teacher={name: config.teacher[name] for name in TEACHER_TERMS if config.teacher[name]},
            prefixes={width: weight for width, weight in prefixes.items() if weight},
        )

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """What these terms need of a batch beside the pairs."""
        return ("teacher",) if self.teacher else ()

    def add_to(
        self, loss: jax.Array, *, image: jax.Array, text: jax.Array, batch: dict[str, Any], pair_loss: PairLoss
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(what is minimised, metrics): the loss of the pairs as "loss", and each term without its weight.

        "total", which is what is minimised, is there only where it is not the loss itself.

        Args:
          loss: pair_loss(image, text).
          image, text: [n, d] and [m, d].
          batch: with the `batch_keys`.
          pair_loss: of the pairs, for the prefixes.
        """
        metrics, total = {"loss": loss}, loss
        for name, weight in self.teacher.items():
            metrics[f"teacher_{name}"] = term = TEACHER_TERMS[name](image, batch["teacher"])
            total = total + weight * term
        for width, term in prefix_losses(image, text, tuple(self.prefixes), pair_loss).items():
            metrics[f"matryoshka_{width}"] = term
            total = total + self.prefixes[width] * term
        return total, metrics if total is loss else metrics | {"total": total}


NO_TERMS = Terms()
