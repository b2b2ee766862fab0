"""The strength of an adapter: derived from one embedding, chosen by ranking, saved; `siglip-jax blend` end to end."""

import json
import re

import numpy as np
import pytest

from eval.comparison.items import read_split
from eval.embeddings import read_store
from eval.embeddings.sharded_writer import EmbeddingPlan
from eval.metrics import rank_metrics
from siglip_jax import cli
from siglip_jax import model as models
from siglip_jax.loading import load
from siglip_jax.models.towers import TwoTowers
from siglip_jax.training.start.feature_statistics import start_adapter, with_strength
from siglip_jax.training.start.spec import architecture_of, preprocessing_of
from tools.workflow.adapters.strengths import STRENGTHS, Strengths, choose_strength
from tools.workflow.item_vectors import Features


def adapter_of(config, tokenizer, numbers, vectors, *, head):
    """An adapter over one input, whose head is `linear`, float [numbers, head], times the standardised vectors."""
    config.model.features = {"cnn": numbers}
    config.model.adapter.update(base=0, head=head.shape[1], mlp_dim=4, strength=0.3)
    preprocessing = preprocessing_of(config).replace(tokenizer=tokenizer)
    module = TwoTowers(architecture_of(config, preprocessing, vocab_size=preprocessing.vocab_size))
    model, _ = start_adapter(
        models.init(module, preprocessing, seed=0), lambda rows: {"cnn": vectors[rows]}, np.arange(len(vectors)),
        strength=0.3,
    )  # fmt: skip
    image = {**model.params["img"], "linear": {"kernel": head.astype(np.float32)}}
    return model.replace(params={**model.params, "img": image})


@pytest.fixture(scope="module")
def catalogue(shop_dataset, tmp_path_factory):
    """(ids, a code of each item's type and colour one-hot, numbers that say nothing); a file of both side by side."""
    items = read_split(shop_dataset, "train")
    codes = [np.unique(items.columns[name], return_inverse=True)[1] for name in ("type", "colour")]
    known = np.concatenate([np.eye(code.max() + 1)[code] for code in codes], axis=1)
    random = np.random.default_rng(0)
    return items.ids, known + 0.3 * random.normal(size=known.shape), random.normal(size=(len(known), 6))


@pytest.fixture
def make(catalogue, tiny_config, tiny_model, tmp_path):
    """make(says="noise") -> flags of an adapter whose base ranks well or badly, and whose head does the opposite."""

    def save(*, head):
        ids, known, noise = catalogue
        good = head == "known"
        # The base is the direction of all numbers, so what it shall not see is small; the head sees standardised ones.
        vectors = np.concatenate([known * (0.01 if good else 1), noise * (1 if good else 0.01)], axis=1)
        vectors = vectors.astype(np.float32)
        width, first = vectors.shape[1], known.shape[1]
        kernel = np.eye(width)[:, :first] if good else 5 * np.eye(width)[:, first:]
        adapter = adapter_of(tiny_config, tiny_model.preprocessing.tokenizer, width, vectors, head=5 * kernel)
        adapter.save(tmp_path / "adapter")
        np.savez(tmp_path / "cnn.npz", ids=np.array(ids), embeddings=vectors)
        return [f"--model={tmp_path / 'adapter'}", f"--features=cnn={tmp_path / 'cnn.npz'}"]

    return save


@pytest.fixture
def common(config_file, shop_dataset, tmp_path):
    return [f"--config={config_file}", f"--dataset={shop_dataset}", "--split=train", f"--output={tmp_path / 'out'}"]


@pytest.mark.parametrize(("head", "chosen"), [("noise", [0.0]), ("known", [0.8, 1.0])])
def test_the_strength_that_ranks_best_is_saved(make, common, head, chosen, shop_dataset, tmp_path, capsys):
    """A head of noise loses to no change; one that knows what the base does not wins."""
    flags = make(head=head)
    assert cli.main(["blend", *flags, *common]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "blend.json").read_text())
    assert report["start"] is None
    assert report["alphas"] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert report["chosen"] in chosen
    assert ("(no change)" in said) == (chosen == [0.0])
    page = (tmp_path / "out" / "blend.html").read_text()
    assert "Alpha 0 is its encoders as they are, 1 what it learned alone." in page

    # The saved model embeds as the strength that was measured, and is what `embed` takes.
    saved = load(tmp_path / "out" / "model")
    np.testing.assert_array_equal(saved.params["img"]["strength"], np.float32([report["chosen"]]))
    where = [f"--dataset={shop_dataset}", "--split=train", f"--output={tmp_path / 'store'}"]
    assert cli.main(["embed", f"--model={tmp_path / 'out' / 'model'}", flags[1], *where]) == 0
    found = read_store(tmp_path / "store").vectors
    cosines = found @ found.T
    head_numbers = saved.architecture.image.head
    if report["chosen"] == 0:  # the encoders again: directions of centred vectors
        assert not found[:, : 2 * head_numbers : 2].any()  # head and base take turns
        x = np.load(tmp_path / "cnn.npz")["embeddings"].astype(np.float64)
        x -= x.mean(axis=0)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose(cosines, x @ x.T, atol=1e-5)
    if report["chosen"] == 1:
        assert not np.delete(found, np.arange(0, 2 * head_numbers, 2), axis=1).any()


