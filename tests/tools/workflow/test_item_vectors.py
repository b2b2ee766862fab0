"""Stores joined with a dataset, and the whole path: stored vectors -> adapter -> stored vectors -> ranking."""

import json
import shutil

import numpy as np
import pytest

from eval.comparison.items import read_split
from eval.embeddings import read_store, write_store
from siglip_jax.cli import main
from siglip_jax.errors import UserError
from siglip_jax.loading import load
from tools.workflow.item_vectors import Features, open_item_vectors, split_ids
from tools.workflow.training import dry_run, train_on_dataset


@pytest.fixture(scope="module")
def vectors(shop_dataset):
    """By id, of both splits: {"cnn": [6], "pixels": [3]}."""
    random = np.random.default_rng(1)
    ids = [item for split in ("train", "test") for item in read_split(shop_dataset, split).ids]
    return {item: {"cnn": random.normal(size=6), "pixels": random.normal(size=3)} for item in ids}


@pytest.fixture(scope="module")
def stores(shop_dataset, vectors, tmp_path_factory):
    """{"cnn": [a store of the training items, a file of the others], "pixels": [a file that lacks two items]}."""
    folder = tmp_path_factory.mktemp("stores")
    train, test = (read_split(shop_dataset, split).ids for split in ("train", "test"))
    manifest = {"model": {"name": "a cnn"}, "preprocessing": None, "dataset": {}}
    write_store(folder / "cnn", [(train, np.stack([vectors[k]["cnn"] for k in train]))], manifest=manifest)
    np.savez(folder / "cnn-test.npz", ids=np.array(test), embeddings=np.stack([vectors[k]["cnn"] for k in test]))
    known = [item for item in vectors if item not in (train[4], test[2])]
    pixels = np.stack([*(vectors[item]["pixels"] for item in known), np.ones(3)])
    np.savez(folder / "pixels.npz", ids=np.array([*known, "unheard of"]), embeddings=pixels)
    return {"cnn": [folder / "cnn", folder / "cnn-test.npz"], "pixels": [folder / "pixels.npz"]}


def flags(stores):
    return [f"--features={name}={path}" for name, paths in stores.items() for path in paths]


@pytest.fixture
def config(tiny_config):
    tiny_config.model.adapter.base, tiny_config.model.adapter.head = 8, 8
    tiny_config.model.adapter.mlp_dim = 16
    tiny_config.steps = 4
    tiny_config.checkpoint_every = 2
    tiny_config.evaluation.while_training = ("retrieval", "ranking")
    return tiny_config


def test_joined_by_id(shop_dataset, stores, vectors, capsys):
    for split in ("train", "test"):
        ids = read_split(shop_dataset, split).ids
        assert split_ids(shop_dataset, split) == ids
        found = open_item_vectors(stores["cnn"], dataset=shop_dataset, split=split, name="cnn")
        assert found.take(np.arange(len(ids))).tolist() == [
            vectors[item]["cnn"].astype(np.float32).tolist() for item in ids
        ]
    train, test = (read_split(shop_dataset, split).ids for split in ("train", "test"))
    capsys.readouterr()
    found = open_item_vectors(stores["pixels"][0], dataset=shop_dataset, split="train", name="pixels")
    assert found.missing.tolist() == [4]
    assert capsys.readouterr().out == (
        f"pixels: vectors of 3 numbers for {len(train) - 1} of {len(train)} items of split train; none for {train[4]}; "
        f"{len(test)} of other items\n"
    )


def test_stores_that_contradict_or_do_not_fit(shop_dataset, stores, vectors, tmp_path):
    ids = read_split(shop_dataset, "test").ids

    def file(name, known, values):
        np.savez(tmp_path / f"{name}.npz", ids=np.array(known), embeddings=values)
        return tmp_path / f"{name}.npz"

    same = np.stack([vectors[item]["cnn"] for item in ids[:3]])
    twice = [*stores["cnn"], file("same", ids[:3], same)]
    found = open_item_vectors(twice, dataset=shop_dataset, split="test")
    assert found.take(np.arange(3)).tolist() == same.astype(np.float32).tolist()
    for paths, said in (
        (
            [*stores["cnn"], file("other", ids[:3], same + np.eye(3)[1][:, None])],
            f"item {ids[1]} has another vector in",
        ),
        ([*stores["cnn"], file("short", ids[:1], np.ones((1, 2)))], "has 2 numbers; expected stores of one encoder"),
        (file("strangers", ["a", "b"], np.ones((2, 2))), "none of the .* items of split test is in .* such as a, here"),
        (file("nan", ids[:2], [[1, 1], [1, np.nan]]), f"vector of item {ids[1]} holds NaN"),
    ):
        with pytest.raises(UserError, match=said):
            open_item_vectors(paths, dataset=shop_dataset, split="test")


