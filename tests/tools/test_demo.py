"""`siglip-jax demo --encoder`: an adapter over vectors of a tiny catalogue, its headline, what is refused at once."""

import csv
import json
import re
import sys

import numpy as np
import pytest

import siglip_jax
from eval.embeddings import read_store
from input_pipeline.dataset import open_split
from siglip_jax import cli

INPUTS = ("colours", "edges", "encoder", "pixels")
TINY = (
    "steps=3",
    "matryoshka.widths=(12,)",
    "checkpoint_every=3",
    "optimizer.warmup_steps=1",
    "preprocessing.vocab_size=400",
    "log_every=1",
    "evaluation.while_training=()",
)


@pytest.fixture
def flags(shop, config_file, tmp_path):
    adapter = [f"--adapter.{field}" for field in (*TINY, "model.adapter.base=32", "model.adapter.head=16")]
    given = [f"--catalog={shop}", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    given += ["--scann=none", "--max_left_out=1"]
    return ["demo", *given, *adapter]


def write_vectors(path, ids):
    """Vectors of 12 random numbers."""
    vectors = np.random.default_rng(0).normal(size=(len(ids), 12)).astype(np.float32)
    np.savez(path, ids=np.array(ids), embeddings=vectors)
    return dict(zip(ids, vectors, strict=True))


@pytest.mark.slow
def test_an_adapter_over_a_file_of_embeddings(flags, shop, shop_dataset, tmp_path, capsys):
    with (shop / "items.tsv").open(encoding="utf-8") as file:
        ids = list(dict.fromkeys(row["id"] for row in csv.DictReader(file, delimiter="\t")))
    lacking = open_split(shop_dataset, "test")[0]["id"]  # the tests of both datasets are a fifth, by the same seed
    vectors = write_vectors(tmp_path / "mine.npz", [item for item in ids if item != lacking])
    assert cli.main([*flags, f"--encoder={tmp_path / 'mine.npz'}"]) == 0
    said, run = capsys.readouterr().out, tmp_path / "run"

    last = said.splitlines()[-1]
    found, report = (json.loads((run / name).read_text()) for name in ("headline.json", "report.json"))
    rows = {row["name"]: row["exact"]["nDCG_exp@5"] for row in report["rows"]}
    assert list(rows) == ["random", "raw pixels", "your encoder", "adapter", "adapter, truncated to 12"]
    assert (found["encoder"], found["ours"]) == (rows["your encoder"], rows["adapter"])
    difference = found["difference"]
    assert difference["mean"] == pytest.approx(rows["adapter"]["mean"] - rows["your encoder"]["mean"], abs=1e-9)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert found["relative"] == pytest.approx(difference["mean"] / rows["your encoder"]["mean"])
    numbers = [float(text.replace("−", "-")) for text in re.findall(r"[+−]?\d+\.\d+", last)]
    exact = [found["encoder"]["mean"], found["ours"]["mean"], *(difference[key] for key in ("mean", "low", "high"))]
    assert numbers == pytest.approx([*exact, 100 * found["relative"]], abs=0.051)
    assert re.fullmatch(r"nDCG_exp@5: your encoder \S+, ours \S+, difference \S+ \[\S+, \S+\] \(\S+ %\)", last)

    splits = {name: len(open_split(run / "dataset", name)) for name in ("train", "validation", "test")}
    assert f"a batch of {2 ** (splits['train'].bit_length() - 1)} pairs, not 512" in said
    assert re.search(r"strength 0\S* chosen on split validation", said)

    # The saved adapter is the one that was ranked, and its inputs are the vectors of the file.
    rows_of_test = [row["id"] for row in open_split(run / "dataset", "test")]
    assert lacking in rows_of_test
    assert any(lacking in line for line in report["warnings"])
    stores = {name: read_store(run / "embeddings" / f"{name}-test") for name in (*INPUTS, "adapter")}
    kept = [item for item in rows_of_test if item != lacking]
    assert list(stores["adapter"].ids) == list(stores["encoder"].ids) == kept
    np.testing.assert_array_equal(stores["encoder"].vectors, [vectors[item] for item in kept])
    place = [rows_of_test.index(item) for item in kept]
    inputs = {name: stores[name].vectors if name == "encoder" else stores[name].vectors[place] for name in INPUTS}
    again = siglip_jax.load(run / "adapter").encode_image(inputs)
    np.testing.assert_allclose(stores["adapter"].vectors, again, atol=1e-6)


WRONG = {
    "no such encoder": ("none", "none: not found"),
    "no such file": ("none.npz", "no such file"),
    "no such network": ("none.onnx", "none.onnx"),
    "library not installed": ("net.tflite", "install siglip-jax[tflite]"),
    "vectors of other items": ("other.npz", "no embedding of any of the"),
    "neither weights nor vectors": ("bare.npz", "bare.npz"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_encoder_is_one_line_before_anything_takes_long(case, flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    name, part = WRONG[case]
    (tmp_path / "net.tflite").write_bytes(b"")
    write_vectors(tmp_path / "other.npz", ["x1", "x2"])
    np.savez(tmp_path / "bare.npz", numbers=np.zeros(3))
    assert cli.main([*flags, f"--encoder={tmp_path / name}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("siglip-jax")]
    assert len(lines) == 1
    assert part in lines[0]
    assert not (tmp_path / "run" / "train").exists()
    assert not (tmp_path / "run" / "dataset").exists() or case == "vectors of other items"
