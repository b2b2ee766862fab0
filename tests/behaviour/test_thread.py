"""data -> train -> embed -> index -> rank -> export, program by program, and what each leaves behind."""

import importlib.util
import json

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from eval.embeddings import read_store
from eval.search import load_index
from input_pipeline.dataset import attributes, dataset_fingerprint, open_split
from siglip_jax import cli

SCANN = "ah" if importlib.util.find_spec("scann") else "none"


@pytest.fixture(scope="module")
def thread(shop, config_file, trained_workdir, tmp_path_factory):
    """The folder in which every program but train and export has run."""
    root = tmp_path_factory.mktemp("thread")
    config, dataset = f"--config={config_file}", f"--dataset={root / 'data'}"
    for arguments in (
        ["data", f"--catalog={shop}", f"--output={root / 'data'}", "--max_left_out=1"],
        ["train", config, dataset, f"--workdir={root / 'run'}"],
        ["embed", f"--model={root / 'run'}", dataset, f"--output={root / 'store'}"],
        ["index", f"--store={root / 'store'}", f"--output={root / 'index'}"],
        [
            "rank",
            config,
            dataset,
            f"--output={root / 'report.html'}",
            f"--store=trained={root / 'store'}",
            f"--scann={SCANN}",
        ],
    ):
        assert cli.main(arguments) == 0
    return root


def test_data(thread, shop_dataset):
    audit = json.loads((thread / "data" / "audit.json").read_text())
    assert audit["rows"] == 120
    assert audit["kept"] == sum(audit["splits"].values()) == 120 - sum(audit["problems"].values())
    assert len(audit["problem_rows"]) == sum(audit["problems"].values()) > 0
    assert {name: len(open_split(thread / "data", name)) for name in audit["splits"]} == audit["splits"]
    assert dataset_fingerprint(thread / "data") == dataset_fingerprint(shop_dataset)


def test_train(thread, trained_workdir):
    """The command is the function: same data, same config, same parameters."""
    ours, theirs = siglip_jax.load(thread / "run"), siglip_jax.load(trained_workdir)
    for a, b in zip(*(map(np.asarray, _leaves(model.params)) for model in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def _leaves(tree) -> list:
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


def test_embed(thread):
    store, model = read_store(thread / "store"), siglip_jax.load(thread / "run")
    rows = open_split(thread / "data", "test")
    assert list(store.ids) == [row["id"] for row in rows]
    expected = model.encode_image([row["image"] for row in rows])
    np.testing.assert_allclose(store.vectors, expected, atol=1e-6)
    assert store.manifest["dataset"] == {"fingerprint": dataset_fingerprint(thread / "data"), "split": "test"}
    assert store.manifest["preprocessing"] == model.preprocessing.to_json()


def test_index(thread):
    store, index = read_store(thread / "store"), load_index(thread / "index")
    found = index.search(store.vectors, k=3)
    scores = store.vectors.astype(float) @ store.vectors.astype(float).T
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :3], atol=1e-5)
    assert list(index.ids) == list(store.ids)


def ndcg(scores: np.ndarray, gains: np.ndarray, k: int) -> float:
    """Exponential gain; items of equal score share the mean of their places' discounts."""
    discount = 1 / np.log2(np.arange(len(scores)) + 2) * (np.arange(len(scores)) < k)
    value = 2.0**gains - 1
    order = np.argsort(-scores, kind="stable")
    dcg, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        dcg += discount[start:end].mean() * value[order[start:end]].sum()
        start = end
    return dcg / (discount * -np.sort(-value)).sum()


def numbers_by_hand(dataset, vectors) -> dict[str, float]:
    """The config's metrics, query by query in float64: gain 2 for equal type and colour, 1 for equal type."""
    _, _, columns = attributes(dataset, "test")
    kind, colour = (np.array(columns[name]) for name in ("type", "colour"))
    unit = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    found = {"nDCG@5": [], "precision@1": []}
    for query in range(len(unit)):
        others = np.arange(len(unit)) != query
        same = kind[others] == kind[query]
        gains = same * (1 + (colour[others] == colour[query]))
        if not gains.any():
            continue
        scores = unit[others] @ unit[query]
        found["nDCG@5"].append(ndcg(scores, gains, 5))
        best = scores == scores.max()
        found["precision@1"].append((gains[best] >= 1).mean())
    return {"queries": len(found["nDCG@5"]), **{name: float(np.mean(values)) for name, values in found.items()}}


