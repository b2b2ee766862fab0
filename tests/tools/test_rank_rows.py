"""siglip-jax rank: rows from stores, files and reductions in one command, and what it refuses."""

import json

import numpy as np
import pytest

from eval.comparison.by_attributes import relevance_of
from eval.embeddings import write_store
from eval.embeddings.reduction import Spec, fit
from eval.metrics import rank_metrics
from eval.metrics.metric_table import METRICS, Definition
from eval.protocols import Measures, rank_catalogue
from eval.rankers.baselines import TitleRanker
from input_pipeline.dataset import attributes, dataset_fingerprint
from siglip_jax import cli


def vectors(dataset, split, *, seed, d=40):
    """Encodings that know the type, with noise; in the order of the split."""
    ids, _, columns = attributes(dataset, split)
    kinds = sorted(set(columns["type"]))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((len(ids), d)).astype(np.float32) * np.linspace(1, 0.1, d, dtype=np.float32)
    x[np.arange(len(ids)), [kinds.index(kind) for kind in columns["type"]]] += 2
    return ids, x


@pytest.fixture(scope="module")
def stores(shop_dataset, tmp_path_factory):
    """A folder with stores new and train, and mine.npy, of other vectors, in another order and with an item more."""
    folder = tmp_path_factory.mktemp("stores")
    for name, split, d in (("new", "test", 40), ("train", "train", 40), ("narrow", "train", 12)):
        manifest = {"dataset": {"fingerprint": dataset_fingerprint(shop_dataset), "split": split}}
        write_store(folder / name, [vectors(shop_dataset, split, seed=1, d=d)], manifest=manifest)
    ids, x = vectors(shop_dataset, "test", seed=2, d=12)
    order = np.random.default_rng(0).permutation(len(ids))
    np.save(folder / "mine.npy", np.concatenate([x[order], np.ones((1, 12), np.float32)]))
    (folder / "mine.ids.txt").write_text("\n".join([*(ids[row] for row in order), "other"]) + "\n")
    return folder


def rank(stores, config_file, dataset, *flags):
    output = stores / "report.html"
    line = ["rank", f"--config={config_file}", f"--dataset={dataset}", f"--output={output}", "--scann=none", *flags]
    assert cli.main(line) == 0
    return json.loads(output.with_suffix(".json").read_text())


def test_one_command_makes_the_table(stores, config_file, tiny_config, shop_dataset):
    report = rank(
        stores,
        config_file,
        shop_dataset,
        "--baseline=random",
        "--baseline=title TF-IDF",
        f"--store=mine={stores / 'mine.npy'}",
        f"--store=new={stores / 'new'}",
        "--reduce=new=pca:8",
        "--reduce=new=truncate:5+int8",
        "--reduce=mine=pca:3",
        f"--fit=new={stores / 'train'}",
        "--ladder=new",
        "--slice=type",
        "--against=mine, PCA 3",
    )
    names = [row["name"] for row in report["rows"]]
    assert names == ["random", "title TF-IDF", "mine", "mine, PCA 3", "new", "new, PCA 8", "new, truncated to 5, int8"]
    assert (report["new"], report["against"]) == ("new", "mine, PCA 3")
    assert report["differences"][0]["b"] == "mine, PCA 3"
    assert {d["b"] for d in report["differences"]} == set(names) - {"new"}

    _, new = vectors(shop_dataset, "test", seed=1)
    _, train = vectors(shop_dataset, "train", seed=1)
    _, mine = vectors(shop_dataset, "test", seed=2, d=12)
    _, titles, _ = attributes(shop_dataset, "test")
    relevance = relevance_of(tiny_config, shop_dataset)
    expected = {
        "title TF-IDF": TitleRanker(titles),
        "mine": mine,
        "mine, PCA 3": fit(Spec("pca", 3, False), mine)(mine),
        "new": new,
        "new, PCA 8": fit(Spec("pca", 8, False), train)(new),
        "new, truncated to 5, int8": fit(Spec("truncate", 5, True), train)(new),
    }
    rows = {row["name"]: row for row in report["rows"]}
    measures = Measures(tuple(tiny_config.evaluation.metrics), tiny_config.evaluation.gain)
    for name, ranker in expected.items():
        found = rank_catalogue(ranker, relevance, measures).metrics
        for metric, values in found.items():
            assert rows[name]["exact"][metric]["mean"] == pytest.approx(np.nanmean(values), abs=1e-9), (name, metric)
    sizes = {row["name"]: row["bytes_per_item"] for row in report["rows"]}
    assert sizes == {"random": None, "title TF-IDF": None, "mine": 48, "mine, PCA 3": 12, "new": 160, "new, PCA 8": 32,
                     "new, truncated to 5, int8": 5}  # fmt: skip
    reductions = report["provenance"]["reductions"]
    assert reductions["new, PCA 8"]["fitted_on"] == f"{len(train)} items of split train"
    assert reductions["mine, PCA 3"]["fitted_on"] == f"the {len(mine)} evaluated items themselves"
    (found,) = report["ladders"]
    assert {(rung["width"], rung["method"]) for rung in found["rungs"]} == {
        (40, "full width"), (32, "PCA"), (32, "truncation")}  # fmt: skip
    assert found["rungs"][0]["mean"] == rows["new"]["exact"][report["primary_metric"]]["mean"]
    assert report["provenance"]["stores"]["mine"]["items of no interest"] == 1
    assert len(report["gains"]) > 0
    assert all(query["values"]["new"] > query["values"]["mine, PCA 3"] for query in report["gains"])
    assert report["slices"]["small"]


