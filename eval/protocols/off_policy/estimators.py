"""What a ranker would have earned had it ordered the lists: estimates from lists whose order chance had a say in.

A log says what was done with the order that was shown. Where it also says with which probability each item came to
stand at its place, what was done can be weighted by how much likelier a ranker puts the item there (place k from 0,
depth K, gain g_k of what stood there, p_k the probability that it did, t_k that the ranker puts it there):

* independent: mean of sum_k w_k g_k, w_k = t_k / p_k; what happens at a place depends on the item there alone
  (Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen 2018, the item-position model)
* self-normalised: the same, divided at each place by the mean of the weights there (Swaminathan and Joachims 2015);
  biased for few lists, but of less variance
* doubly robust: sum_k e_k + w_k (g_k - q_k), where q predicts gains from place and item, and e is what it predicts of
  the ranker's own order (Dudik, Langford and Li 2011). q is fitted on the half of the clusters that a list is not in
* reward interaction: mean of sum_k W_k g_k, W_k the same ratio of the whole list down to place k; what happens at a
  place may depend on all that stands above it (McInerney, Brost, Chandar, Mehrotra and Carterette 2020)

All but the self-normalised are unbiased where their assumption holds and every order has a chance.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from eval.metrics.ties import TieGroups

ESTIMATORS = ("independent", "self-normalised", "doubly robust", "reward interaction")
LEAST_EFFECTIVE = 30.0  # lists, below which an estimate rests on a few of them and its interval means nothing
_SHRINK = 5.0  # predicted gains of an item weigh as much as this many lists of the mean item


@dataclasses.dataclass(frozen=True, eq=False)
class ShownByChance:
    """Lists as they were shown, by place: [q, k], places beyond a list's end 0 in everything.

    Attributes:
      items: int64, rows of the catalogue; -1 beyond the end.
      gains: float64.
      propensity: float64, with which the item came to stand at its place.
      joint: float64, with which all items down to there did; their product where places are filled independently.
    """

    items: np.ndarray
    gains: np.ndarray
    propensity: np.ndarray
    joint: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def only(self, lists: np.ndarray) -> ShownByChance:
        return ShownByChance(self.items[lists], self.gains[lists], self.propensity[lists], self.joint[lists])


def shuffled(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(propensity, joint) of lists [q] that were shuffled: float64 [q, width] each."""
    place = np.arange(width)
    left = np.maximum(lengths[:, None] - place, 1).astype(np.float64)  # items that could still come
    there = place < lengths[:, None]
    return np.where(there, 1 / np.maximum(lengths, 1)[:, None], 0), np.where(there, np.cumprod(1 / left, axis=1), 0)


