"""Frozen parameters, rates by tower and layer, the running mean, (t, b) fitted to the batch, the look at the start."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import siglip_jax
from siglip_jax.analysis import flops
from siglip_jax.errors import UserError
from siglip_jax.losses import sigmoid_loss
from siglip_jax.training import loop
from siglip_jax.training.config import (
    FINETUNE_DEFAULTS,
    check,
    default_config,
    finetune_config,
    flatten,
    unsuited_to_loaded_weights,
)
from siglip_jax.training.optimizer import ema
from siglip_jax.training.optimizer.adamw import make_optimizer, make_schedule
from siglip_jax.training.optimizer.freezing import FREEZE_PRESETS, check_freezing, frozen_parameters
from siglip_jax.training.optimizer.rates import check_rates, rate_multipliers
from siglip_jax.training.parallel.sharding import make_mesh, tree_shardings
from siglip_jax.training.param_rules import path_name
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.start import prepare_start, temperature
from siglip_jax.training.step import init_state, make_train_step


def named_leaves(tree) -> dict:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def batch_of(model, n=8, seed=0):
    rng, arch = np.random.default_rng(seed), model.architecture
    return {
        "image": rng.integers(0, 256, (n, *arch.image_size, 3), np.uint8),
        "text": rng.integers(0, arch.vocab_size, (n, arch.text_length), np.int32),
        "group": np.array([0, 0, *range(2, n)], np.int32),
    }


def make_step(model, config, *, optimizer=None, microbatch=0):
    optimizer = optimizer or make_optimizer(config)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    state = init_state(jax.tree.map(lambda x: jnp.asarray(x) + 0, model.params), optimizer, ema_decay=config.ema_decay)
    step, shardings = make_train_step(
        model.module,
        optimizer,
        to_float=model.preprocessing.to_float,
        mesh=mesh,
        state=state,
        schedule=make_schedule(config),
        frozen=frozen_parameters(config, state["params"]),
        ema_decay=config.ema_decay,
        microbatch=microbatch,
    )
    return step, jax.device_put(state, shardings)


class Batches:
    """Batch k is drawn from seed k."""

    def __init__(self, model, n=16):
        self.model, self.n, self.position = model, n, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return batch_of(self.model, self.n, seed=self.position)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


# --- freezing ---------------------------------------------------------------------------------------------------------


def trained_names(model, preset, rules=()):
    config = default_config()
    config.optimizer.freeze, config.optimizer.freeze_rules = preset, tuple(rules)
    check_freezing(config, model.params)
    return {name for name, frozen in named_leaves(frozen_parameters(config, model.params)).items() if not frozen}


def test_freeze_presets(tiny_model):
    names = set(named_leaves(tiny_model.params))
    image = {name for name in names if name.startswith("img/")}
    embeddings = {
        "img/embedding/kernel",
        "img/embedding/bias",
        "img/pos_embedding",
        "txt/Embed_0/embedding",
        "txt/pos_embedding",
    }
    assert embeddings < names
    assert FREEZE_PRESETS.keys() == {"none", "image", "embeddings", "heads"}
    assert trained_names(tiny_model, "none") == names
    assert trained_names(tiny_model, "image") == names - image
    assert trained_names(tiny_model, "embeddings") == names - embeddings
    heads = {name for name in names if name.startswith(("img/MAPHead_0/", "txt/head/"))}
    assert {"img/MAPHead_0/probe", "txt/head/kernel"} < heads
    assert trained_names(tiny_model, "heads") == heads | {"t", "b"}


def test_rules_come_before_the_preset(tiny_model):
    found = trained_names(
        tiny_model, "image", [("img/MAPHead_0/.*", False), ("t", True), ("img/MAPHead_0/probe", True)]
    )
    assert "img/MAPHead_0/probe" in found  # the first match wins
    assert "t" not in found
    assert "b" in found
    assert not any(name.startswith("img/Transformer") for name in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "everything"}, r"config.optimizer.freeze='everything'; expected one of none, image, embeddings"),
        ({"freeze_rules": ((".*", True),)}, "freezes every parameter"),
        ({"freeze_rules": (("image/.*", True),)}, "'image/.*' matches no parameter; paths are such as b, img/"),
        ({"freeze_rules": (("img/(", True),)}, "no regular expression"),
        ({"freeze_rules": (("img/.*", "yes"),)}, "has the value 'yes'; expected True or False"),
        ({"freeze_rules": ("img/.*",)}, "expected pairs"),
        ({"rate_rules": (("text/.*", 0.1),)}, "'text/.*' matches no parameter"),
        ({"rate_rules": (("txt/.*", -1.0),)}, "expected a number of 0 or more"),
    ],
    ids=str,
)
def test_faulty_tables_are_refused(tiny_model, tiny_config, changes, message):
    tiny_config.optimizer.update(changes)
    with pytest.raises(UserError, match=message):
        (check_rates if "rate_rules" in changes else check_freezing)(tiny_config, tiny_model.params)


@pytest.mark.parametrize("preset", ["image", "heads"])
def test_what_is_frozen_has_no_moments(tiny_model, tiny_config, preset):
    tiny_config.optimizer.freeze = preset
    state = jax.eval_shape(make_optimizer(tiny_config).init, tiny_model.params)
    frozen = named_leaves(frozen_parameters(tiny_config, tiny_model.params))
    learning = [x for name, x in named_leaves(tiny_model.params).items() if not frozen[name]]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    # Two moments each, and the counters.
    assert 0 <= held - 2 * sum(x.nbytes for x in learning) <= 16


def test_what_is_frozen_costs_no_backward_pass(tiny_model, tiny_config):
    """A locked image tower runs forward alone: it saves twice its forward FLOPs but for the patches, which need no
    gradient of the pixels anyway."""
    batch, spent = batch_of(tiny_model), {}
    for preset in ("none", "image", "heads"):
        tiny_config.optimizer.freeze = preset
        step, state = make_step(tiny_model, tiny_config)
        spent[preset] = flops.dot_flops(step, state, batch)
    arch = tiny_model.architecture
    pixels = tiny_model.preprocessing.to_float(batch["image"])

    def forward(params, x, method):
        return tiny_model.module.apply({"params": params}, x, method=method)

    image = flops.dot_flops(lambda p, x: forward(p, x, "encode_image"), tiny_model.params, pixels)
    text = flops.dot_flops(lambda p, x: forward(p, x, "encode_text"), tiny_model.params, batch["text"])
    tokens = 8 * arch.grid[0] * arch.grid[1]
    patches = 2 * tokens * 3 * arch.patch_size**2 * arch.image.width
    assert spent["none"] - spent["image"] == 2 * image - patches
    loss = spent["none"] - 3 * (image + text) + patches  # what is left: three products of the sigmoid loss
    assert loss == 6 * 8 * 8 * arch.embedding_dim
    # Both towers forward, and of the backward pass less than the heads' own.
    assert image + text + loss < spent["heads"] < image + text + loss + 0.5 * image


def test_frozen_in_microbatches(tiny_model, tiny_config):
    """A plain gradient step, without the optimiser's own mask: what is frozen has no gradient, t has the whole one."""
    tiny_config.optimizer.freeze, batch = "image", batch_of(tiny_model)
    step, state = make_step(tiny_model, tiny_config, optimizer=optax.sgd(0.1), microbatch=4)
    found = jax.device_get(step(state, batch)[0]["params"])
    jax.tree.map(np.testing.assert_array_equal, found["img"], tiny_model.params["img"])
    assert not np.array_equal(found["txt"]["head"]["kernel"], tiny_model.params["txt"]["head"]["kernel"])
    image = tiny_model.encode_image(tiny_model.preprocessing.to_float(batch["image"]))
    text, (t, b) = tiny_model.encode_text(batch["text"]), (tiny_model.params[name] for name in ("t", "b"))
    slope = jax.grad(lambda t: sigmoid_loss(image, text, t, b, groups=batch["group"]))(t)
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(found["t"], t - 0.1 * slope, rtol=1e-5)