def test_rank(thread):
    report = json.loads((thread / "report.json").read_text())
    page = (thread / "report.html").read_text()
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"random", "raw pixels", "trained"}
    pictures = [siglip_jax.preprocessing.decode_image(row["image"]) for row in open_split(thread / "data", "test")]
    small = [PIL.Image.fromarray(p).resize((32, 32), PIL.Image.Resampling.BILINEAR) for p in pictures]
    raw = np.stack([np.asarray(p, np.float64).ravel() for p in small])
    for name, vectors in (("trained", read_store(thread / "store").vectors), ("raw pixels", raw - raw.mean(axis=0))):
        expected = numbers_by_hand(thread / "data", vectors)
        assert report["queries"] == expected.pop("queries")
        for metric, value in expected.items():
            stated = [v for k, v in rows[name]["exact"].items() if k in (metric, metric.replace("nDCG@", "nDCG_exp@"))]
            assert len(stated) == 1, rows[name]["exact"].keys()
            assert stated[0]["mean"] == pytest.approx(value, abs=1e-5), (name, metric)
            assert stated[0]["low"] <= stated[0]["mean"] <= stated[0]["high"]
    assert report["items"] == len(pictures)
    assert report["queries"] + report["left_out"] == report["items"]
    assert {(d["a"], d["b"]) for d in report["differences"]} == {("trained", "random"), ("trained", "raw pixels")}
    for difference in report["differences"]:
        a, b = (rows[difference[side]]["exact"][difference["metric"]]["mean"] for side in "ab")
        assert difference["mean"] == pytest.approx(a - b, abs=1e-9)
    assert report["provenance"]["dataset"] == dataset_fingerprint(thread / "data")
    assert "trained" in page
    assert (rows["trained"]["scann"] is None) == (SCANN == "none")


def test_export(thread, capsys):
    pytest.importorskip("tensorflow")
    flags = [f"--model={thread / 'run'}", f"--dataset={thread / 'data'}", f"--output={thread / 'export'}"]
    assert cli.main(["export", *flags]) == 0
    assert "run without JAX" in capsys.readouterr().out
    assert (thread / "export" / "saved_model.pb").is_file()
    assert cli.main(["export", *flags]) == 2  # never over another
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_demo(shop, config_file, tmp_path, capsys):
    """The whole thread in one program, on a catalogue of the user's own; a second start changes no number."""
    pytest.importorskip("tensorflow")
    flags = [f"--catalog={shop}", f"--config={config_file}", f"--workdir={tmp_path}", f"--scann={SCANN}"]
    reports = []
    for _ in range(2):
        assert cli.main(["demo", *flags]) == 0
        assert str(tmp_path / "report.html") in capsys.readouterr().out
        reports.append(json.loads((tmp_path / "report.json").read_text()))
    assert [row["name"] for row in reports[0]["rows"]] == ["random", "raw pixels", "start (random init)", "trained"]
    assert reports[0]["rows"] == reports[1]["rows"]
    assert len(reports[0]["loss_curve"]) == 20
    assert (tmp_path / "savedmodel" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_train_takes_a_tokenizer(shop_dataset, config_file, tmp_path):
    """--tokenizer instead of one trained on the titles; it travels with the model."""
    from input_pipeline.train_tokenizer import train_tokenizer

    path = tmp_path / "mine.model"
    path.write_bytes(train_tokenizer(["entirely other titles", "of other things"], vocab_size=300))
    run = [f"--config={config_file}", "--config.steps=3", "--config.batch_size=8"]
    workdir = tmp_path / "run"
    assert cli.main(["train", *run, f"--dataset={shop_dataset}", f"--tokenizer={path}", f"--workdir={workdir}"]) == 0
    assert siglip_jax.load(workdir).preprocessing.tokenizer == path.read_bytes()
