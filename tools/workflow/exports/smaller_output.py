"""`--reduce` and `--output_dtype` of an export: its embeddings have fewer numbers, or one byte for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from eval.embeddings import read_store, reduction, store_shards
from eval.embeddings.reduction import Reduction, Spec
from eval.search.encoder_identity import encoder_identity
from siglip_jax.errors import UserError
from siglip_jax.export.golden import Call
from siglip_jax.export.smaller_graph import LARGEST, Smaller
from tools.workflow.embedding import description_of

FOLDER = "reduction"  # beside the golden inputs: what `eval.embeddings.reduction.load` reads
_SLACK = 3.0  # a projection turns the errors of all numbers into those of a few


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallerOutput:
    """What becomes of the model's embeddings.

    Attributes:
      reduction: None where all numbers are kept.
      int8: as a store's int8, with a scale for each vector.
    """

    reduction: Reduction | None
    int8: bool

    @classmethod
    def of(cls, spec: Spec, model: Any, *, store: epath.PathLike | None) -> SmallerOutput | None:
        """None where embeddings leave as they are.

        Args:
          spec: "pca:64", "truncate:64", "int8", or one of the first two with "+int8"; of no kind and not int8: as is.
          store: of the model's embeddings of training items, which a PCA is fitted on.

        Raises:
          UserError: a store of another model, or too few vectors or numbers for the width.
        """
        if not spec.width:
            return cls(reduction=None, int8=True) if spec.int8 else None
        kept = Spec(spec.kind, spec.width, False)
        dimension = model.architecture.embedding_dim
        if spec.kind == "truncate":
            fitted = reduction.fit(kept, np.eye(2, dimension, dtype=np.float32))
        else:
            assert store is not None
            found = read_store(store)
            made_by = found.manifest.get("model") or {}
            if encoder_identity(made_by) != encoder_identity(description_of(model, name=made_by.get("name", ""))):
                raise UserError(
                    f"--store={store} is of {made_by.get('name', 'an unknown encoder')}, not of --model: its axes mean "
                    "nothing here; embed training items with the model and give that store"
                )
            fitted = reduction.fit(kept, found.vectors, fitted_on=f"{len(found.vectors):,} vectors of {store}")
        return cls(reduction=fitted, int8=spec.int8)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, d] -> float32 or int8 [n, width]."""
        return self._rows(vectors).numbers

    def graph(self, dimension: int) -> Smaller:
        """The same for the graph of a model of so many numbers."""
        if self.reduction is None:
            return Smaller(width=dimension, int8=self.int8)
        found = self.reduction
        described = found.to_json()
        return Smaller(
            width=found.spec.width, mean=found.mean, components=found.components, int8=self.int8, described=described
        )

    def calls(self, calls: Sequence[Call]) -> list[Call]:
        """The same questions, with what is expected of the smaller answers, and how far these may be off."""
        found: list[Call] = []
        for call in calls:
            if call.output != "embedding":
                found.append(call)
                continue
            rows, limit = self._rows(call.expected), call.max_error
            if limit is not None and self.reduction is not None:
                limit *= _SLACK / self._smallest_part(call.expected)
            if not self.int8:
                found.append(dataclasses.replace(call, expected=rows.numbers, max_error=limit))
                continue
            assert rows.scales is not None
            # A number beside a half is rounded to either side; which ones are is a matter of the last bit.
            ours = dataclasses.replace(call, expected=rows.numbers)
            found.append(ours if limit is None else dataclasses.replace(ours, max_error=1.0))
            if limit is not None:
                scale = dataclasses.replace(call, expected=rows.scales, output="scale", max_error=limit / LARGEST)
                found.append(dataclasses.replace(scale, of=f"scales of {call.of}"))
        return found

    def save(self, folder: epath.PathLike) -> None:
        """Writes the reduction to a folder beside the golden inputs, for vectors that are stored already."""
        if self.reduction is not None:
            reduction.save(epath.Path(folder) / FOLDER, self.reduction)

    def _rows(self, vectors: np.ndarray) -> store_shards.ShardRows:
        reduced = vectors if self.reduction is None else self.reduction(vectors)
        ids = [str(row) for row in range(len(vectors))]
        return store_shards.ShardRows.of(ids, reduced, dtype="int8" if self.int8 else "float32")

    def _smallest_part(self, vectors: np.ndarray) -> float:
        """The smallest norm that is left of a unit vector: what is left is made longer by it, with its errors."""
        assert self.reduction is not None
        if self.reduction.mean is None or self.reduction.components is None:
            left = vectors[:, : self.reduction.spec.width]
        else:
            left = (vectors - self.reduction.mean) @ self.reduction.components
        return float(np.linalg.norm(left, axis=1).min())