# --- rates ------------------------------------------------------------------------------------------------------------


def test_rates_by_tower_layer_and_rule(tiny_model, tiny_config):
    options = tiny_config.optimizer
    options.image_rate, options.text_rate, options.layer_decay = 0.5, 0.1, 0.8
    options.rate_rules = ((".*/LayerNorm_0/scale", 0.0),)
    check_rates(tiny_config, tiny_model.params)
    found = named_leaves(rate_multipliers(tiny_config, tiny_model.params))
    shapes = {name: x.shape for name, x in named_leaves(tiny_model.params).items()}
    assert found.keys() == shapes.keys()
    expected = {  # two image layers, one text layer
        "img/embedding/kernel": 0.5 * 0.8**2,
        "img/pos_embedding": 0.5 * 0.8**2,
        "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": 0.5 * np.array([0.8, 1.0]),
        "img/Transformer/encoderblock/LayerNorm_0/scale": np.zeros(2),
        "img/Transformer/encoder_norm/scale": 0.5,
        "img/MAPHead_0/probe": 0.5,
        "txt/Embed_0/embedding": 0.1 * 0.8,
        "txt/pos_embedding": 0.1 * 0.8,
        "txt/Encoder_0/encoderblock/MlpBlock_0/Dense_1/bias": 0.1 * np.array([1.0]),
        "txt/Encoder_0/encoder_norm/bias": 0.1,
        "txt/head/kernel": 0.1,
        "t": 1.0,
        "b": 1.0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(np.ravel(found[name]), np.ravel(value), rtol=1e-6, err_msg=name)
        np.broadcast_shapes(found[name].shape, shapes[name])
    assert found["img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"].shape == (2, 1, 1)


def test_updates_against_adam_by_hand(tiny_model, tiny_config):
    """Two steps in float64: clipping over what learns, Adam, decay, rates by layer; the image tower locked."""
    options = tiny_config.optimizer
    options.layer_decay, options.text_rate, options.freeze, options.clip_norm = 0.7, 0.3, "image", 0.05
    params = tiny_model.params
    optimizer = make_optimizer(tiny_config)
    state, rng = optimizer.init(params), np.random.default_rng(0)
    update = jax.jit(optimizer.update)
    moments = dict.fromkeys(named_leaves(params), (0.0, 0.0))
    schedule = make_schedule(tiny_config)
    depth_of = {"txt/Embed_0/embedding": 0.7, "txt/pos_embedding": 0.7}
    for number in range(2):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 1e-2, params)
        updates, state = update(gradients, state, params)
        given = {k: np.asarray(v, np.float64) for k, v in named_leaves(gradients).items() if not k.startswith("img/")}
        norm = math.sqrt(sum((g**2).sum() for g in given.values()))
        assert norm > options.clip_norm
        for name, found in named_leaves(updates).items():
            if name.startswith("img/"):
                assert not np.any(found)
                continue
            g = given[name] * options.clip_norm / norm
            m, v = moments[name]
            m, v = options.b1 * m + (1 - options.b1) * g, options.b2 * v + (1 - options.b2) * g**2
            moments[name] = m, v
            direction = (m / (1 - options.b1 ** (number + 1))) / (np.sqrt(v / (1 - options.b2 ** (number + 1))) + 1e-8)
            if name.endswith(("kernel", "embedding")):
                direction = direction + options.weight_decay * np.asarray(named_leaves(params)[name], np.float64)
            rate = (0.3 if name.startswith("txt/") else 1.0) * depth_of.get(name, 1.0)
            expected = -float(schedule(number)) * rate * direction
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-9, err_msg=name)


