"""siglip-jax bench verdicts: how often what is said of random encoders, intervals and power holds, by simulation.

siglip-jax bench verdicts

1. False verdicts. Random encoders rank the lists of simulated logs, whose users and query items are Zipf-distributed as
   on a marketplace; no encoder is better than another, so every "better" or "worse" is false. 5 % are promised.
2. Coverage. Differences with effects of users, query items, their pairs and queries; the smaller side has 20, 50
   or 500 effective clusters: how often the interval holds the truth, and how often all of ten hold it at once.
   Owen's pigeonhole bootstrap beside it.
3. Power. What is said to be found with a chance of 80 %, for one, five and ten comparisons: how often it is.

No models and no data are needed; the seeds are fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    import numpy as np

LISTED = 10  # items of a list
SIDES = (20, 50, 500)  # effective clusters of the smaller side
COMPARISONS = (1, 5, 10)
# Shares of the variance of users, query items, pairs of them, and queries.
SHARES = {"users and items": (0.2, 0.3, 0.2, 0.3), "items": (0.0, 0.4, 0.0, 0.6), "neither": (0.0, 0.0, 0.0, 1.0)}


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("logs", 60, "Simulated logs, of ten pairs each.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("repetitions", 600, "Of each coverage.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of all draws.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from tools.bench import measuring

    rows = [
        [name, *(f"{100 * share:.1f} %" for share in shares)]
        for name, shares in false_verdicts(logs=values.logs, seed=values.seed).items()
    ]
    print("verdicts between random encoders, all false; 5 % are promised")
    print(measuring.table(["taken as dependent", "verdicts", "too few"], rows))
    print(
        "\nintervals of 95 % that hold the truth, alone and all of ten at once; what 80 % of power finds, of 1, 5, 10"
    )
    rows = []
    for side in SIDES:
        for name, shares in SHARES.items():
            found = [
                coverage(side, shares, comparisons=k, repetitions=values.repetitions, seed=values.seed)
                for k in COMPARISONS
            ]
            few = max(2, values.repetitions // 4)
            bootstrap = pigeonhole_coverage(side, shares, repetitions=few, seed=values.seed)
            covered = [found[0].alone, found[-1].together, *(each.power for each in found), bootstrap]
            rows.append([f"{side} effective, effects of {name}", *(f"{100 * share:.1f} %" for share in covered)])
    print(measuring.table(["", "alone", "ten at once", "power, 1", "5", "10", "pigeonhole"], rows))


def zipf_codes(count: int, effective: float, *, exponent: float, random: np.random.Generator) -> np.ndarray:
    """Codes int64 [count], the r-th commonest with chance 1 / r^exponent, that weigh as so many effective clusters."""
    import numpy as np

    def chances(labels: int) -> np.ndarray:
        weights = 1 / np.arange(1, labels + 1) ** exponent
        return weights / weights.sum()

    def weighs(labels: int) -> float:
        same = float(np.square(chances(labels)).sum())
        return 1 / (same + (1 - same) / count)

    low, high = 2, 8 * count
    while high - low > 1 + low // 50:
        middle = (low + high) // 2
        low, high = (middle, high) if weighs(middle) < effective else (low, middle)
    return random.choice(high, count, p=chances(high))


@dataclasses.dataclass(frozen=True)
class Covered:
    """Shares of repetitions: intervals that hold the truth, alone and all together, and the power at what is said to be
    found with a chance of 80 %."""

    alone: float
    together: float
    power: float


def coverage(effective: int, shares: tuple[float, ...], *, comparisons: int, repetitions: int, seed: int) -> Covered:
    """Of comparisons that share half of their variance, between Zipf users and Zipf query items.

    Args:
      effective: clusters of the query items; users have at least 300.
      shares: of the variance, of users, query items, pairs and queries.
    """
    import numpy as np

    from eval.statistics import difference_columns, minimum_detectable_effect

    found, held, inside = [], 0, 0.0
    draws = _draws_of(effective, shares, comparisons=comparisons, repetitions=repetitions, seed=seed)
    for repetition, (values, ways) in enumerate(draws):
        each = difference_columns(values, clusters=ways, together=True, samples=2000, seed=repetition)
        held += all(one.low_all <= 0 <= one.high_all for one in each)
        inside += float(np.mean([one.low <= 0 <= one.high for one in each]))
        found.append(each[0])
    error = float(np.sqrt(np.mean([one.standard_error**2 for one in found])))
    level, degrees = (float(np.mean([getattr(one, name) for one in found])) for name in ("level", "degrees"))
    effect = minimum_detectable_effect(error, degrees=degrees, level=level)
    power = np.mean([one.low_all + effect > 0 or one.high_all + effect < 0 for one in found])
    return Covered(inside / repetitions, held / repetitions, float(power))


def pigeonhole_coverage(effective: int, shares: tuple[float, ...], *, repetitions: int, seed: int) -> float:
    """How often the percentiles of Owen's bootstrap hold the truth, of `coverage`'s differences."""
    import numpy as np

    random = np.random.default_rng(seed)
    said: list[str] = []
    for values, ways in _draws_of(effective, shares, comparisons=1, repetitions=repetitions, seed=seed):
        said += _pigeonhole(values, [ways["user"], ways["query_item"]], random)
    return said.count("undecided") / len(said)


def _draws_of(
    effective: int, shares: tuple[float, ...], *, comparisons: int, repetitions: int, seed: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(differences [query, comparison], {way: clusters}), anew each time; the clusters every 25 times."""
    import numpy as np

    random = np.random.default_rng([seed, effective, comparisons])
    queries = 2000 if effective < 200 else 8000
    for repetition in range(repetitions):
        if repetition % 25 == 0:
            users = zipf_codes(queries, max(300, queries / 8), exponent=0.8, random=random)
            items = zipf_codes(queries, effective, exponent=0.8 if effective < 200 else 0.5, random=random)
            groups = [np.unique(codes, return_inverse=True)[1] for codes in (users, items, users * queries + items)]
        values = np.zeros((queries, comparisons))
        for codes, share in zip([*groups, np.arange(queries)], shares, strict=True):
            if share:
                count = int(codes.max()) + 1
                common, own = random.standard_normal((count, 1)), random.standard_normal((count, comparisons))
                values += np.sqrt(share / 2) * (common + own)[codes]
        yield values, {"user": groups[0], "query_item": groups[1]}


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedLog:
    """Queries of Zipf users for Zipf query items.

    Attributes:
      users, items: int64 [query].
      lists: int64 [query, LISTED], items shown.
      chosen: int64 [query], the place that was acted upon; most who look at an item want the same one.
    """

    users: np.ndarray
    items: np.ndarray
    lists: np.ndarray
    chosen: np.ndarray


