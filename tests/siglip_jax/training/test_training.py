"""Rules, mesh, optimiser and step against formulas; several devices against one."""

import itertools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing
from siglip_jax.training import loop
from siglip_jax.training.optimizer.adamw import DECAY_RULES, make_optimizer, make_schedule
from siglip_jax.training.parallel.sharding import make_mesh, to_devices, tree_shardings
from siglip_jax.training.param_rules import match_rules, path_name
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.step import init_state, make_train_step


def named_leaves(tree) -> dict:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# --- rules and mesh ---------------------------------------------------------------------------------------------------


def test_first_match_wins_over_the_whole_path():
    tree = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 0}, "t": 0}
    rules = [("a/kernel", 1), (".*/kernel", 2), ("kernel|t", 3), (".*", 4)]
    assert match_rules(rules, tree) == {"a": {"kernel": 1, "bias": 4}, "b": {"kernel": 2}, "t": 3}


def test_uncovered_parameters_are_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"no rule covers a/bias, t;"):
        match_rules([(".*/kernel", None)], {"a": {"kernel": 0, "bias": 0}, "t": 0})


def test_a_rule_may_give_none():
    assert match_rules([("a", None), (".*", 1)], {"a": 0, "b": 0}) == {"a": None, "b": 1}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((4, 2, 1), (4, 2, 1)), ((1, 1, -1), (1, 1, 8))],
)
def test_mesh(sizes, shape):
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices=list(range(8)))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert mesh.devices.ravel().tolist() == list(range(8))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (16, 1, 1), (0, 1, 1), (-1, 16, 1), (-2, -2, 2)])
def test_meshes_that_do_not_fit(sizes):
    asked = "data={}, fsdp={}, tensor={}".format(*sizes)
    with pytest.raises(UserError, match=f"config.mesh: {asked} does not fit 8 devices"):
        make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices=list(range(8)))


def test_batches_of_patches_travel_whole():
    """And are made into floats on the device as on the host."""
    value = Preprocessing(image_size=(2, 2), resize="naflex", patch_size=2, max_patches=6)
    images = [np.full((2 * rows, 2 * columns, 3), 40 * rows, np.uint8) for rows, columns in ((1, 1), (2, 3), (3, 2))]
    patches = value.batch(images)
    batch = to_devices({"image": patches, "group": np.arange(3)}, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
    assert isinstance(batch["image"], Patches)
    expected, found = value.to_float(patches), jax.jit(value.to_float)(batch["image"])
    np.testing.assert_allclose(found.pixels, expected.pixels, atol=1e-6)
    np.testing.assert_array_equal(found.shape, [[1, 1], [2, 3], [3, 2]])


def test_parameters_and_moments_are_sharded_alike(tiny_model, tiny_config):
    state = jax.eval_shape(lambda: init_state(tiny_model.params, make_optimizer(tiny_config)))
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    specs = {name: tuple(s.spec) for name, s in named_leaves(tree_shardings(state, mesh)).items()}
    attention = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    expected = {
        attention: (None, "fsdp", "tensor", None),
        "txt/Encoder_0/encoderblock/MlpBlock_0/Dense_1/kernel": (None, "tensor", "fsdp"),
        "t": (),
        "img/MAPHead_0/probe": (),
    }
    for name, spec in expected.items():
        found = {n: s for n, s in specs.items() if n.endswith(f"/{name}")}
        assert len(found) == 3  # parameter and two moments
        assert set(found.values()) == {spec}
    assert specs["step"] == ()


def test_what_an_axis_does_not_divide_is_not_sharded():
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    leaf = jax.ShapeDtypeStruct((6, 8), jnp.float32)
    rules = [(".*", PartitionSpec("fsdp", "tensor"))]
    assert tuple(tree_shardings({"x": leaf}, mesh, rules)["x"].spec) == (None, "tensor")


# --- optimiser --------------------------------------------------------------------------------------------------------


def test_decay_covers_every_parameter_and_only_matrices(tiny_model):
    mask = named_leaves(match_rules(DECAY_RULES, tiny_model.params))
    assert mask.keys() == named_leaves(tiny_model.params).keys()
    decayed = {name for name, decays in mask.items() if decays}
    last = {name.rpartition("/")[2] for name in decayed}
    assert last == {"kernel", "embedding", "pos_embedding", "probe"}
    assert {name.rpartition("/")[2] for name in mask.keys() - decayed} == {"bias", "scale", "t", "b"}


def test_a_step_without_gradient_only_decays(tiny_config):
    """AdamW: p - rate * decay * p for the matrices, and nothing else moves."""
    optimizer = make_optimizer(tiny_config)
    names = ("Dense_0/kernel", "Dense_0/bias", "LayerNorm_0/scale", "Embed_0/embedding", "pos_embedding", "probe")
    rng = np.random.default_rng(0)
    params = flax.traverse_util.unflatten_dict(
        {name: rng.normal(size=3).astype(np.float32) for name in (*(f"img/{name}" for name in names), "t", "b")},
        sep="/",
    )
    update = jax.jit(optimizer.update)
    zeros = jax.tree.map(np.zeros_like, params)
    _, state = update(zeros, optimizer.init(params), params)  # the rate is 0 at the first step of the warm-up
    updates, _ = update(zeros, state, params)
    rate = tiny_config.optimizer.learning_rate / tiny_config.optimizer.warmup_steps
    for name, found in named_leaves(updates).items():
        decays = name.endswith(("kernel", "embedding", "probe"))
        expected = -rate * tiny_config.optimizer.weight_decay * decays * named_leaves(params)[name].astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_learning_rate(tiny_config):
    config = tiny_config
    config.steps, config.optimizer.warmup_steps, config.optimizer.final_fraction = 110, 10, 0.2
    peak = config.optimizer.learning_rate
    schedule = make_schedule(config)
    for step in (0, 3, 9, 10, 40, 60, 109, 110, 200):
        done = min((step - 10) / 100, 1)
        cosine = 0.2 + 0.8 * (1 + np.cos(np.pi * done)) / 2
        expected = peak * (step / 10 if step < 10 else cosine)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-12)