def test_plain_settings_are_plain_adamw(tiny_model, tiny_config):
    options = tiny_config.optimizer
    from siglip_jax.training.optimizer.adamw import DECAY_RULES
    from siglip_jax.training.param_rules import match_rules

    plain = optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            make_schedule(tiny_config),
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
            mask=lambda params: match_rules(DECAY_RULES, params),
        ),
    )
    params = {"img": {"MAPHead_0": tiny_model.params["img"]["MAPHead_0"]}, "t": tiny_model.params["t"]}
    gradients, ends = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), params), []
    for optimizer in (plain, make_optimizer(tiny_config)):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = jax.jit(optimizer.update)(gradients, state, params)
        ends.append(updates)
    jax.tree.map(np.testing.assert_array_equal, *ends)


# --- the running mean -------------------------------------------------------------------------------------------------


def test_what_is_frozen_stays_and_the_mean_is_that_of_float64(tiny_model, tiny_config):
    tiny_config.ema_decay, tiny_config.optimizer.freeze = 0.7, "image"
    step, state = make_step(tiny_model, tiny_config)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny_model.params)
    for seed in range(6):
        state, metrics = step(state, batch_of(tiny_model, seed=seed))
        expected = jax.tree.map(lambda m, x: 0.7 * m + 0.3 * np.asarray(x, np.float64), expected, state["params"])
    assert metrics["gradient_norm"] > 0
    before, after, mean = (named_leaves(tree) for tree in (tiny_model.params, state["params"], ema.evaluated(state)))
    for name, value in named_leaves(expected).items():
        np.testing.assert_allclose(mean[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        still = name.startswith("img/")
        assert np.array_equal(before[name], after[name]) == still, name
        assert np.array_equal(before[name], mean[name]) == still, name
    assert abs(mean["t"] - after["t"]) > 1e-4


def test_running_mean_is_float32_and_sharded_as_the_parameters(tiny_model, tiny_config):
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tiny_model.params)
    state = jax.eval_shape(lambda p: init_state(p, make_optimizer(tiny_config), ema_decay=0.9), half)
    assert {x.dtype for x in jax.tree.leaves(state["ema"])} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(ema.evaluated, state))} == {jnp.dtype("bfloat16")}
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    shardings = tree_shardings(state, mesh)
    assert jax.tree.leaves(shardings["ema"]) == jax.tree.leaves(shardings["params"])
    assert any(any(s.spec) for s in jax.tree.leaves(shardings["ema"]))


