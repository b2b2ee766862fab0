"""`siglip-jax plan`: the users it asks for are those that a log's variance needs, computed again by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm

from siglip_jax import cli

DAYS, USERS = 8, 400


@pytest.fixture(scope="module")
def sums():
    """float [day, user, (impressions, taps)] of a log in which every user comes every day."""
    rng = np.random.default_rng(0)
    taste = rng.beta(2, 8, USERS)
    shown = 1 + rng.poisson(3, (DAYS, USERS))
    return np.stack([shown, rng.binomial(shown, taste)], axis=2)


@pytest.fixture(scope="module")
def log(sums, tmp_path_factory):
    rows = []
    for (day, user), shown in np.ndenumerate(sums[..., 0]):
        time = f"2024-05-{day + 1:02d}"
        rows += [(f"u{user}", time, "impression", f"q{i}") for i in range(shown)]
        rows += [(f"u{user}", time, "tap", f"q{i}") for i in range(sums[day, user, 1])]
    table = pa.table(
        dict(zip(("user_id", "time", "action", "query_id"), map(list, zip(*rows, strict=True)), strict=True))
    )
    path = tmp_path_factory.mktemp("plan") / "log.parquet"
    pq.write_table(table, path)
    return path


def test_users_are_those_of_the_formula(log, sums, tmp_path, capsys):
    offline = {"primary_metric": "nDCG@5", "differences": [{"a": "new", "b": "old", "metric": "nDCG@5", "mean": 0.05,
               "low": 0.03, "high": 0.07, "relative": 0.1}]}  # fmt: skip
    (tmp_path / "rank.json").write_text(json.dumps(offline))
    out = tmp_path / "plan.json"
    flags = ["--lift=5%", "--metric=CTR=tap/impression", f"--report={tmp_path / 'rank.json'}", f"--output={out}"]
    assert cli.main(["plan", f"--logs={log}", *flags]) == 0
    printed, made = capsys.readouterr().out, json.loads(out.read_text())
    assert "Offline, new has +0.050 (+10.0 %) nDCG@5 beside old, interval +0.030 to +0.070" in printed
    (metric,) = made["metrics"]
    assert [each["days"] for each in metric["lengths"]] == [
        1,
        2,
        3,
    ]  # half of the log at most
    for each in metric["lengths"]:
        days = each["days"]
        now, before = sums[-days:].sum(axis=0), sums[-3 * days : -days].sum(axis=0)
        rate = now[:, 1].sum() / now[:, 0].sum()
        residual = (now[:, 1] - rate * now[:, 0]) / now[:, 0].mean()
        past = (before[:, 1] - before[:, 1].sum() / before[:, 0].sum() * before[:, 0]) / before[:, 0].mean()
        rho = np.corrcoef(residual, past)[0, 1]
        need = 4 * residual.var(ddof=1) * ((norm.isf(0.025) + norm.isf(0.2)) / (0.05 * rate)) ** 2
        assert each["users"] == USERS
        assert each["value"] == pytest.approx(rate)
        assert each["reduction"] == pytest.approx(rho**2, rel=1e-6)
        assert each["needed_plain"] == pytest.approx(need, rel=0.002)
        assert each["needed"] == pytest.approx(need * (1 - rho**2), rel=0.002)
    assert metric["days"] is None  # no new users came: no length of this log tells when there are enough


def test_more_is_needed_for_more_looks_comparisons_and_uneven_splits(log, tmp_path):
    def needed(*flags):
        out = tmp_path / "plan.json"
        assert (
            cli.main(["plan", f"--logs={log}", "--lift=5%", "--metric=CTR=tap/impression", f"--output={out}", *flags])
            == 0
        )
        return json.loads(out.read_text())["metrics"][0]["needed_plain"]

    one = needed()
    assert needed("--split=A=1,B=4") == pytest.approx(one * (1 / 0.16) / 4, rel=0.01)
    assert 1.3 * one < needed("--looks=many") < 2.5 * one
    ratio = ((norm.isf(0.0125) + norm.isf(0.1)) / (norm.isf(0.025) + norm.isf(0.2))) ** 2
    assert needed("--comparisons=2", "--power=0.9") == pytest.approx(one * ratio, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lift=much"], "--lift=much: expected a relative effect"),
        (["--lift=0"], "a lift that is not 0"),
        (["--lift=5%", "--report=none.json"], "that siglip-jax rank wrote"),
        (["--lift=5%", "--metric=x=swipe"], "no action 'swipe'"),
        (["--lift=5%", "--split=A=1"], "for two variants or more"),
        (["--lift=5%", "--output=plan.txt"], "ending in .json"),
    ],
)
def test_bad_input_is_one_line(flags, said, log, capsys):
    assert cli.main(["plan", f"--logs={log}", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
