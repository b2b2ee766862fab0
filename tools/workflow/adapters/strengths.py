"""An adapter at each of its strengths: from its encoders as they are to what it learned alone (`blending.Way`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections
from etils import epath

from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.architecture import FeatureSize
from siglip_jax.models.feature_tower import at_strength
from siglip_jax.training.start.feature_statistics import with_strength
from tools.workflow import blending
from tools.workflow.blending import NEW, Embedded
from tools.workflow.embedding import embed, image_encoder
from tools.workflow.item_vectors import Features

STRENGTHS = (0.0, 0.3, 0.5, 0.7, 0.9)
BOTH_PARTS = 0.5  # the strength that is embedded: those of all others follow from it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strengths:
    """Alpha is the strength; the split is embedded once."""

    adapter: Model
    features: Features

    @classmethod
    def of(cls, adapter: tuple[str, Model], features: Features | None) -> Strengths:
        """UserError: a model of pictures, by the name given, or no features."""
        name, model = adapter
        wanted = model.architecture.features
        if not wanted:
            raise UserError(f"{name}: takes pictures; --start is missing, the model that this one was tuned from")
        if features is None:
            needed = ", ".join(f"--features={each}=STORE of {numbers} numbers" for each, numbers in wanted.items())
            raise UserError(f"{name}: takes stored vectors; expected {needed}")
        features.check(wanted, model=name)
        return cls(adapter=model, features=features)

    def at(self, alpha: float) -> Model:
        return with_strength(self.adapter, alpha)

    def embed(
        self, alphas: Sequence[float], *, dataset: epath.PathLike, split: str, stores: epath.Path, on_error: str
    ) -> dict[float, Embedded]:
        size, folder = self.adapter.architecture.image, stores / f"strength_{BOTH_PARTS:g}"
        assert isinstance(size, FeatureSize)
        encoder = image_encoder(self.at(BOTH_PARTS), name=f"adapter, strength {BOTH_PARTS:g}", features=self.features)
        both = embed(encoder, dataset=dataset, split=split, output=folder, on_error=on_error)
        return {
            alpha: Embedded(
                folder,
                dataclasses.replace(both, vectors=at_strength(both.vectors, size, alpha, made_with=BOTH_PARTS)),
                stores / "titles",  # the same at every strength
            )
            for alpha in alphas
        }


def choose_strength(
    adapter: tuple[str, Model],
    *,
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    features: Features,
    stores: epath.PathLike,
) -> Model:
    """The adapter at the one of STRENGTHS that `siglip-jax blend` would choose on the evaluation split; says which.

    0, its inputs without what was learned, wins unless the gain is sure (`blending.choose`).

    Args:
      adapter: (name for messages, model).
      stores: folder for what the split is embedded into.
    """
    way, metric = Strengths.of(adapter, features), blending.metric_names(config)[0]
    found = blending.measure(way, STRENGTHS, config=config, dataset=dataset, stores=stores)
    chosen = blending.choose({NEW: found}, limits={}, metric=metric)
    means = ", ".join(f"{row['metrics'][metric]['mean']:.3f} at {row['alpha']:g}" for row in found["rows"])
    print(f"strength {chosen:g} chosen on split {config.evaluation.split}: {metric} {means}", flush=True)
    return way.at(chosen)