def test_the_mean_is_what_a_run_hands_back_and_resumes(tiny_model, tiny_config, tmp_path):
    config = tiny_config
    config.steps, config.checkpoint_every, config.ema_decay, config.optimizer.freeze = 6, 3, 0.5, "image"
    seen = {}

    def evaluate(step, params):
        seen[step] = np.asarray(params["t"])
        return {}

    whole = loop.train(
        config, model=tiny_model, batches=Batches(tiny_model), workdir=tmp_path / "a", evaluators=[evaluate]
    )

    class Killed(Exception):
        pass

    class Short(Batches):
        def __next__(self):
            if self.position == 4:
                raise Killed
            return super().__next__()

    with pytest.raises(Killed):
        loop.train(config, model=tiny_model, batches=Short(tiny_model), workdir=tmp_path / "b")
    resumed = loop.train(config, model=tiny_model, batches=Batches(tiny_model), workdir=tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert seen.keys() == {3, 6}
    assert seen[6] == whole.params["t"]
    loaded = siglip_jax.load(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole.params)


# --- t and b ----------------------------------------------------------------------------------------------------------


def embeddings(n=48, d=12, *, noise, seed=0, titles=40):
    """Pairs that belong together up to noise; some titles occur twice."""
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(titles), np.arange(n - titles)]).astype(np.int32)
    text = rng.normal(size=(titles, d))[groups]
    image = text + noise * rng.normal(size=(n, d))
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)]
    return unit[0], unit[1], groups


