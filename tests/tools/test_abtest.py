"""`siglip-jax abtest` over logs with every planted fault, against dicts and scipy; and over a table of users."""

import collections
import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from siglip_jax import cli

START, END = np.datetime64("2024-07-01"), np.datetime64("2024-07-08")
METRICS = ("CTR=tap/impression", "buys=any(purchase)", "money=value(purchase)", "order=value(purchase)/purchase")


def simulated_events(users=900, seed=0):
    """Rows (user, time, action, variant, value, platform) and, planted among them, what must not count."""
    rng = np.random.default_rng(seed)
    rows = []

    def row(user, day, action, variant=None, value=None):
        time = START + np.timedelta64(int(day * 86_400_000_000), "us")
        rows.append((user, time, action, variant, value, "ios" if int(user[1:]) % 3 else "web"))

    for u in range(users):
        user, variant, taste = f"u{u}", "AB"[u % 2], rng.gamma(3, 0.1)
        for day in rng.uniform(-5, 7, rng.poisson(9)):
            shows = variant if day >= 0 else None
            row(user, day, "impression", shows)
            if rng.random() < taste * (1.3 if shows == "B" else 1):
                row(user, day + 1e-4, "tap")
                if rng.random() < 0.5:
                    row(user, day + 2e-4, "purchase", None, round(float(rng.gamma(2, 10)), 2))
    for u in range(5):  # in both variants
        row(f"x{u}", 1 + u / 10, "impression", "A")
        row(f"x{u}", 2 + u / 10, "impression", "B")
    for u in range(7):  # acts, was never exposed
        row(f"y{u}", 1.5, "tap", "A")
    for u in range(3):
        row(f"z{u}", 3.0, "impression")  # in no variant
    row("u0", 9.5, "purchase", None, 1e6)  # after the end
    rows.extend([rows[0]] * 2)
    return [rows[i] for i in rng.permutation(len(rows))]


def write(path, rows):
    names = ("user_id", "time", "action", "bucket", "price", "platform")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table.set_column(1, "time", pa.array([r[1] for r in rows], pa.timestamp("us"))), path)


def sums_by_hand(rows):
    """{user: Counter} of the users that count, {user: variant}."""
    distinct = set(rows)
    variants, first = collections.defaultdict(set), {}
    for user, time, action, variant, _, _ in distinct:
        if variant and START <= time < END:
            variants[user].add(variant)
            if action == "impression":
                first[user] = min(time, first.get(user, time))
    kept = {user: min(v) for user, v in variants.items() if len(v) == 1 and user in first}
    sums = {user: collections.Counter() for user in kept}
    for user, time, action, _, value, _ in distinct:
        if user in kept and first[user] <= time < END:
            sums[user][action] += 1
            sums[user]["value"] += value or 0
    return sums, kept


@pytest.fixture(scope="module")
def events():
    return simulated_events()


@pytest.fixture(scope="module")
def log(events, tmp_path_factory):
    path = tmp_path_factory.mktemp("abtest") / "log.parquet"
    write(path, events)
    return path


@pytest.fixture
def abtest(tmp_path):
    """abtest(*flags) -> the report."""

    def run(*flags):
        assert cli.main(["abtest", f"--output={tmp_path / 'out.html'}", *flags]) == 0
        return json.loads((tmp_path / "out.json").read_text())

    return run


def flags_of(log, *more):
    metrics = [f"--metric={metric}" for metric in METRICS]
    columns = ["--variant=bucket", "--log_column=value=price", f"--start={START}", f"--end={END}"]
    return [f"--logs={log}", *columns, *metrics, "--segment=platform", *more]


def row_of(report, name):
    return next(row for row in report["metrics"] if row["metric"] == name)


def test_figures_are_those_of_dicts_and_scipy(events, log, abtest):
    sums, kept = sums_by_hand(events)
    report = abtest(*flags_of(log, "--looks=one", "--nocuped"))
    assert report["control"] == "A"
    assert report["users"] == collections.Counter(kept.values())
    assert {reason: each["users"] for reason, each in report["left_out"].items()} == {
        "in several variants": 5,
        "with a variant and no exposure": 7,
        "without a variant": 3 + sum(u[0] == "u" for u in {r[0] for r in events if START <= r[1] < END} - kept.keys()),
    }
    assert any("2 rows equal another" in note for note in report["notes"])
    assert len(report["days"]) == 7

    def column(name, variant):
        return np.array([sums[user][name] for user in sorted(kept) if kept[user] == variant], float)

    for name, above, below in (
        ("CTR", "tap", "impression"),
        ("order", "value", "purchase"),
        ("money", "value", None),
    ):
        for side, variant in (("control", "A"), ("treated", "B")):
            under = column(below, variant).sum() if below else len(column(above, variant))
            assert row_of(report, name)[side] == pytest.approx(column(above, variant).sum() / under)
    buys = [(column("purchase", variant) > 0).astype(float) for variant in "BA"]
    test = scipy.stats.ttest_ind(*buys, equal_var=False)
    row = row_of(report, "buys")
    assert row["effect"]["p"] == pytest.approx(test.pvalue)
    assert row["level"] < 0.05  # four comparisons
    at_level = test.confidence_interval(1 - row["level"])
    assert (row["effect"]["low"], row["effect"]["high"]) == pytest.approx((at_level.low, at_level.high))