@dataclasses.dataclass(frozen=True, eq=False)
class TargetOrder:
    """How a ranker would order the same lists; equal scores in random order.

    Attributes:
      marginal: float64 [q, k], probability that it puts at each place what stood there.
      joint: float64 [q, k], that all places down to there are as they were.
      order: int64 [q, k], the column of the list that it puts at each place; of equals any.
      begins: bool [q, k], whether a place begins a group of equal scores.
    """

    marginal: np.ndarray
    joint: np.ndarray
    order: np.ndarray
    begins: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, there: np.ndarray) -> TargetOrder:
        """scores: real [q, k] of what stood at each place; there: bool [q, k], False beyond the list's end."""
        masked = np.where(there, scores, -np.inf)
        order = np.argsort(-masked, axis=1, kind="stable")
        ranked = np.take_along_axis(masked, order, axis=1)
        begins = np.ones(ranked.shape, bool)
        begins[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        groups = TieGroups.of(begins)
        place = np.arange(scores.shape[1])
        first, size = groups.spread(groups.start), groups.spread(groups.size)  # of the group at each place of the order
        back = np.argsort(order, axis=1, kind="stable")
        start, members = np.take_along_axis(first, back, axis=1), np.take_along_axis(size, back, axis=1)
        inside = there & (start <= place) & (place < start + members)
        marginal = np.where(inside, 1 / members, 0.0)
        left = np.maximum(members - (place - start), 1)  # of the group, once the places before are as they were
        joint = np.cumprod(np.where(inside, 1 / left, 0.0), axis=1)
        return cls(marginal, joint, order, begins)

    @classmethod
    def as_shown(cls, shown: ShownByChance) -> TargetOrder:
        """Chance itself: every weight is 1, and the estimates are what was earned."""
        places = np.arange(shown.items.shape[1])
        order = np.broadcast_to(places, shown.items.shape)
        return cls(shown.propensity, shown.joint, order, np.ones(shown.items.shape, bool))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of what stood at each place [q, k] -> their mean at each place of this order."""
        return TieGroups.of(self.begins).means(np.take_along_axis(values, self.order, axis=1))


def estimate(
    shown: ShownByChance, target: TargetOrder, *, depth: int, clusters: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """({estimator: float64 [q]}, {estimator: effective lists}).

    The mean over lists of each array is the estimate, of the gain in the first `depth` places of a list, and its
    spread how sure it is; of the self-normalised one the array is linearised (the delta method). Effective lists are
    Kish's (1965), of the weights at the deepest place that counts for reward interaction, else the mean over places.

    Args:
      clusters: int [q], lists that are no independent evidence; the prediction of one is fitted on others.
    """
    width = min(depth, shown.items.shape[1])
    there, gains = (shown.items >= 0)[:, :width], shown.gains[:, :width]
    weight = _ratio(target.marginal[:, :width], shown.propensity[:, :width])
    cascade = _ratio(target.joint[:, :width], shown.joint[:, :width])
    predicted = _predicted(shown, clusters)
    own = target.spread(predicted.of_item)[:, :width] * predicted.of_place[:, :width]
    residual = gains - (predicted.of_item * predicted.of_place)[:, :width]
    total = np.maximum(weight.sum(axis=0), np.finfo(float).tiny)
    rate = (weight * gains).sum(axis=0) / total
    linear = there * rate + weight * (gains - rate) * (there.sum(axis=0) / total)
    values = {
        "independent": (weight * gains).sum(axis=1),
        "self-normalised": linear.sum(axis=1),
        "doubly robust": np.where(there, own + weight * residual, 0).sum(axis=1),
        "reward interaction": (cascade * gains).sum(axis=1),
    }
    single, whole = float(_kish(weight).mean()), float(_kish(cascade)[-1])
    effective = {name: whole if name == "reward interaction" else single for name in ESTIMATORS}
    return values, effective


@dataclasses.dataclass(frozen=True, eq=False)
class _Predicted:
    """Gain of an item at a place as a product: of_place [q, k] (mean at the place), of_item [q, k] (times the mean)."""

    of_place: np.ndarray
    of_item: np.ndarray


def _predicted(shown: ShownByChance, clusters: np.ndarray) -> _Predicted:
    """For each list by what was done with the lists of the other half of the clusters."""
    _, code = np.unique(clusters, return_inverse=True)
    half = np.random.default_rng(0).permutation(int(code.max(initial=0)) + 1)[code.reshape(-1)] % 2
    there = shown.items >= 0
    of_place, of_item = np.zeros(shown.items.shape), np.ones(shown.items.shape)
    items = int(shown.items.max(initial=0)) + 1
    for fold in (0, 1):
        learn, use = half != fold, half == fold
        by_place = shown.gains[learn].sum(axis=0) / np.maximum(there[learn].sum(axis=0), 1)
        inside = there[learn]
        rows = shown.items[learn][inside]
        expected = np.broadcast_to(by_place, inside.shape)[inside]
        prior = _SHRINK * float(by_place.mean())
        found = np.bincount(rows, shown.gains[learn][inside], minlength=items) + prior
        usual = np.bincount(rows, expected, minlength=items) + prior
        factor = np.divide(found, usual, out=np.ones(items), where=usual > 0)
        of_place[use] = by_place * there[use]
        of_item[use] = np.where(there[use], factor[np.maximum(shown.items[use], 0)], 0)
    return _Predicted(of_place, of_item)


def _ratio(target: np.ndarray, chance: np.ndarray) -> np.ndarray:
    return np.divide(target, chance, out=np.zeros(target.shape), where=chance > 0)


def _kish(weights: np.ndarray) -> np.ndarray:
    """Of each column: [k]."""
    squares = np.square(weights).sum(axis=0)
    return np.divide(np.square(weights.sum(axis=0)), squares, out=np.zeros(len(squares)), where=squares > 0)
