"""siglip-jax bench abtest: what reading out an experiment promises, simulated: daily looks, sample ratio, CUPED.

siglip-jax bench abtest
siglip-jax bench abtest --runs=2000 --users=2000

Looks: A/A tests whose users come again on many days, read out every day; the share in which any day called the variants
different. Sample ratio: how often 1 % of imbalance is found, and none is called one. CUPED: the share of the variance
that it takes away, beside the square of the correlation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    import numpy as np

    from eval.experiments import ExperimentUsers


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("runs", 400, "Simulated experiments.", 1, flag_values=values)
    flags.DEFINE_integer("users", 600, "Users of each A/A test.", 10, flag_values=values)
    flags.DEFINE_integer("days", 30, "Days, and looks, of each A/A test.", 2, flag_values=values)
    flags.DEFINE_integer("ratio_users", 200_000, "Users of each sample ratio.", 10, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Another seed, other users.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    import numpy as np

    from eval.experiments import Looks, adjusted, moments, sample_ratio, sequences
    from eval.experiments.experiment_metrics import parse_metric

    rng = np.random.default_rng(values.seed)
    metrics = [parse_metric("CTR=tap/impression"), parse_metric("conversion=any(tap)"), parse_metric("taps=tap")]
    found = {metric.name: np.zeros(3) for metric in metrics}
    for _ in range(values.runs):
        users = returning_users(rng, users=values.users, days=values.days)
        for line in sequences(users, metrics, look=Looks(lift=0.1)):
            points = line["points"]
            many = any(p["low"] > 0 or p["high"] < 0 for p in points)
            single = [p["one_low"] > 0 or p["one_high"] < 0 for p in points]
            found[line["metric"]] += (many, any(single), single[-1])
    print(f"{values.runs} A/A tests, {values.users} users, {values.days} daily looks: called different")
    print(f"{'':12} {'confidence sequence':>20} {'one-look interval, daily':>26} {'at the end alone':>18}")
    for name, count in found.items():
        many, once, end = 100 * count / values.runs
        print(f"{name:12} {many:18.1f} % {once:24.1f} % {end:16.1f} %")

    print(f"\nsample ratio, {values.ratio_users:,} users: found at p < 0.001")
    for share in (0.5, 0.505, 0.51):
        first = rng.binomial(values.ratio_users, share, 10 * values.runs)
        off = [not sample_ratio({"A": int(n), "B": int(values.ratio_users - n)}, {"A": 1, "B": 1}).ok for n in first]
        print(f"{100 * share:4.1f} to {100 - 100 * share:4.1f}   {100 * np.mean(off):6.2f} %")

    print("\nCUPED: variance taken away")
    for rho in (0.0, 0.3, 0.5, 0.7, 0.9):
        before = rng.normal(size=200_000)
        after = 5 + rho * before + np.sqrt(1 - rho**2) * rng.normal(size=200_000)
        table = np.stack([after, np.ones_like(after), before, np.ones_like(after)], axis=1)
        _, _, how = adjusted(moments(table[::2]), moments(table[1::2]))
        print(f"correlation {rho:.1f}   {how.reduction:.4f}   theory {rho**2:.4f}")


def returning_users(rng: np.random.Generator, *, users: int, days: int, lift: float = 0.0) -> ExperimentUsers:
    """Users with a taste and a pace of their own, who come again on many days; most are there from the first day on.

    Args:
      lift: of the second variant's chance of a tap.
    """
    import numpy as np

    from eval.experiments import ExperimentUsers

    variant = rng.integers(0, 2, users)
    exposed = rng.integers(0, days, users) * (rng.random(users) < 0.7)
    taste, pace = rng.beta(2, 12, users), rng.gamma(2, 0.3, users)
    visits = rng.poisson(pace[:, None], (users, days)) * (np.arange(days) >= exposed[:, None])
    visits[np.arange(users), exposed] += 1
    day, user = np.nonzero(visits.T)
    shown = visits[user, day] * 5
    chance = np.minimum(taste[user] * (1 + lift * variant[user]), 1)
    dates = np.datetime64("2024-07-01") + np.arange(days)
    return ExperimentUsers(
        names=np.array([f"u{u}" for u in range(users)], object),
        variants=("A", "B"),
        variant=variant,
        user=user,
        day=day,
        sums={"impression": shown.astype(float), "tap": rng.binomial(shown, chance).astype(float)},
        before={},
        exposed=exposed,
        days=tuple(dates.astype(str)),
    )