# --- step -------------------------------------------------------------------------------------------------------------


def make_step(model, config, *, optimizer=None, **options):
    optimizer = optimizer or make_optimizer(config)
    state = jax.jit(lambda p: init_state(jax.tree.map(lambda x: x + 0, p), optimizer))(model.params)
    step, shardings = make_train_step(
        model.module,
        optimizer,
        to_float=model.preprocessing.to_float,
        mesh=make_mesh(config.mesh, devices=jax.devices()[:1]),
        state=state,
        schedule=make_schedule(config),
        **options,
    )
    return step, jax.device_put(state, shardings)


def one_batch(model, n=8):
    rng = np.random.default_rng(0)
    arch = model.architecture
    return {
        "image": rng.integers(0, 256, (n, *arch.image_size, 3), np.uint8),
        "text": rng.integers(0, arch.vocab_size, (n, arch.text_length), np.int32),
        "group": np.array([0, 0, *range(2, n)], np.int32),
    }


def logits_of(model, batch):
    pixels = (batch["image"].astype(np.float64) / 127.5 - 1).astype(np.float32)
    return model.logits(model.encode_image(pixels), model.encode_text(batch["text"])).astype(np.float64)


def loss_by_hand(model, batch, *, same_group):
    """Rows 0 and 1 of `one_batch` share a title."""
    pair, same = np.eye(8, dtype=bool), batch["group"][:, None] == batch["group"]
    positive = same if same_group == "positive" else pair
    losses = np.logaddexp(0, np.where(positive, -1, 1) * logits_of(model, batch))
    return losses[positive | ~same].sum() / 8


def test_step_learns_one_batch_by_heart_and_compiles_once(tiny_model, tiny_config):
    config = tiny_config
    config.steps, config.optimizer.learning_rate = 60, 1e-2
    batch = one_batch(tiny_model)
    step, state = make_step(tiny_model, config, same_group="ignore")
    losses, rates = [], []
    for number in range(60):
        old = state["params"]["t"]
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        rates.append(float(metrics["learning_rate"]))
        assert int(state["step"]) == number + 1
        assert old.is_deleted()  # the state is donated: two copies would not fit
    assert step._cache_size() == 1
    np.testing.assert_allclose(rates, [float(make_schedule(config)(k)) for k in range(60)], rtol=1e-5)
    assert losses[-1] < 0.25 * losses[0]
    np.testing.assert_allclose(losses[0], loss_by_hand(tiny_model, batch, same_group="ignore"), rtol=1e-5)
    # A learned pair is nearer than any other.
    trained = tiny_model.replace(params=jax.device_get(state["params"]))
    logits = logits_of(trained, batch)
    assert (logits.argmax(axis=1)[2:] == np.arange(8)[2:]).all()