@pytest.mark.parametrize("same_group", ["positive", "ignore"])
def test_losses_are_those_of_the_library(same_group):
    image, text, groups = embeddings(noise=1.0)
    pairs = temperature.labelled(image, text, groups, same_group=same_group)
    expected = sigmoid_loss(image, text, np.log(7.0), -2.0, groups=groups, same_group=same_group)
    np.testing.assert_allclose(pairs.losses(7.0, -2.0).mean(), expected, rtol=1e-5)
    if same_group == "positive":
        found = temperature.Histogram.of([pairs])
        np.testing.assert_allclose(found.loss(7.0, -2.0), expected, rtol=1e-5)


def test_ignored_pairs_are_in_no_histogram():
    image, text, groups = embeddings(noise=1.0)
    pairs = temperature.labelled(image, text, groups, same_group="ignore")
    found = temperature.Histogram.of([pairs])
    assert found.positives[1].sum() == 48
    assert found.negatives[1].sum() == 48 * 48 - 48 - 16  # 8 titles occur twice
    np.testing.assert_allclose(found.loss(7.0, -2.0), pairs.losses(7.0, -2.0).mean(), rtol=1e-6)


def test_fit_against_newton_on_the_exact_similarities():
    batches = [temperature.labelled(*embeddings(noise=1.5, seed=seed)) for seed in range(3)]
    scale, bias = temperature.fit(temperature.Histogram.of(batches), scale=10.0, which="both")
    x = np.concatenate([batch.similarity.ravel() for batch in batches])
    y = np.concatenate([batch.positive.ravel() for batch in batches]).astype(np.float64)
    at, features = np.array([1.0, -2.0]), np.stack([x, np.ones_like(x)])
    for _ in range(50):  # logistic regression
        p = 1 / (1 + np.exp(-(at @ features)))
        at = at - np.linalg.solve((features * p * (1 - p)) @ features.T, features @ (p - y))
    assert 1 < at[0] < 200
    np.testing.assert_allclose([scale, bias], at, rtol=1e-4)
    kept, bias = temperature.fit(temperature.Histogram.of(batches), scale=10.0, which="bias")
    assert kept == 10.0
    p = 1 / (1 + np.exp(-(10 * x + bias)))
    np.testing.assert_allclose(p.sum(), y.sum(), rtol=1e-4)  # the derivative by b is zero


@pytest.mark.parametrize("n", [4, 64, 1024])
def test_bias_of_pairs_that_say_nothing_is_the_prior(n):
    """open_clip #650: b near log(p / (1 - p)) with p = 1 / batch, shifted by what all similarities share."""
    image = np.tile(np.array([[0.6, 0.8]], np.float32), (n, 1))
    text = np.tile(np.array([[1.0, 0.0]], np.float32), (n, 1))
    found = temperature.Histogram.of([temperature.labelled(image, text, np.arange(n))])
    scale, bias = temperature.fit(found, scale=10.0, which="bias")
    p = 1 / n
    np.testing.assert_allclose(bias, math.log(p / (1 - p)) - scale * 0.6, rtol=1e-5)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p)) * n
    np.testing.assert_allclose([found.loss(scale, bias), found.constant_loss()], entropy, rtol=1e-6)


def test_a_scale_stays_within_bounds():
    perfect = temperature.Histogram.of([temperature.labelled(*embeddings(n=16, titles=16, noise=0.0))])
    scale, _ = temperature.fit(perfect, scale=10.0, which="both")
    assert scale == pytest.approx(200, rel=1e-6)
    image, text, groups = embeddings(noise=0.5)
    opposed = temperature.Histogram.of([temperature.labelled(-image, text, groups)])
    scale, _ = temperature.fit(opposed, scale=10.0, which="both")
    assert scale == pytest.approx(1, rel=1e-6)


def test_large_batches_are_sampled(monkeypatch):
    image, text, groups = embeddings(n=64, titles=50, noise=1.0)
    monkeypatch.setattr(temperature, "MAX_PAIRS", 64 * 16)
    pairs = temperature.labelled(image, text, groups)
    whole = image.astype(np.float64) @ text.astype(np.float64).T
    np.testing.assert_array_equal(pairs.similarity, whole[::4])
    np.testing.assert_array_equal(pairs.positive, (groups[:, None] == groups)[::4])