def test_names_and_numbers_must_be_the_models(stores):
    features = Features.open(stores)
    assert features.dimensions == {"cnn": 6, "pixels": 3}
    features.check({"pixels": 3, "cnn": 6}, model="m")
    with pytest.raises(UserError, match="m: no colours is given, cnn is unknown to it, pixels has 3 numbers; expected"):
        features.check({"colours": 9, "pixels": 4}, model="m")
    with pytest.raises(UserError, match="m: it takes pictures; leave --features out"):
        features.check({}, model="m")


def test_trains_embeds_and_ranks(shop_dataset, stores, vectors, config, config_file, tmp_path, capsys):
    train, test = (read_split(shop_dataset, split).ids for split in ("train", "test"))
    workdir = tmp_path / "run"
    train_on_dataset(config, dataset=shop_dataset, workdir=workdir, features=stores)
    printed = capsys.readouterr().out
    assert f"1 training rows take no part, since they lack vectors (pixels 1: ids {train[4]})" in printed
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any("ranking/nDCG_exp@5" in line for line in lines)
    assert load(workdir).architecture.features == {"cnn": 6, "pixels": 3}

    command = ["embed", f"--model={workdir}", f"--dataset={shop_dataset}", f"--output={tmp_path / 'store'}"]
    main([*command, *flags(stores)])
    assert f"row 2, id {test[2]}: no vector of pixels" in capsys.readouterr().out
    found = read_store(tmp_path / "store")
    assert found.ids == [item for item in test if item != test[2]]
    assert [each["id"] for each in found.skipped] == [test[2]]
    described = found.manifest["model"]["features"]
    assert [each["model"] for each in described["cnn"]] == [{"name": "a cnn"}, {"name": "cnn-test.npz"}]
    inputs = {name: np.stack([vectors[item][name] for item in found.ids]).astype(np.float32) for name in stores}
    np.testing.assert_allclose(found.vectors, load(workdir).encode_image(inputs), atol=1e-6)
    main([*command, *flags(stores)])  # complete already

    report = tmp_path / "report.html"
    shown = ["rank", f"--config={config_file}", f"--store=adapter={tmp_path / 'store'}", f"--output={report}"]
    assert not main([*shown, f"--dataset={shop_dataset}", "--scann=none"])
    assert "could not be read when store" in report.read_text()

    for given, said in (
        ({}, "takes stored vectors, not pictures; expected --features=cnn=STORE of 6"),
        ({"cnn": stores["cnn"]}, "no pixels is given"),
    ):
        assert main([*command, *flags(given)])
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_goes_on_with_the_same_stores_alone(shop_dataset, stores, config, tmp_path):
    whole = train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "whole", features=stores)
    stopped = tmp_path / "stopped"
    train_on_dataset(config, dataset=shop_dataset, workdir=stopped, features=stores)
    for path in (stopped / "checkpoints").iterdir():
        if path.name == "4":  # as if it had been killed before
            shutil.rmtree(path)
    ids = np.array(list(np.load(stores["pixels"][0])["ids"]))
    np.savez(tmp_path / "other.npz", ids=ids, embeddings=np.ones((len(ids), 3)) * np.arange(len(ids))[:, None])
    other = {**stores, "pixels": [tmp_path / "other.npz"]}
    with pytest.raises(UserError, match=r"another config .*stores"):
        train_on_dataset(config, dataset=shop_dataset, workdir=stopped, features=other)
    again = {"pixels": stores["pixels"], "cnn": stores["cnn"][::-1]}
    gone_on = train_on_dataset(config, dataset=shop_dataset, workdir=stopped, features=again)
    for name in ("output", "hidden_0"):
        ours, theirs = (model.params["img"][name]["kernel"] for model in (gone_on, whole))
        assert np.array_equal(ours, theirs)


def test_dry_run_and_flags_that_say_nothing(shop_dataset, stores, config, capsys):
    dry_run(config, dataset=shop_dataset, features=stores)
    assert "4 steps of 16" in capsys.readouterr().out
    assert main(["embed", "--model=m", "--features=cnn", f"--dataset={shop_dataset}", "--output=o"])
    assert "--features=cnn: expected name=STORE" in capsys.readouterr().err
    config.model.features = {"cnn": 6}
    with pytest.raises(UserError, match="without stores; expected --features=cnn=STORE"):
        dry_run(config, dataset=shop_dataset)
    with pytest.raises(UserError, match="pixels is unknown to it"):
        dry_run(config, dataset=shop_dataset, features=stores)
