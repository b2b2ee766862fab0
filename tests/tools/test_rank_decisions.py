"""`siglip-jax rank --logs` on a log whose query items repeat: what is taken as dependent, and what rules decide."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax import cli
from tools.bench.verdicts import simulated_logs

ITEMS = 120


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    """rank(*flags) -> (exit code, report) of two random encoders over one of the simulated logs of the bench."""
    folder = tmp_path_factory.mktemp("decisions")
    (log,) = simulated_logs(1, queries=700, items=ITEMS, seed=2)
    columns = {name: [] for name in ("query_id", "user_id", "session", "query_item_id", "time", "item_id", "action")}
    for query, shown in enumerate(log.lists):
        for place, item in enumerate(shown):
            for action in ("impression", *(["tap"] if place == log.chosen[query] else [])):
                row = (
                    f"q{query}",
                    f"u{log.users[query]}",
                    f"s{query % 7}",
                    str(log.items[query]),
                    1_714_000_000 + query,
                )
                for name, value in zip(columns, (*row, str(item), action), strict=True):
                    columns[name].append(value)
    pq.write_table(pa.table(columns), folder / "log.parquet")
    for seed in (0, 1):
        vectors = np.random.default_rng(seed).normal(size=(ITEMS, 16)).astype(np.float32)
        np.savez(folder / f"{seed}.npz", ids=np.arange(ITEMS).astype(str), embeddings=vectors)

    def run(*flags):
        stores = [f"--store={name}={folder / f'{seed}.npz'}" for seed, name in enumerate(("old", "new"))]
        given = ["rank", f"--logs={folder / 'log.parquet'}", "--protocol=logged_lists", "--against=old", *stores]
        given += ["--scann=none", "--baseline=random", f"--output={folder / 'report.html'}"]
        code = cli.main([*given, "--config.evaluation.relevant_from=1", *flags])
        return code, json.loads((folder / "report.json").read_text()) if code == 0 else None

    return run


def test_users_and_query_items_are_taken_as_dependent(rank, capsys):
    code, report = rank()
    assert code == 0
    assert set(report["weights"]) == {"user", "query_item"}
    assert report["weights"]["query_item"] < 40 < report["weights"]["user"]
    assert report["decision"] is None
    both = report["differences"][0]
    assert both["verdict"] == "undecided"
    printed = " ".join(capsys.readouterr().out.split())
    assert f"one user or one query item are taken as dependent: {report['queries']:,} queries weigh as" in printed
    assert "For the memo: new against old, nDCG_exp@5:" in printed
    _, by_user = rank("--cluster=user")
    _, by_column = rank("--cluster=user_id,query_item,session")
    assert set(by_user["weights"]) == {"user"}
    alone = by_user["differences"][0]
    assert both["high"] - both["low"] > 2 * (alone["high"] - alone["low"])
    weights = by_column["weights"]
    assert (weights["user_id"], weights["query_item"]) == pytest.approx(tuple(report["weights"].values()))
    assert weights["session"] == pytest.approx(7, rel=0.01)
    assert by_column["differences"][0]["verdict"] == "too few"
    assert any("The queries weigh as 7.0 sessions, fewer than 10" in warning for warning in by_column["warnings"])


def test_rules_confidence_and_seed(rank, capsys):
    flags = ["--margin=0.9", "--guardrail=precision@1=0.9", "--guardrail=recall@7", "--confidence=0.9"]
    code, report = rank(*flags, "--samples=500", "--seed=3")
    assert code == 0
    assert report["confidence"] == 0.9
    assert report["provenance"]["intervals"] == {
        "clusters": ["user", "query_item"],
        "confidence": 0.9,
        "samples": 500,
        "seed": 3,
    }
    decision = report["decision"]
    assert (decision["choice"], decision["margin"], decision["margin_held"]) == ("take", 0.9, "sure")
    assert [(line["metric"], line["margin"], line["held"]) for line in decision["guardrails"]] == [
        ("precision@1", 0.9, "sure"),
        ("recall@7", 0.9, "sure"),  # which the config does not name
    ]
    assert "recall@7" in report["rows"][0]["exact"]
    assert report["differences"][0]["verdict"] == "no worse"
    printed = " ".join(capsys.readouterr().out.split())
    assert "New ranks no worse than old, up to 0.9" in printed
    assert "(90 % " in printed
    assert "By the rules: take new." in printed


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--cluster=shop", "no column shop, which --segment or --cluster names"),
        ("--cluster=user,query_item,query_id,time", "in 4 ways"),
        ("--guardrail=MRR", "by how much may it fall? expected --guardrail=MRR=0.005, or --margin"),
        ("--guardrail=MRR=much", "expected a number, such as MRR=0.005"),
        ("--guardrail=clicks=0.1", "unknown metric 'clicks'"),
        ("--margin=-0.1", "margin=-0.1: expected a number above 0"),
        ("--confidence=95", "--confidence=95: expected a number between 0 and 1"),
    ],
)
def test_errors(rank, capsys, flag, message):
    assert rank(flag)[0] == 2
    assert message in capsys.readouterr().err