def test_batches_of_one_title_cannot_be_fitted():
    image, text, _ = embeddings(noise=1.0)
    found = temperature.Histogram.of([temperature.labelled(image, text, np.zeros(48, np.int32))])
    with pytest.raises(ValueError, match="no positive or no negative"):
        temperature.fit(found, scale=10.0, which="bias")


# --- the defaults -----------------------------------------------------------------------------------------------------


def test_finetune_config_is_the_default_but_for_its_table():
    plain, tuned = flatten(default_config()), flatten(finetune_config("somewhere"))
    changed = {name: value for name, value in tuned.items() if value != plain[name]}
    assert changed == {name: x for name, x in {**FINETUNE_DEFAULTS, "init": "somewhere"}.items() if x != plain[name]}
    assert tuned["optimizer.weight_decay"] == 0
    assert (tuned["optimizer.learning_rate"], tuned["refit_temperature"]) == (1e-4, "bias")  # as measured
    assert finetune_config("somewhere").is_locked
    check(finetune_config("somewhere"))
    with pytest.raises(UserError, match="no model to start from"):
        finetune_config("")


def test_settings_for_random_weights_are_called_out():
    config = default_config()
    assert unsuited_to_loaded_weights(config) == [
        "optimizer.learning_rate=0.001 (0.0001)",
        "optimizer.weight_decay=0.1 (0.0)",
    ]
    assert unsuited_to_loaded_weights(finetune_config("somewhere")) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 1.0},
        {"refit_temperature": "all"},
        {"optimizer.layer_decay": 0.0},
        {"optimizer.image_rate": -0.1},
        {"optimizer.text_rate": -0.1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(tiny_config, changes):
    tiny_config.update_from_flattened_dict(changes)
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"config.{name}={value!r}; expected"):
        check(tiny_config)


# --- the start --------------------------------------------------------------------------------------------------------


def record_of(pairs, *, scale, bias):
    found = temperature.Histogram.of(pairs)
    return {
        "rows": found.rows,
        "constant_loss": found.constant_loss(),
        "after": {"loss": found.loss(scale, bias)},
        **prepare_start.compare_with_shuffled(pairs, scale=scale, bias=bias),
    }


def test_a_start_that_works_and_broken_ones():
    working = [temperature.labelled(*embeddings(noise=0.7, seed=seed)) for seed in range(4)]
    scale, bias = temperature.fit(temperature.Histogram.of(working), scale=10.0, which="both")
    assert prepare_start.complaints(record_of(working, scale=scale, bias=bias), refit="both") == []
    # A bias learned at a batch of 32,768.
    (said,) = prepare_start.complaints(record_of(working, scale=scale, bias=-20.0), refit="none")
    assert said.startswith("t and b do not fit this batch size")
    assert "refit_temperature to bias or both" in said
    (said,) = prepare_start.complaints(
        record_of(working, scale=10 * scale, bias=bias), refit="bias"
    )  # too sure of itself
    assert "refit_temperature to both" in said
    broken = []
    for seed in range(4):
        image, text, groups = embeddings(noise=0.7, seed=seed)
        broken.append(temperature.labelled(image, np.roll(text, 5, axis=0), groups))
    for b in (bias, -20.0):
        (said,) = prepare_start.complaints(record_of(broken, scale=scale, bias=b), refit="both")
        assert said.startswith("the start looks broken")