def simulated_logs(count: int, *, queries: int = 1500, items: int = 600, seed: int = 0) -> Iterator[SimulatedLog]:
    """Logs of the same shop on other days: everything is drawn anew."""
    import numpy as np

    for number in range(count):
        random = np.random.default_rng([seed, number])
        users = zipf_codes(queries, queries / 5, exponent=0.6, random=random)
        asked = zipf_codes(queries, 25, exponent=1.0, random=random) % items
        beside = random.integers(0, items, (items, LISTED))  # what is shown beside each item
        favourite = random.integers(0, LISTED, items)
        chosen = np.where(random.random(queries) < 0.6, favourite[asked], random.integers(0, LISTED, queries))
        yield SimulatedLog(users, asked, beside[asked], chosen)


def false_verdicts(*, logs: int, seed: int = 0, pairs: int = 10) -> dict[str, tuple[float, float]]:
    """{what is taken as dependent: share of pairs of random encoders called better or worse, and "too few"}."""
    import numpy as np

    from eval.statistics import difference_columns, verdict_of

    counts: dict[str, list[str]] = {}
    for number, log in enumerate(simulated_logs(logs, seed=seed)):
        random = np.random.default_rng([seed, number, 1])
        values = np.stack([_measured(log, random) - _measured(log, random) for _ in range(pairs)], axis=1)
        ways: dict[str, Any] = {
            "nothing": None,
            "users": log.users,
            "query items": log.items,
            "users and query items": {"user": log.users, "query_item": log.items},
        }
        for name, clusters in ways.items():
            said = [verdict_of(each) for each in difference_columns(values, clusters=clusters)]
            counts.setdefault(name, []).extend(said)
        counts.setdefault("both, pigeonhole bootstrap", []).extend(_pigeonhole(values, [log.users, log.items], random))
    return {
        name: ((said.count("better") + said.count("worse")) / len(said), said.count("too few") / len(said))
        for name, said in counts.items()
    }


def _measured(log: SimulatedLog, random: np.random.Generator) -> np.ndarray:
    """nDCG@5 of an encoder that knows nothing: float64 [query]."""
    import numpy as np

    from eval.metrics import rank_metrics

    labels = np.zeros(log.lists.shape, np.uint8)
    labels[np.arange(len(labels)), log.chosen] = 1
    vectors = random.standard_normal((int(max(log.lists.max(), log.items.max())) + 1, 16)).astype(np.float32)
    scores = np.einsum("qd,qld->ql", vectors[log.items], vectors[log.lists])
    return rank_metrics(scores, labels, metrics=("nDCG@5",))["nDCG@5"]


def _pigeonhole(
    values: np.ndarray, ways: list[np.ndarray], random: np.random.Generator, *, samples: int = 400
) -> list[str]:
    """Verdicts of Owen's bootstrap, which draws users and query items: 95 % percentiles of each column's mean."""
    import numpy as np

    weights = np.ones((samples, len(values)))
    for codes in ways:
        weights *= _draws(codes, samples, random)[:, codes]
    means = (weights @ values) / weights.sum(axis=1, keepdims=True)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return ["undecided" if lo <= 0 <= hi else "better" if lo > 0 else "worse" for lo, hi in zip(low, high, strict=True)]


def _draws(codes: np.ndarray, samples: int, random: np.random.Generator) -> np.ndarray:
    """How often each cluster is drawn: float64 [samples, codes], as many draws as there are clusters."""
    import numpy as np

    there = np.unique(codes)
    times = np.zeros((samples, int(codes.max()) + 1))
    times[:, there] = random.multinomial(len(there), np.full(len(there), 1 / len(there)), samples)
    return times