def test_steps_in_microbatches_are_those_of_the_whole_batch(tiny_model, tiny_config):
    """With plain gradient steps: Adam would blow up the rounding of gradients that are zero but for it."""
    batch, ends = one_batch(tiny_model), []
    for microbatch in (0, 2):
        step, state = make_step(tiny_model, tiny_config, optimizer=optax.sgd(0.1), microbatch=microbatch)
        for _ in range(4):
            state, metrics = step(state, batch)
        ends.append((jax.device_get(state["params"]), metrics))
    (whole, metrics), (cut, metrics_cut) = ends
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics_cut[name], metrics[name], rtol=1e-5)
    assert abs(whole["t"] - tiny_model.params["t"]) > 0.01  # something was learned
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), cut, whole)


# --- the loop ---------------------------------------------------------------------------------------------------------


def losses_of(workdir) -> list[float]:
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def test_a_tiny_run_learns(trained_workdir):
    losses = losses_of(trained_workdir)
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


TRAIN = "import sys; from siglip_jax.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mesh.data": 8, "microbatch": 1}, marks=pytest.mark.slow),
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
    ],
    ids=str,
)
def test_eight_devices_learn_as_one(trained_workdir, config_file, shop_dataset, python, tmp_path, changes):
    sizes = [f"--config.{field}={value}" for field, value in changes.items()]
    flags = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={tmp_path / 'run'}"]
    done = python(TRAIN, *flags, *sizes, devices=8)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(trained_workdir), rtol=1e-5)


class Batches:
    """The same batch for ever."""

    def __init__(self, model, n=8):
        self.batch, self.position = one_batch(model, n), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return self.batch

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def test_a_loss_that_is_not_finite_names_the_step_and_saves_nothing(tiny_model, tiny_config, tmp_path):
    config = tiny_config
    config.batch_size, config.steps, config.checkpoint_every, config.log_every = 8, 5, 2, 100
    bias = np.array([np.nan], np.float32)
    broken = tiny_model.replace(params=tiny_model.params | {"b": bias})
    with pytest.raises(UserError, match=r"step 1: the loss is nan; lower config\.optimizer\.learning_rate .*none yet"):
        loop.train(config, model=broken, batches=Batches(tiny_model), workdir=tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_evaluators_are_called_at_every_checkpoint(tiny_model, tiny_config, tmp_path):
    config = tiny_config
    config.batch_size, config.steps, config.checkpoint_every, config.log_every = 8, 5, 2, 100
    called = []

    def evaluate(step, params):
        called.append((step, float(params["t"][0])))
        return {"score": step / 10}

    trained = loop.train(
        config, model=tiny_model, batches=Batches(tiny_model), workdir=tmp_path / "run", evaluators=[evaluate]
    )
    assert [step for step, _ in called] == [2, 4, 5]
    assert called[-1][1] == trained.params["t"][0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["score"]) for line in lines if "score" in line] == [(2, 0.2), (4, 0.4), (5, 0.5)]
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert logged.keys() == {1, 5}
    expected = loss_by_hand(tiny_model, one_batch(tiny_model), same_group="positive")  # of the untouched model
    np.testing.assert_allclose(logged[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "config.steps=0"),
        ({"batch_size": 0}, "config.batch_size=0"),
        ({"log_every": 0}, "config.log_every=0"),
        ({"optimizer.warmup_steps": 20}, "warmup_steps=20 is not below config.steps=20"),
        ({"mesh.fsdp": 3}, "does not fit"),
        ({"microbatch": -1}, "config.microbatch=-1"),
        ({"microbatch": 5}, "config.microbatch=5 does not divide the 16 rows"),
    ],
    ids=str,
)
def test_impossible_configs_are_refused(tiny_model, tiny_config, tmp_path, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        loop.train(tiny_config, model=tiny_model, batches=itertools.repeat({}), workdir=tmp_path / "run")
