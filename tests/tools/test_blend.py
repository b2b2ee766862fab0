"""`siglip-jax blend` end to end on tiny models: the curve, the choice, the saved model, and what is refused."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

import siglip_jax
from eval.embeddings import read_store
from eval.embeddings.sharded_writer import EmbeddingPlan
from siglip_jax import cli
from siglip_jax.errors import UserError
from tools.bench import finetune
from tools.workflow import blending


@pytest.fixture(scope="module")
def models(trained_workdir, tiny_model, tmp_path_factory):
    """The start, random, and what was trained from it."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model.save(folder / "start")
    return folder / "start", trained_workdir


@pytest.fixture(scope="module")
def flags(models, config_file, shop_dataset):
    start, tuned = models
    given = {"config": config_file, "start": start, "model": tuned, "dataset": shop_dataset, "split": "test"}
    return ["blend", *(f"--{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def finished(flags, shop_dataset, tmp_path_factory):
    """Of the same catalogue twice, so that both sides must agree."""
    output = tmp_path_factory.mktemp("blends") / "both"
    assert cli.main([*flags, f"--learned={shop_dataset}", "--alphas=0,0.5,1", f"--output={output}"]) == 0
    return output


def read(output):
    return json.loads((output / "blend.json").read_text())


def test_the_curve_is_that_of_the_models_themselves(finished, models, tiny_config, shop_dataset):
    report = read(finished)
    assert report["alphas"] == [0, 0.5, 1]
    assert report["catalogues"]["new"] == report["catalogues"]["learned"]
    ends = {finetune.START: models[0], finetune.DEFAULTS: models[1], finetune.NAIVELY: models[1]}
    loaded = {name: siglip_jax.load(path) for name, path in ends.items()}
    want = finetune.compare(loaded, config=tiny_config, dataset=shop_dataset)
    start, _, tuned = report["catalogues"]["new"]["rows"]
    assert start["metrics"] == want["rows"][0]["metrics"]
    for name, cell in want["rows"][1]["metrics"].items():
        assert tuned["metrics"][name]["mean"] == pytest.approx(cell["mean"], abs=1e-6)
    for cell in want["differences"]:
        if (cell["a"], cell["b"]) == (finetune.DEFAULTS, finetune.START):
            change = tuned["differences"][cell["metric"]]
            for end in ("mean", "low", "high"):
                assert change[end] == pytest.approx(cell[end], abs=1e-6)
    assert {cell["mean"] for cell in start["differences"].values()} == {0.0}


def test_the_best_blend_is_saved_and_embeds_as_its_store(finished, models, shop_dataset, tmp_path):
    report = read(finished)
    sure = {0.0: -np.inf}
    for row in report["catalogues"]["new"]["rows"]:
        if not row["alpha"] or row["differences"][report["metric"]]["low"] > 0:
            sure[row["alpha"]] = row["metrics"][report["metric"]]["mean"]
    assert report["chosen"] == max(sure, key=sure.get)
    saved, (start, tuned) = siglip_jax.load(finished / "model"), map(siglip_jax.load, models)
    alpha = report["chosen"]
    want = jax.tree.map(lambda a, b: (1 - alpha) * np.float64(a) + alpha * np.float64(b), start.params, tuned.params)
    for got, expected in zip(jax.tree.leaves(saved.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    where = [f"--dataset={shop_dataset}", f"--output={tmp_path / 'store'}"]
    assert cli.main(["embed", f"--model={finished / 'model'}", *where]) == 0
    kept = read_store(finished / "new" / f"alpha_{alpha:g}")
    np.testing.assert_array_equal(read_store(tmp_path / "store").vectors, kept.vectors)


def test_the_page_shows_both_curves(finished):
    page = (finished / "blend.html").read_text()
    assert page.count("<svg") == 3  # nDCG, and MRR of titles both ways
    assert page.count('class="point"') == 3 * 2 * 3
    assert f"Alpha {read(finished)['chosen']:g} is chosen" in page


def test_finished_stores_are_kept_and_another_rule_chooses_again(
    finished, flags, shop_dataset, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(EmbeddingPlan, "write", lambda *_, **__: pytest.fail("embedded again"))
    monkeypatch.setattr(blending, "write_store", lambda *_, **__: pytest.fail("embedded titles again"))
    before = read(finished)
    again = [*flags, f"--learned={shop_dataset}", "--alphas=1,0.5", f"--output={finished}"]
    assert cli.main([*again, "--max_forgetting=1", "--max_forgetting=image_to_text/MRR=1"]) == 0
    said = capsys.readouterr().out
    assert "falls on the learned one in nDCG_exp@5 by at most 1 and image_to_text/MRR by at most 1" in said
    assert "| alpha | new: nDCG_exp@5 | change | new: image_to_text/MRR | change | learned: nDCG_exp@5 |" in said
    after = read(finished)
    assert after["catalogues"] == before["catalogues"]
    assert siglip_jax.load(finished / "model").architecture == siglip_jax.load(flags[2].split("=")[1]).architecture


def test_another_model_in_the_same_folder_is_refused(finished, flags, models, tiny_model, tmp_path, capsys):
    tiny_model.replace(params=jax.tree.map(lambda x: x + 1, tiny_model.params)).save(tmp_path / "other")
    other = [flag if not flag.startswith("--model") else f"--model={tmp_path / 'other'}" for flag in flags]
    assert cli.main([*other, "--alphas=1", f"--output={finished}"]) == 2
    assert "holds a store of something else" in capsys.readouterr().err


def test_a_soup(flags, models, shop_dataset, tmp_path):
    """Of the tuned model and a copy that was moved the other way: their mean is the start."""
    start, tuned = map(siglip_jax.load, models)
    mirrored = jax.tree.map(lambda a, b: 2 * a - b, start.params, tuned.params)
    start.replace(params=mirrored).save(tmp_path / "mirrored")
    output = tmp_path / "soup"
    assert cli.main([*flags, f"--model={tmp_path / 'mirrored'}", "--alphas=1", f"--output={output}"]) == 0
    report = read(output)
    assert list(report["catalogues"]) == ["new"]
    for cell in report["catalogues"]["new"]["rows"][1]["differences"].values():
        assert abs(cell["mean"]) < 1e-3
    np.testing.assert_allclose(
        read_store(output / "new" / "alpha_1").vectors, read_store(output / "new" / "alpha_0").vectors, atol=1e-4
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--alphas=0,2"], "expected numbers from 0 to 1"),
        (["--max_forgetting=0.1"], "give it, the dataset that the start knows"),
        (["--max_forgetting=recall=0.1"], "metrics are nDCG_exp@5, precision@1, image_to_text/recall@1"),
        (["--max_forgetting=-1"], "expected a number of at least 0"),
        (["--model={start}"], "not --start"),
        (["--split=validation"], "no split validation; splits are"),
        (["--model={other}"], "architecture.patch_size: 16 here, 8 there"),
    ],
)
def test_what_is_refused(flags, models, tiny_config, shop_dataset, tmp_path, capsys, more, said):
    if "other" in more[0]:
        from tools.workflow.training import start_model

        tiny_config.model.patch_size = 16
        start_model(tiny_config, shop_dataset).save(tmp_path / "other")
    more = [text.format(start=models[0], other=tmp_path / "other") for text in more]
    assert cli.main([*flags, *more, f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0,0.2,...,1", [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("0.5,1", [0, 0.5, 1]),
        ("1, 0.25, 0.25", [0, 0.25, 1]),
        ("0.1,0.2,...,0.4,1", [0, 0.1, 0.2, 0.3, 0.4, 1]),
    ],
)
def test_alphas(text, alphas):
    assert blending.parse_alphas(text) == alphas


@pytest.mark.parametrize("text", ["", "half", "0,...,1", "0,0.2,...", "0,0,...,1", "nan", "-0.5", "1,0.5,...,0"])
def test_alphas_that_are_refused(text):
    with pytest.raises(UserError, match="expected numbers from 0 to 1"):
        blending.parse_alphas(text)


def test_the_keys_of_the_data_are_documented(finished):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    section = page.split("## Blends\n")[1].split("\n## ")[0]
    keys = {key for line in re.findall(r"(?m)^\| `.*", section) for key in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert keys == read(finished).keys()


def side(means, changes, noise=0.01):
    rows = zip((0.0, 0.5, 1.0), means, changes, strict=True)
    return {
        "rows": [
            {"alpha": a, "metrics": {"m": {"mean": m}}, "differences": {"m": {"mean": c, "low": c - noise}}}
            for a, m, c in rows
        ]
    }


@pytest.mark.parametrize(
    ("learned", "limits", "alpha"),
    [
        (None, {}, 1.0),
        ([0.6, 0.55, 0.3], {}, 0.5),
        ([0.9, 0.5, 0.1], {}, 0.0),
        ([0.6, 0.55, 0.3], {"m": 0.3}, 1.0),
        ([0.6, 0.55, 0.3], {"m": 0.05}, 0.5),
        ([0.6, 0.55, 0.3], {"m": 0.01}, 0.0),
    ],
)
def test_the_rule(learned, limits, alpha):
    catalogues = {"new": side([0.3, 0.4, 0.5], [0, 0.1, 0.2])}
    if learned is not None:
        catalogues["learned"] = side(learned, [value - learned[0] for value in learned])
    assert blending.choose(catalogues, limits=limits, metric="m") == alpha


def test_of_equal_blends_the_nearest_to_the_start():
    assert blending.choose({"new": side([0.5, 0.5, 0.5], [0, 0, 0])}, limits={}, metric="m") == 0


@pytest.mark.parametrize(("noise", "alpha"), [(0.01, 1.0), (0.15, 1.0), (0.25, 0.0)])
def test_a_gain_within_noise_is_no_gain(noise, alpha):
    assert blending.choose({"new": side([0.3, 0.4, 0.5], [0, 0.1, 0.2], noise)}, limits={}, metric="m") == alpha


def test_a_sure_gain_beats_a_larger_one_within_noise():
    catalogue = side([0.3, 0.4, 0.5], [0, 0.1, 0.2])
    catalogue["rows"][2]["differences"]["m"]["low"] = -0.01
    assert blending.choose({"new": catalogue}, limits={}, metric="m") == 0.5