def test_shuffled_pairs_against_shuffled_titles():
    image, text, groups = embeddings(noise=0.7)
    found = temperature.labelled(image, text, groups).shuffled().losses(5.0, -3.0)
    moved = np.roll(np.arange(48), 24)  # the title of row j plays the part of that of row moved[j]
    logits = 5 * image.astype(np.float64) @ text.astype(np.float64).T - 3
    positive = groups[:, None] == groups[moved]
    expected = np.logaddexp(0, np.where(positive, -logits, logits)).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_loaded_start_is_looked_at_fitted_and_recorded_once(tiny_model, tiny_config, tmp_path):
    config = tiny_config
    config.init, config.refit_temperature = "somewhere", "both"
    config.steps, config.checkpoint_every, config.log_every = 4, 2, 1
    config.optimizer.learning_rate = 1e-9
    steps = []

    def evaluate(step, params):
        steps.append(step)
        return {"score": float(params["t"][0])}

    batches = Batches(tiny_model)
    with pytest.warns(prepare_start.StartWarning) as said:
        trained = loop.train(config, model=tiny_model, batches=batches, workdir=tmp_path / "run", evaluators=[evaluate])
    messages = [str(warning.message) for warning in said]
    assert messages[0].startswith("the start looks broken")  # random weights know nothing
    assert "optimizer.weight_decay=0.1 (0.0)" in messages[1]
    found = json.loads((tmp_path / "run" / "start.json").read_text())
    assert (found["batches"], found["rows"]) == (8, 128)
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["before"]["b"] == tiny_model.params["b"][0]
    np.testing.assert_allclose(trained.params["b"], found["after"]["b"], atol=1e-5)
    assert steps == [0, 2, 4]
    lines = read_metrics(tmp_path / "run")
    assert lines[0] == {"step": 0, "score": float(np.float32(found["after"]["t"]))}
    # The run began with the batches that were looked at, and those losses are the start's.
    assert batches.position == 4
    first = batch_of(tiny_model, 16, seed=1)
    fitted = {name: np.float32([found["after"][name]]) for name in ("t", "b")}
    z = tiny_model.encode_image(tiny_model.preprocessing.to_float(first["image"]))
    w = tiny_model.encode_text(first["text"])
    expected = sigmoid_loss(z, w, fitted["t"], fitted["b"], groups=first["group"])
    np.testing.assert_allclose(lines[1]["loss"], expected, rtol=1e-4)

    # Continued, it neither looks nor fits again.
    config.steps = 4
    (tmp_path / "run" / "start.json").unlink()
    again = loop.train(config, model=tiny_model, batches=Batches(tiny_model), workdir=tmp_path / "run")
    assert not (tmp_path / "run" / "start.json").exists()
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)


def test_what_a_loaded_model_does_not_take_from_the_config_is_said(tiny_model, tiny_config):
    assert prepare_start.not_of_the_loaded_model(tiny_config, tiny_model) == []
    assert prepare_start.not_of_the_loaded_model(default_config(), tiny_model) == []  # asks for nothing in particular
    tiny_config.preprocessing.image_size = (24, 16)
    tiny_config.preprocessing.lowercase = "ascii"
    tiny_config.model.text.width = 32
    said = prepare_start.not_of_the_loaded_model(tiny_config, tiny_model)
    assert said[:2] == [
        "config.preprocessing.image_size=(24, 16) is not used, (16, 16) is",
        "config.preprocessing.lowercase=ascii is not used, unicode is",
    ]
    assert said[2].startswith("config.model.text={")
    assert len(said) == 3


def test_a_run_says_so(tiny_model, tiny_config, tmp_path):
    tiny_config.init, tiny_config.steps = "somewhere", 3
    tiny_config.preprocessing.image_size = (24, 24)
    with pytest.warns(
        prepare_start.StartWarning, match=r"image_size=\(24, 24\) is not used, \(16, 16\) is; siglip-jax convert"
    ):
        loop.train(tiny_config, model=tiny_model, batches=Batches(tiny_model), workdir=tmp_path / "run")


def test_loaded_t_and_b_are_kept(tiny_model, tiny_config, tmp_path):
    params = {**tiny_model.params, "t": np.float32([1.25]), "b": np.float32([-3.5])}
    tiny_model.replace(params=params).save(tmp_path / "model")
    from tools.workflow.training import start_model

    tiny_config.init = str(tmp_path / "model")
    loaded = start_model(tiny_config, "unread")
    assert loaded.params["t"].tolist() == [1.25]
    assert loaded.params["b"].tolist() == [-3.5]
