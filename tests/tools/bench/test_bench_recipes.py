"""Recipes side by side: each row against the programs one after the other."""

import json
import pathlib

import pytest

from siglip_jax import cli

FASHION = pathlib.Path(__file__).parents[3] / "configs" / "fashion.py"
SHORT = {"config.steps": 4, "config.checkpoint_every": 4, "config.log_every": 2}


def flags_of(values, *more):
    return [*(f"--{name}={value}" for name, value in values.items()), *more]


@pytest.fixture(scope="module")
def bench(config_file, shop_dataset, tmp_path_factory):
    """(flags, workdir) of a run with two recipes, a PCA and a store beside them."""
    folder = tmp_path_factory.mktemp("recipes")
    store = folder / "pixels"
    assert cli.main(["embed", "--model=pixels:4x4", f"--dataset={shop_dataset}", f"--output={store}"]) == 0
    flags = {"config": config_file, **SHORT, "dataset": shop_dataset, "workdir": folder / "runs"}
    more = ["--recipe=softmax: loss=softmax", "--recipe=batch 8: batch_size=8, steps=8, model.init_bias=-1.8"]
    more += [f"--relevance={config_file}", f"--store=pixels={store}", "--reduce=batch 8=pca:4", "--baseline=random"]
    line = ["bench", "recipes", *flags_of(flags, *more)]
    assert cli.main(line) == 0
    return line, folder / "runs"


def read(workdir):
    return json.loads((workdir / "recipes.json").read_text())


@pytest.mark.slow
def test_rows_and_their_costs(bench):
    _, workdir = bench
    found = read(workdir)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["random", "pixels", "as configured", "softmax", "batch 8", "batch 8, PCA 4"]
    assert [rows[name]["examples"] for name in ("as configured", "softmax", "batch 8")] == [64, 64, 64]
    assert rows["softmax"]["changes"] == {"loss": "softmax"}
    assert (rows["batch 8"]["bytes_per_item"], rows["batch 8, PCA 4"]["bytes_per_item"]) == (64, 16)
    assert all(row["seconds"] > 0 for name, row in rows.items() if "examples" in row)
    metric = found["metric"]
    for each in found["differences"]:
        assert each["b"] == found["against"] == "as configured"
        means = [rows[name]["metrics"][each["metric"]]["mean"] for name in (each["a"], each["b"])]
        assert each["mean"] == pytest.approx(means[0] - means[1], abs=1e-12)
    assert {each["a"] for each in found["differences"] if each["metric"] == metric} == rows.keys() - {"as configured"}
    page = json.loads((workdir / "report.json").read_text())
    assert (page["new"], page["against"]) == ("batch 8", "as configured")


@pytest.mark.slow
def test_a_row_is_what_the_programs_give_one_by_one(bench, config_file, shop_dataset, tmp_path):
    _, workdir = bench
    flags = {"config": config_file, **SHORT, "config.loss": "softmax", "dataset": shop_dataset}
    assert cli.main(["train", *flags_of(flags, f"--workdir={tmp_path / 'run'}")]) == 0
    store = tmp_path / "store"
    assert cli.main(["embed", f"--model={tmp_path / 'run'}", f"--dataset={shop_dataset}", f"--output={store}"]) == 0
    flags = {"config": config_file, "dataset": shop_dataset, "store": f"alone={store}", "scann": "none"}
    assert cli.main(["rank", *flags_of(flags, f"--output={tmp_path / 'alone.html'}")]) == 0
    alone = next(row for row in json.loads((tmp_path / "alone.json").read_text())["rows"] if row["name"] == "alone")
    here = next(row for row in read(workdir)["rows"] if row["name"] == "softmax")
    assert here["metrics"] == alone["exact"]


@pytest.mark.slow
def test_the_table(bench, capsys):
    line, workdir = bench
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("trainings/*/clock.json")}
    metrics = read(workdir)["rows"]
    renamed = [each.replace("--recipe=softmax:", "--recipe=CLIP:") for each in line]
    assert cli.main([*renamed, "--against=pixels"]) == 0  # nothing is trained again, under another name either
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("trainings/*/clock.json")} == before
    assert len(before) == 3
    out = capsys.readouterr().out.splitlines()
    head = next(place for place, text in enumerate(out) if text.startswith("| row |"))
    assert out[head] == "| row | bytes per item | nDCG_exp@5 | row − pixels | examples | training, s |"
    cells = {text.split(" | ")[0].removeprefix("| "): text.split(" | ")[1:] for text in out[head + 2 : head + 8]}
    assert cells["pixels"][2:] == ["–", "–", "– |"]
    interval = next(row for row in metrics if row["name"] == "softmax")["metrics"]["nDCG_exp@5"]
    assert cells["CLIP"][:2] == ["64", f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"]
    assert cells["CLIP"][3] == "64"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "one row alone"),
        (["--recipe=a: steps"], "names no field"),
        (["--recipe=as configured: steps=2"], "none of as configured"),
        (["--recipe=a: steps=1"], "a: config.optimizer.warmup_steps=2 is not below config.steps=1"),
        (["--recipe=a: batch_size=4096"], "a: batch_size=4096; there are"),
        (["--recipe=a: steps=3", "--against=b"], "--against=b: no such row"),
        (["--recipe=a: steps=3", "--reduce=b=pca:4"], "--reduce=b: no such store"),
        (["--recipe=a: steps=3", "--reduce=a=half"], "reduction 'half'"),
        (["--recipe=a: teacher.cosine=1.0"], "no config.teacher.store"),
        (["--recipe=a: steps=3", f"--relevance={FASHION}"], "articleType"),
        (["--recipe=a: steps=3", "--relevance=nowhere.py"], "--config or --relevance"),
        (["--recipe=a: data.most=4096"], "most=4096; expected 1 to"),
    ],
)
def test_what_cannot_be_compared_is_said_before_training(config_file, shop_dataset, tmp_path, capsys, more, said):
    flags = {"config": config_file, "dataset": shop_dataset, "workdir": tmp_path / "runs"}
    assert cli.main(["bench", "recipes", *flags_of(flags, *more)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
