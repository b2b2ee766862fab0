"""How much of what an adapter learned shall count between images: chosen after training, on a split it did not see."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
import numpy as np
from etils import epath

from eval.comparison.by_attributes import rank_by_attributes
from eval.comparison.items import read_split
from eval.rankers import VectorRanker
from input_pipeline.loader.item_vectors import complete_rows
from siglip_jax.model import Model
from siglip_jax.training.start.feature_statistics import with_strength
from tools.workflow.item_vectors import Features

STRENGTHS = (0.0, 0.3, 0.5, 0.7, 0.9)


def choose_strength(
    model: Model,
    *,
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    split: str,
    features: Features,
    strengths: Sequence[float] = STRENGTHS,
) -> Model:
    """The adapter at the strength that ranks the images of a split best; of equal ones the smallest. Prints which.

    0, its inputs without what was learned, may win: with few pairs there may be nothing to learn.

    Args:
      config: `config.evaluation` says what is relevant, and its first metric chooses.
      features: the adapter's inputs; items that lack one take no part.
      strengths: from 0 to 1.
    """
    vectors = features.of_split(dataset, split)
    rows = complete_rows(vectors)
    items = read_split(dataset, split).at(rows.tolist())
    inputs = {name: each.take(rows) for name, each in vectors.items()}
    models = {f"{strength:g}": with_strength(model, strength) for strength in sorted(strengths)}
    rankers = [VectorRanker(name, each.encode_image(inputs), ids=items.ids) for name, each in models.items()]
    ranked = rank_by_attributes(rankers, config=config, dataset=dataset, items=items)
    if ranked.unanswerable == len(items.ids):
        print(f"strength as the config says: no item of split {split} has a relevant one", flush=True)
        return model
    means = {name: float(np.nanmean(ranked.values[name])) for name in models}
    chosen = max(means, key=lambda name: means[name])  # the first of equal ones
    found = ", ".join(f"{mean:.3f} at {name}" for name, mean in means.items())
    print(f"strength {chosen} chosen on split {split}: {ranked.protocol.measures.primary} {found}", flush=True)
    return models[chosen]