def test_the_time_before_takes_variance_away(log, abtest):
    plain, cuped = abtest(*flags_of(log, "--nocuped")), abtest(*flags_of(log))
    for name in ("CTR", "money"):
        one, other = row_of(plain, name), row_of(cuped, name)
        assert one["control"] == other["control"]
        assert one["cuped"] is None
        share = (other["effect"]["error"] / one["effect"]["error"]) ** 2
        assert other["cuped"]["reduction"] == pytest.approx(1 - share)
    assert row_of(cuped, "CTR")["cuped"]["reduction"] > 0.03
    assert row_of(cuped, "CTR")["cuped"]["correlation"] ** 2 == pytest.approx(
        row_of(cuped, "CTR")["cuped"]["reduction"], abs=0.02
    )


def test_the_last_day_is_the_read_out_and_segments_are_its_parts(log, abtest, capsys):
    report = abtest(*flags_of(log, "--guardrail=money=5%", "--split=A=1,B=1"))
    line = next(line for line in report["sequences"] if line["metric"] == "CTR")
    last, effect = line["points"][-1], row_of(report, "CTR")["effect"]
    assert last["relative"] == pytest.approx(effect["relative"])
    assert last["date"] == report["days"][-1] == "2024-07-07"
    assert last["low"] < last["one_low"] < last["relative"] < last["one_high"] < last["high"]
    cells = [cell for cell in report["segments"]["rows"] if cell["metric"] == "CTR"]
    assert {cell["label"] for cell in cells} == {"ios", "web"}
    assert sum(cell["users"] for cell in cells) == sum(report["users"].values())
    assert all(cell["low_all"] < cell["effect"]["low"] for cell in cells)
    assert row_of(report, "money")["guardrail"]
    assert "money" not in {cell["metric"] for cell in report["segments"]["rows"]}
    assert "B is " in capsys.readouterr().out


def test_no_verdict_where_the_sample_ratio_is_off(log, abtest):
    report = abtest(*flags_of(log, "--split=A=2,B=1"))
    assert report["sentence"].startswith("No verdict: the sample ratio is off. Users are ")
    assert " in A, " in report["sentence"]
    assert {row["verdict"] for row in report["metrics"]} == {"no verdict"}


def test_a_table_of_users_says_the_same(events, log, abtest, tmp_path):
    sums, kept = sums_by_hand(events)
    path = tmp_path / "users.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "variant", "taps", "shown", "orders", "money"])
        for user in kept:
            found = sums[user]
            out.writerow([user, kept[user], found["tap"], found["impression"], found["purchase"], found["value"]])
        out.writerows([["both", "A", 1, 2, 0, 0], ["both", "B", 1, 2, 0, 0], ["nobody", "", 1, 1, 0, 0]])
    metrics = ("CTR=taps/shown", "buys=any(orders)", "money=money", "order=money/orders")
    table = abtest(f"--users={path}", "--log_column=user_id=id", *(f"--metric={m}" for m in metrics))
    assert {reason: each["users"] for reason, each in table["left_out"].items()} == {
        "in several variants": 1,
        "without a variant": 1,
    }
    logged = abtest(*flags_of(log, "--nocuped"))
    for ours, theirs in zip(table["metrics"], logged["metrics"], strict=True):
        assert ours["verdict"] == theirs["verdict"]
        assert ours["effect"] == pytest.approx(theirs["effect"], nan_ok=True)
    before = abtest(
        f"--users={path}",
        "--log_column=user_id=id",
        "--metric=a=taps/shown",
        "--metric=b=money",
        "--covariate=b=orders",
    )
    assert [row["cuped"] is None for row in before["metrics"]] == [True, False]