def test_strengths_follow_from_one_embedding(make, common, shop_dataset, tmp_path, monkeypatch):
    """Each is what a model of that strength makes of the features itself."""
    flags = make(head="known")
    path = tmp_path / "cnn.npz"
    adapter, vectors = load(tmp_path / "adapter"), np.load(path)["embeddings"]
    way = Strengths.of(("adapter", adapter), Features.open({"cnn": [path]}))
    alphas = [0.0, 0.1, 0.5, 0.75, 1.0]
    where = dict(dataset=shop_dataset, split="train", stores=tmp_path / "stores", on_error="error")
    found = way.embed(alphas, **where)
    for alpha in alphas:
        expected = with_strength(adapter, alpha).encode_image({"cnn": vectors})
        np.testing.assert_allclose(found[alpha].store.vectors, expected, atol=1e-6)
    assert len({each.folder for each in found.values()}) == 1

    monkeypatch.setattr(EmbeddingPlan, "write", lambda *_, **__: pytest.fail("embedded again"))
    again = way.embed([0.3], **where)
    expected = with_strength(adapter, 0.3).encode_image({"cnn": vectors})
    np.testing.assert_allclose(again[0.3].store.vectors, expected, atol=1e-6)
    assert flags


@pytest.mark.slow
def test_blends_of_two_adapters(make, common, tmp_path, capsys):
    """A start that knows nothing and what was tuned from it; the interpolated head is that of the parameters."""
    flags = make(head="known")
    tuned = load(tmp_path / "adapter")
    image = tuned.params["img"]
    nothing = {**image, "linear": {"kernel": np.zeros_like(image["linear"]["kernel"])}}
    tuned.replace(params={**tuned.params, "img": nothing}).save(tmp_path / "start")
    start = f"--start={tmp_path / 'start'}"
    assert cli.main(["blend", *flags, start, "--alphas=0,0.5,1", *common]) == 0
    assert json.loads((tmp_path / "out" / "blend.json").read_text())["chosen"] > 0
    assert len(list((tmp_path / "out" / "new").glob("alpha_*[0-9]"))) == 3

    other = {**nothing, "mean": nothing["mean"] + 1}
    tuned.replace(params={**tuned.params, "img": other}).save(tmp_path / "other")
    assert cli.main(["blend", *flags, f"--start={tmp_path / 'other'}", *common]) == 2
    assert "cannot be blended" in capsys.readouterr().err


def test_what_is_refused(make, common, trained_workdir, capsys):
    flags = make(head="noise")
    for given, said in (
        ([f"--model={trained_workdir}"], "takes pictures; --start is missing"),
        ([*flags, f"--model={trained_workdir}"], "--start is missing, the model that they were tuned from"),
        (flags[:1], "takes stored vectors; expected --features=cnn=STORE of"),
        ([flags[0], flags[1].replace("cnn=", "other=")], "no cnn is given"),
    ):
        assert cli.main(["blend", *given, *common]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("head", "chosen"), [("noise", [0.0]), ("known", [0.7, 0.9])])
def test_the_demo_chooses_by_the_same_rule(make, head, chosen, shop_dataset, tiny_config, tmp_path, capsys):
    """The printed means are those of numpy."""
    make(head=head)
    adapter = load(tmp_path / "adapter")
    features = Features.open({"cnn": [tmp_path / "cnn.npz"]})
    tiny_config.evaluation.split = "train"
    where = dict(dataset=shop_dataset, stores=tmp_path / "stores")
    found = choose_strength(("adapter", adapter), config=tiny_config, features=features, **where)
    strength = float(found.params["img"]["strength"][0])
    assert round(strength, 6) in chosen
    said = capsys.readouterr().out
    assert f"strength {strength:g} chosen on split train: nDCG_exp@5" in said

    items, vectors = read_split(shop_dataset, "train"), np.load(tmp_path / "cnn.npz")["embeddings"]
    kind, colour = (np.array(items.columns[name]) for name in ("type", "colour"))
    gains = (kind[:, None] == kind) * (1 + (colour[:, None] == colour))
    off = ~np.eye(len(kind), dtype=bool)
    means = {}
    for value in STRENGTHS:
        z = with_strength(adapter, value).encode_image({"cnn": vectors}).astype(np.float64)
        scores, labels = ((each[off].reshape(len(kind), -1)) for each in (z @ z.T, gains))
        means[value] = np.nanmean(rank_metrics(scores, labels, metrics=("nDCG@5",), gain="exponential")["nDCG@5"])
    printed = {float(at): float(mean) for mean, at in re.findall(r"(\d\.\d+) at (\S+?)(?:,|$)", said.strip())}
    assert printed == pytest.approx(means, abs=0.002)


def test_no_change_is_no_start(make, config_file, shop_dataset, tmp_path, capsys):
    flags = make(head="noise")
    with_strength(load(tmp_path / "adapter"), 0.0).save(tmp_path / "unchanged")
    given = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={tmp_path / 'run'}", flags[1]]
    assert cli.main(["train", *given, f"--config.init={tmp_path / 'unchanged'}"]) == 2
    assert "an adapter at strength 0 gives its encoders as they are, and learns nothing" in capsys.readouterr().err
