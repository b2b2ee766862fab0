"""An adapter through the training loop and its files: what it learns, what stays, resuming, micro-batches, meshes."""

import json

import flax.traverse_util
import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax import model as models
from siglip_jax.errors import UserError
from siglip_jax.models.feature_tower import FIXED
from siglip_jax.models.towers import TwoTowers
from siglip_jax.training import loop
from siglip_jax.training.config import default_config
from siglip_jax.training.start.feature_statistics import start_adapter, with_strength
from siglip_jax.training.start.spec import architecture_of, outline, preprocessing_of

CLASSES, BATCH = 8, 16


def make_config(**changes):
    config = default_config()
    config.preprocessing.text_length = 4
    config.model.features = {"cnn": 12, "pixels": 6}
    config.model.adapter = dict(base=10, head=6, mlp_dim=16, depth=1, strength=0.5, weights={"pixels": 0.5})
    config.model.text = dict(width=8, depth=1, mlp_dim=16, heads=2)
    config.model.init_bias = -2.5
    config.batch_size, config.steps = BATCH, 8
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 1
    config.log_every, config.checkpoint_every = 1, 4
    config.update_from_flattened_dict(changes)
    return config


def items(n, seed):
    """Features of items of 8 classes, a title that names the class, and the class."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(99)
    kind = rng.integers(0, CLASSES, n)
    features = {
        name: (centres.normal(size=(CLASSES, d))[kind] + 2 * rng.normal(size=(n, d)) + 5).astype(np.float32)
        for name, d in (("cnn", 12), ("pixels", 6))
    }
    return features, np.stack([kind] * 4, axis=1).astype(np.int32), kind.astype(np.int32)


class Batches:
    """Batch k, from 1, is made of seed k; the one numbered `fails` cannot be read."""

    def __init__(self, fails=None):
        self.position, self.fails = 0, fails

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        if self.position == self.fails:
            raise RuntimeError("the disk is gone")
        image, text, group = items(BATCH, self.position)
        return {"image": image, "text": text, "group": group}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def start_model(config):
    preprocessing = preprocessing_of(config)
    module = TwoTowers(architecture_of(config, preprocessing, vocab_size=CLASSES), init_bias=config.model.init_bias)
    features, _, _ = items(200, 0)
    options = config.model.adapter
    return start_adapter(
        models.init(module, preprocessing, seed=0),
        lambda rows: {name: x[rows] for name, x in features.items()},
        np.arange(200),
        strength=options.strength,
        weights=options.weights,
    )[0]


def train(workdir, batches=None, **changes):
    config = make_config(**changes)
    model = loop.train(config, model=start_model(config), batches=batches or Batches(), workdir=workdir)
    losses = [json.loads(line).get("loss") for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return jax.device_get(model), [loss for loss in losses if loss is not None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(start, trained model, losses, workdir) of an unbroken run on one device."""
    workdir = tmp_path_factory.mktemp("adapter") / "run"
    model, losses = train(workdir)
    return start_model(make_config()), model, losses, workdir