WRONG = {
    "no variant column": (["--variant=variant"], "--variant=COLUMN"),
    "no such action": (["--metric=x=swipe/impression"], "no action 'swipe'; there are impression, purchase, tap"),
    "no metric": (["--metric=CTR"], "expected name=term"),
    "a name twice": (["--metric=CTR=tap"], "two metrics have this name"),
    "guardrail of nothing": (["--guardrail=x=1%"], "--guardrail=x: no such metric"),
    "margin": (["--guardrail=CTR=-1%"], "expected how much worse it may be"),
    "control": (["--control=C"], "no such variant; there are A, B"),
    "split": (["--split=A=1,C=1"], "--split=A=1,B=1"),
    "split text": (["--split=half"], "expected variant=share"),
    "window": (["--start=2024-08-01", "--end=2024-09-01"], "no user was exposed between"),
    "window turned": (["--start=2024-08-01", "--end=2024-07-01"], "expected an end after the start"),
    "exposure": (["--exposure=purchase"], "outcomes without exposures"),
    "segment": (["--segment=country"], "--segment=country: no such column"),
    "confidence": (["--confidence=1"], "between 0 and 1"),
    "both": (["--users=x.csv"], "either --logs"),
    "covariate": (["--covariate=CTR=tap"], "--covariate is for --users"),
    "output": (["--output=report.pdf"], "ending in .html"),
    "credit of nothing": (["--credit=tap"], "--credit has no effect without --interleaved"),
    "guardrail of lists": (["--interleaved=l", "--guardrail=CTR=1%"], "--metric has no effect with --interleaved"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(name, log, tmp_path, capsys):
    flags, said = WRONG[name]
    assert cli.main(["abtest", f"--output={tmp_path / 'out.html'}", *flags_of(log), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


ROWS = {
    "one variant": ("user_id,variant,n\na,A,1\nb,A,2\n", "one variant only, 'A'"),
    "no control": ("user_id,variant,n\na,X,1\nb,Y,2\n", "--control=X"),
    "twice": ("user_id,variant,n\na,A,1\na,A,2\nb,B,2\n", "user 'a' is in 2 rows of one variant"),
    "text": ("user_id,variant,n\na,A,1\nb,B,many\n", "'many' of user 'b'"),
    "no variant": ("user_id,n\na,1\n", "--variant=COLUMN"),
    "no column": ("user_id,variant\na,A\nb,B\n", "no column of users.csv 'n'"),
    "only outcomes": (
        "user_id,variant,time,action\na,A,2024-07-01,tap\nb,B,2024-07-01,tap\n",
        "outcomes without exposures",
    ),
    "no time": ("user_id,variant,action\na,A,tap\n", "--log_column=time=..."),
    "times": ("user_id,variant,time,action\na,A,soon,tap\n", "no usable row among 1 (1 no time)"),
    "price in words": (
        "user_id,variant,time,action,value\na,A,2024-07-01,purchase,20 EUR\nb,B,2024-07-01,purchase,20\n",
        "column 'value': 1 cells are no numbers up to 1e+100, such as '20 EUR' of user 'a'",
    ),
    "endless price": ("user_id,variant,time,action,value\na,A,2024-07-01,purchase,inf\n", "such as 'inf' of user 'a'"),
    "huge": ("user_id,variant,n\na,A,1\nb,B,1e300\n", "such as '1e300' of user 'b'"),
    "header alone": ("user_id,variant,n\n", "no row has a user and a variant"),
}


@pytest.mark.parametrize("name", ROWS)
def test_bad_tables_are_one_line(name, tmp_path, capsys):
    text, said = ROWS[name]
    path = tmp_path / "users.csv"
    path.write_text(text)
    kind = "--logs" if "time" in text or name == "no time" else "--users"
    metric = "--metric=n=n" if kind == "--users" else "--metric=n=tap"
    assert cli.main(["abtest", f"{kind}={path}", metric, f"--output={tmp_path / 'out.html'}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_covariate_that_is_the_metric_is_refused_and_empty_cells_are_counted(tmp_path, abtest, capsys):
    path = tmp_path / "users.csv"
    path.write_text("user_id,variant,n\n" + "".join(f"u{u},{'AB'[u % 2]},{u % 5 or ''}\n" for u in range(300)))
    flags = [f"--users={path}", "--metric=n=n"]
    assert "60 empty cells of n count as 0" in " ".join(abtest(*flags)["notes"])
    assert cli.main(["abtest", *flags, "--covariate=n=n", f"--output={tmp_path / 'out.html'}"]) == 2
    assert "--covariate=n=...: is the metric itself" in capsys.readouterr().err


def test_what_cannot_be_judged_is_said(tmp_path, abtest):
    path = tmp_path / "users.csv"
    users = "".join(f"u{u},{'AB'[u % 2]},5,{int(u < 4)}\n" for u in range(300))
    path.write_text(f"user_id,variant,same,rare\n{users}")
    report = abtest(f"--users={path}", "--metric=same=same", "--metric=rare=rare")
    assert [row["verdict"] for row in report["metrics"]] == ["not measured", "too few"]
    assert report["sentence"] == (
        "Too few data to judge B in rare. same cannot be measured in B: users do not differ, or the divisor is 0."
    )


def test_nothing_of_others_is_overwritten(log, tmp_path, capsys):
    (tmp_path / "out.json").write_text('{"mine": 1}')
    assert cli.main(["abtest", f"--output={tmp_path / 'out.html'}", *flags_of(log)]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


def test_a_name_of_the_log_is_no_markup_in_the_memo(tmp_path, abtest):
    path = tmp_path / "users.csv"
    path.write_text("user_id,variant,n\n" + "".join(f"u{u},{('A', '<i>|*x*')[u % 2]},{u % 5}\n" for u in range(300)))
    report = abtest(f"--users={path}", "--metric=n=n", "--control=A")
    (memo,) = tmp_path.rglob("*.md")
    assert report["variants"] == ["A", "<i>|*x*"]
    assert "\\<i>\\|\\*x\\*" in memo.read_text()
    assert "<i>" not in memo.read_text().replace("\\<i>", "")