def test_err_knows_the_highest_grade_of_the_rules(stores, config_file, tiny_config, shop_dataset, capsys):
    """Against the definition (Chapelle et al. 2009, algorithm 1) over the attributes themselves."""
    flags = [f"--store=new={stores / 'new'}", "--config.evaluation.metrics=('ERR@5','nDCG@5')"]
    report = rank(stores, config_file, shop_dataset, *flags)
    assert report["max_grade"] == 2
    assert "ERR with grades up to 2" in capsys.readouterr().out
    _, x = vectors(shop_dataset, "test", seed=1)
    _, _, columns = attributes(shop_dataset, "test")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = []
    for query in range(len(x)):
        others = sorted(set(range(len(x))) - {query}, key=lambda item: -float(unit[query] @ unit[item]))
        same = [[columns[name][item] == columns[name][query] for name in ("type", "colour")] for item in others]
        grades = [2 if all(both) else int(both[0]) for both in same]
        if not any(grade >= tiny_config.evaluation.relevant_from for grade in grades):
            continue
        err, reached = 0.0, 1.0
        for place, grade in enumerate(grades[:5], 1):
            stop = (2**grade - 1) / 2**2
            err += reached * stop / place
            reached *= 1 - stop
        values.append(err)
    found = next(row for row in report["rows"] if row["name"] == "new")["exact"]["ERR@5"]
    assert (found["mean"], found["queries"]) == (pytest.approx(np.mean(values), abs=1e-6), len(values))


def test_embeddings_from_a_file_become_a_store(stores, config_file, shop_dataset, capsys):
    where = [f"--dataset={shop_dataset}", f"--output={stores / 'imported'}"]
    assert cli.main(["embed", f"--embeddings={stores / 'mine.npy'}", *where]) == 0
    assert "1 embeddings of items that are not in split test" in capsys.readouterr().out
    one = rank(stores, config_file, shop_dataset, f"--store=mine={stores / 'imported'}")
    other = rank(stores, config_file, shop_dataset, f"--store=mine={stores / 'mine.npy'}")
    assert one["rows"] == other["rows"]
    assert cli.main(["embed", f"--embeddings={stores / 'mine.npy'}", "--model=x", *where]) == 2
    assert cli.main(["embed", *where]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reduce=other=pca:3"], "no such store"),
        (["--reduce=new=pca"], "expected pca:WIDTH"),
        (["--reduce=new=pca:41"], "have 40 numbers"),
        (["--reduce=pca:3"], "expected name=value"),
        (["--ladder=mine"], "no such store"),
        (["--fit=new={}/train"], "nothing to fit"),
        (["--fit=new={}/mine.npy", "--ladder=new"], "no such folder"),
        (["--fit=new={}/narrow", "--ladder=new"], "expected those of the same encoder"),
        (["--slice=size"], "no attribute 'size'"),
        (["--slice=type:quantiles"], "attribute:bands"),
        (["--slice=type:bands"], "expected a number"),
        (["--baseline=popularity:sales"], "no attribute 'sales'"),
        (["--baseline=popularity"], "expected one of random"),
        (["--baseline=new"], "expected one of random"),
        (["--against=old"], "no such row"),
        (["--new=new", "--against=new"], "no other to be compared with"),
        (["--store=random={}/new"], "a baseline has this name"),
        (["--reduce=new=pca:3", "--reduce=new=pca:3"], "named twice"),
        (["--store=a={}/none.csv"], "no such file"),
        (["--store=a={}/train"], "not the"),
    ],
)
def test_refusals(stores, config_file, shop_dataset, capsys, flags, message):
    line = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--output={stores / 'no.html'}", "--scann=none"]
    line += [f"--store=new={stores / 'new'}", *(flag.format(stores) for flag in flags)]
    assert cli.main(["rank", *line]) == 2
    assert message in capsys.readouterr().err
    assert not (stores / "no.html").exists()


def test_a_metric_added_to_the_table_is_in_the_report(monkeypatch, stores, config_file, shop_dataset):
    """F1@3 of each query against precision and recall: 2 P R / (P + R)."""
    f1 = Definition(
        forms={"@k": None},
        from_ranking=lambda ranking, metric: (
            2 * ranking.total(ranking.relevant, metric.k) / (metric.cutoff + ranking.relevant_count)
        ),
        reference=lambda query, metric: 2 * sum(query.hits[: metric.k]) / (metric.cutoff + query.relevant_count),
    )
    monkeypatch.setitem(METRICS, "F1", f1)
    names = ("F1@3", "precision@3", "recall@3")
    report = rank(
        stores, config_file, shop_dataset, f"--store=new={stores / 'new'}", f"--config.evaluation.metrics={names}"
    )
    assert "F1@3" in (stores / "report.html").read_text()
    per_query = rank_metrics([[3.0, 2.0, 2.0, 1.0]], [[0, 1, 0, 1]], metrics=names)
    f, p, r = (per_query[name][0] for name in names)
    assert f == pytest.approx(2 * p * r / (p + r))
    assert "F1@3" in json.dumps(report)
