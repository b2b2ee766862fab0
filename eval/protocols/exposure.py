"""Position-weighted re-ranking: how much a result may owe to where the old ranker put things.

Labels come from lists that somebody ranked: what stood below was seen less, so its taps count for more. Each acted-upon
item i is one sample of what a ranking is worth, weighted by w_i = gain_i * min(clip, 1 / propensity(position_i)), with
propensity (1 / (1 + position))^power (Joachims, Swaminathan and Schnabel 2017), the power as
`eval.protocols.position_bias` measures it, or assumed; the estimate is self-normalised,
sum w_i f_i / sum w_i (Swaminathan and Joachims 2015). f_i is the metric of the list with item i alone relevant, under
the same tie rule. A power that was not measured on swapped lists is an assumption: this is a sensitivity column beside
the unweighted mean over the same samples, never the headline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from eval.metrics import rank_metrics
from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Propensity:
    """power 0 weighs all positions alike; clip is the largest 1 / propensity; source says where power comes from."""

    power: float = 1.0
    clip: float = 10.0
    source: str = "assumed"

    def __post_init__(self) -> None:
        if not (0 <= self.power < 10 and 1 <= self.clip < float("inf")):
            raise UserError(f"position propensity: power={self.power}, clip={self.clip}; expected 0 <= power < 10 and "
                            "clip >= 1")  # fmt: skip

    def weights(self, positions: np.ndarray) -> np.ndarray:
        """float64, of positions from 0."""
        return np.minimum(self.clip, (1.0 + positions) ** self.power)


@dataclasses.dataclass
class Exposure:
    """Sums over samples, filled block by block."""

    propensity: Propensity
    metrics: Sequence[str]
    ties: str
    total: np.ndarray = dataclasses.field(init=False)  # [metric], of weight * value
    plain: np.ndarray = dataclasses.field(init=False)  # [metric], of gain * value
    weight: float = 0.0
    weight_square: float = 0.0
    gain: float = 0.0
    samples: int = 0
    clipped: int = 0
    unplaced: int = 0  # acted-upon items whose position is not known

    def __post_init__(self) -> None:
        self.total, self.plain = np.zeros(len(self.metrics)), np.zeros(len(self.metrics))

    def add(self, scores: np.ndarray, gains: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> None:
        """Lists of some queries, each [query, candidate]; positions -1 where not known."""
        query, place = np.nonzero(mask & (gains > 0))
        at = positions[query, place]
        self.unplaced += int((at < 0).sum())
        query, place, at = query[at >= 0], place[at >= 0], at[at >= 0]
        if not len(query):
            return
        alone = np.arange(scores.shape[1]) == place[:, None]
        values = rank_metrics(scores[query], alone, mask[query], metrics=self.metrics, ties=self.ties, max_grade=1)
        table = np.stack([values[name] for name in self.metrics])
        gain = gains[query, place].astype(np.float64)
        weight = gain * self.propensity.weights(at)
        self.total += table @ weight
        self.plain += table @ gain
        self.weight += float(weight.sum())
        self.weight_square += float(np.square(weight).sum())
        self.gain += float(gain.sum())
        self.samples += len(at)
        self.clipped += int(((1.0 + at) ** self.propensity.power > self.propensity.clip).sum())

    def result(self) -> dict[str, object] | None:
        """{"samples", "effective_samples" (Kish 1965), "clipped", "unplaced", "metrics": {name: {"weighted", "plain"}}}

        None where no acted-upon item has a position.
        """
        if not self.samples:
            return None
        values: Mapping[str, dict[str, float]] = {
            name: {"weighted": float(self.total[i] / self.weight), "plain": float(self.plain[i] / self.gain)}
            for i, name in enumerate(self.metrics)
        }
        return {
            "samples": self.samples,
            "effective_samples": self.weight**2 / self.weight_square,
            "clipped": self.clipped,
            "unplaced": self.unplaced,
            "metrics": dict(values),
        }