def assert_equal(ours, theirs):
    ours, theirs = (flax.traverse_util.flatten_dict(jax.device_get(tree), sep="/") for tree in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_it_starts_as_its_base():
    """The cosines of the inputs' directions, but for what the projection drops."""
    model, (features, _, _) = start_model(make_config()), items(200, 0)
    parts = []
    for name, weight in (("cnn", 1), ("pixels", 0.5)):
        x = features[name].astype(np.float64)
        x -= x.mean(axis=0)
        parts.append(weight * x / np.linalg.norm(x, axis=1, keepdims=True))
    base = np.concatenate(parts, axis=1)
    left, values, right = np.linalg.svd(base, full_matrices=False)
    kept = (left[:, :10] * values[:10]) @ right[:10]
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    z = model.encode_image(features)
    np.testing.assert_allclose(z @ z.T, kept @ kept.T, atol=1e-5)


def test_it_learns_and_what_is_fixed_stays(trained):
    start, model, losses, _ = trained
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    for name in FIXED:
        np.testing.assert_array_equal(model.params["img"][name], start.params["img"][name], err_msg=name)
    assert np.abs(model.params["img"]["output"]["kernel"]).max() > 1e-3
    features, _, _ = items(50, 123)
    cosines = (start.encode_image(features) * model.encode_image(features)).sum(axis=1)
    assert np.sqrt(0.5) - 1e-6 <= cosines.min() < 0.999  # however long the head is


def test_another_strength_needs_no_training(trained):
    start, model, _, _ = trained
    features, text = items(20, 123)[0], np.stack([np.arange(CLASSES, dtype=np.int32)] * 4, axis=1)
    unchanged = with_strength(model, 0.0).encode_image(features)
    np.testing.assert_allclose(unchanged, start.encode_image(features), atol=1e-6)
    learned = with_strength(model, 1.0)
    order = np.argsort(learned.encode_image(features) @ learned.encode_text(text).T, axis=1)
    stronger = with_strength(model, 0.9)
    np.testing.assert_array_equal(
        np.argsort(stronger.encode_image(features) @ stronger.encode_text(text).T, axis=1), order
    )
    with pytest.raises(UserError, match=r"strength=1\.5; expected 0 to 1"):
        with_strength(model, 1.5)


def test_a_broken_run_goes_on_where_it_was_saved(trained, tmp_path):
    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(tmp_path / "run", Batches(fails=7))
    model, _ = train(tmp_path / "run")
    assert_equal(model.params, trained[1].params)


def test_microbatches_do_not_change_the_run(trained, tmp_path):
    _, losses = train(tmp_path / "run", microbatch=4)
    np.testing.assert_allclose(losses, trained[2], rtol=1e-4)


MESH = """
import json, pathlib, runpy, sys
import jax
own = runpy.run_path(sys.argv[1])
model, losses = own["train"](pathlib.Path(sys.argv[2]), **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
assert jax.device_count() == 8
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(trained, tmp_path, python):
    done = python(MESH, __file__, tmp_path / "run", devices=8)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), trained[2], rtol=1e-4)


def test_a_run_and_a_saved_model_are_loaded(trained, tmp_path):
    _, model, _, workdir = trained
    features, text, _ = items(9, 5)
    model.save(tmp_path / "saved")
    for folder in (workdir, tmp_path / "saved"):
        loaded = siglip_jax.load(folder)
        assert loaded.architecture == model.architecture
        assert loaded.preprocessing == model.preprocessing
        assert_equal(loaded.params, model.params)
        np.testing.assert_array_equal(loaded.encode_image(features), model.encode_image(features))
        np.testing.assert_array_equal(loaded.encode_text(text), model.encode_text(text))


def test_half_precision_leaves_the_statistics(trained, tmp_path):
    _, model, _, workdir = trained
    half = siglip_jax.load(workdir, param_dtype="bfloat16", dtype="bfloat16")
    kinds = {name: x.dtype.name for name, x in flax.traverse_util.flatten_dict(half.params, sep="/").items()}
    whole = {name for name, kind in kinds.items() if kind == "float32"}
    assert whole == {"t", "b", "img/mean", "img/scale", "img/weight", "img/strength"}
    features, _, _ = items(9, 5)
    np.testing.assert_allclose(half.encode_image(features), model.encode_image(features), atol=0.02)
    half.save(tmp_path / "saved")
    assert_equal(siglip_jax.load(tmp_path / "saved", param_dtype="stored").params, half.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.zeros((2, 8, 8, 3), np.float32), "a ndarray; this model takes stored vectors, not pictures"),
        (lambda x: [b"a picture"], "a list; this model takes stored vectors"),
        (lambda x: {"cnn": x["cnn"]}, "the features cnn; expected .*'cnn': 12, 'pixels': 6"),
        (lambda x: {}, "the features none; expected"),
        (lambda x: x | {"cnn": x["pixels"]}, r"cnn is float32 \[9, 6\]"),
        (lambda x: x | {"cnn": x["cnn"].astype(np.int32)}, "cnn is int32"),
        (lambda x: x | {"cnn": x["cnn"].tolist()}, "cnn is a list"),
        (lambda x: x | {"cnn": x["cnn"][:5]}, r"different numbers of rows \(cnn 5, pixels 9\)"),
        (lambda x: x | {"cnn": x["cnn"] * np.nan}, r"NaN in the embeddings of rows \[0, 1,"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_inputs_are_refused(trained, change, message):
    features, _, _ = items(9, 5)
    with pytest.raises(UserError, match=message):
        trained[1].encode_image(change(features))


def test_no_rows_no_embeddings(trained):
    features, _, _ = items(3, 5)
    assert trained[1].encode_image({name: x[:0] for name, x in features.items()}).shape == (0, 16)


def test_a_model_of_pictures_takes_no_features(tiny_model):
    with pytest.raises(UserError, match="a dict of features; this model takes pictures"):
        tiny_model.encode_image({"cnn": np.zeros((1, 12), np.float32)})


def test_what_cannot_hold_an_adapter_says_so(trained, tmp_path):
    _, model, _, workdir = trained
    reason = "this model takes the features {'cnn': 12, 'pixels': 6}, not pictures"
    for action in (
        lambda: model.save(tmp_path / "a", format="huggingface"),
        lambda: model.save(tmp_path / "a.npz", format="big_vision"),
        lambda: siglip_jax.load(workdir, image_size=(32, 32)),
    ):
        with pytest.raises(UserError, match=reason):
            action()
    assert not list(tmp_path.iterdir())


def test_a_step_is_planned_without_data():
    from siglip_jax.analysis.flops import dot_flops
    from siglip_jax.training import aot

    step = aot.build_step(make_config(**{"model.param_dtype": "bfloat16"}), devices=jax.devices()[:1])
    assert step.state["params"]["img"]["mean"].dtype == np.float32
    assert step.state["params"]["img"]["output"]["kernel"].dtype.name == "bfloat16"
    both = dot_flops(step.function, step.state, step.batch)
    module, _ = outline(make_config())
    text = dot_flops(
        lambda p, ids: module.apply({"params": p}, ids, method="encode_text"), step.state["params"], step.batch["text"]
    )
    # Nothing is differentiated by the inputs, and the projection not at all.
    adapter = 2 * BATCH * (18 * 10 + 2 * 18 * 16 + 2 * 18 * 6 + 3 * 16 * 6)
    loss = 3 * 2 * BATCH * BATCH * 16
    assert both == pytest.approx(3 * text + adapter + loss, rel=0.05)
