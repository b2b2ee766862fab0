"""Terms beside the loss of the pairs: in a step, in micro-batches, on several devices, in the loop."""

import json

import jax
import numpy as np
import optax
import pytest

from siglip_jax.errors import UserError
from siglip_jax.training import loop
from siglip_jax.training.config import check, default_config
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.terms import NO_TERMS, Terms

TERMS = Terms(teacher={"cosine": 2.0, "mse": 0.5, "similarity": 3.0}, prefixes={4: 0.5, 8: 1.0})


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def taught_batch(random_batch, tiny_model):
    """taught_batch(n=8, seed=0) -> a random batch with a random teacher."""

    def batch(n: int = 8, seed: int = 0) -> dict:
        teacher = np.random.default_rng(seed + 1000).normal(size=(n, tiny_model.architecture.embedding_dim))
        return random_batch(n, seed) | {"teacher": unit(teacher).astype(np.float32)}

    return batch


def by_hand(model, batch):
    """The metrics of TERMS for an untouched model, float64."""
    pixels = (batch["image"].astype(np.float64) / 127.5 - 1).astype(np.float32)
    image, text = (x.astype(np.float64) for x in (model.encode_image(pixels), model.encode_text(batch["text"])))
    t, b = (float(np.asarray(model.params[name])[0]) for name in ("t", "b"))
    sign = np.where(batch["group"][:, None] == batch["group"], 1, -1)

    def loss(image, text):
        return np.logaddexp(0, -sign * (np.exp(t) * image @ text.T + b)).sum() / len(image)

    u = batch["teacher"].astype(np.float64)
    found = {
        "loss": loss(image, text),
        "teacher_cosine": np.mean(1 - np.sum(image * u, axis=1)),
        "teacher_mse": np.mean(np.sum((image - u) ** 2, axis=1)),
        "teacher_similarity": np.mean((image @ image.T - u @ u.T) ** 2),
        "matryoshka_4": loss(unit(image[:, :4]), unit(text[:, :4])),
        "matryoshka_8": loss(unit(image[:, :8]), unit(text[:, :8])),
    }
    weights = {"loss": 1.0, "teacher_cosine": 2.0, "teacher_mse": 0.5, "teacher_similarity": 3.0}
    weights |= {"matryoshka_4": 0.5, "matryoshka_8": 1.0}
    return found | {"total": sum(weights[name] * value for name, value in found.items())}


@pytest.mark.parametrize("microbatch", [0, 2])
def test_a_step_logs_each_term_and_minimises_their_sum(tiny_model, tiny_config, taught_batch, make_step, microbatch):
    batch = taught_batch()
    step, state = make_step(tiny_config, optimizer=optax.sgd(0.05), terms=TERMS, microbatch=microbatch)
    totals = []
    for _ in range(8):
        state, metrics = step(state, batch)
        totals.append(metrics)
    for name, value in by_hand(tiny_model, batch).items():
        np.testing.assert_allclose(totals[0][name], value, rtol=2e-5, err_msg=name)
    assert totals[-1]["total"] < 0.8 * totals[0]["total"]


def test_microbatches_give_the_same_parameters(tiny_config, taught_batch, make_step):
    batch, ends = taught_batch(), []
    for microbatch in (0, 2):
        step, state = make_step(tiny_config, optimizer=optax.sgd(0.05), terms=TERMS, microbatch=microbatch)
        for _ in range(3):
            state, _ = step(state, batch)
        ends.append(jax.device_get(state["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


def test_weights_of_zero_are_no_terms(tiny_config, random_batch, taught_batch, make_step, tiny_model):
    config = tiny_config
    assert Terms.of(config, embedding_dim=16) == NO_TERMS
    config.teacher.store, config.teacher.cosine = "unread", 0.0
    config.matryoshka.widths, config.matryoshka.weights = (4, 8), (0.0, 0.0)
    terms = Terms.of(config, embedding_dim=16)
    assert terms.batch_keys == ()
    ends = []
    for options in ({}, {"terms": terms}):
        step, state = make_step(config, **options)
        for _ in range(3):
            state, metrics = step(state, random_batch())
        ends.append((jax.device_get(state["params"]), {name: float(value) for name, value in metrics.items()}))
    assert ends[0][1] == ends[1][1]
    assert ends[0][1].keys() == {"loss", "gradient_norm", "learning_rate", "temperature", "bias"}
    jax.tree.map(np.testing.assert_array_equal, ends[0][0], ends[1][0])


def test_impossible_prefixes_are_refused(tiny_config):
    tiny_config.matryoshka.widths, tiny_config.matryoshka.weights = (8, 16), (1.0, 1.0)
    with pytest.raises(UserError, match=r"widths=\(8, 16\): 16 is no prefix of embeddings of 16 numbers"):
        Terms.of(tiny_config, embedding_dim=16)
    config = default_config()
    config.matryoshka.widths = (8, 16)
    with pytest.raises(UserError, match="2 widths and 0 weights; expected a weight for each width"):
        check(config)


def test_the_loop_trains_with_a_teacher_and_names_its_absence(
    tiny_model, tiny_config, RandomBatches, taught_batch, tmp_path
):
    config = tiny_config
    config.batch_size, config.steps, config.checkpoint_every = 8, 3, 3
    config.teacher.cosine, config.matryoshka.widths, config.matryoshka.weights = 2.0, (4,), (0.5,)

    class Taught(RandomBatches):
        def __next__(self):
            self.position += 1
            return taught_batch(self.n, seed=self.position)

    loop.train(config, model=tiny_model, batches=Taught(8), workdir=tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert len(lines) == 3
    for line in lines:
        parts = line["loss"] + 2 * line["teacher_cosine"] + 0.5 * line["matryoshka_4"]
        assert line["total"] == pytest.approx(parts, rel=1e-5)
    with pytest.raises(UserError, match=r"a batch of image, text, group has no teacher; .*config\.teacher has weights"):
        loop.train(config, model=tiny_model, batches=RandomBatches(8), workdir=tmp_path / "other")


MESHES = """
import json, runpy, sys
import jax, numpy as np
from siglip_jax import model as models
from siglip_jax.training import aot
from siglip_jax.training.optimizer.adamw import make_optimizer
from siglip_jax.training.parallel.sharding import to_devices, tree_shardings
from siglip_jax.training.start.spec import outline
from siglip_jax.training.step import init_state

config = runpy.run_path(sys.argv[1])["get_config"]()
config.teacher.update(cosine=2.0, similarity=3.0)
config.matryoshka.update(widths=(4, 8), weights=(0.5, 1.0))
start = jax.device_get(models.init(outline(config)[0], None, seed=0).params)
rng = np.random.default_rng(0)
teacher = rng.normal(size=(16, 16))
batch = {
    "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "text": rng.integers(0, 400, (16, 8), np.int32),
    "group": np.array([0, 0, *range(2, 16)], np.int32),
    "teacher": (teacher / np.linalg.norm(teacher, axis=1, keepdims=True)).astype(np.float32),
}
for *sizes, microbatch in ((1, 1, 1, 0), (2, 1, 1, 4), (2, 2, 2, 2)):
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes)))
    config.microbatch = microbatch
    step = aot.build_step(config, devices=jax.devices()[: int(np.prod(sizes))])
    assert step.batch["teacher"].shape == (16, 16)
    shardings = tree_shardings(step.state, step.mesh)
    state = jax.jit(lambda p: init_state(p, make_optimizer(config)), out_shardings=shardings)(start)
    for _ in range(4):
        state, metrics = step.function(state, to_devices(batch, step.mesh))
    print(json.dumps({name: float(value) for name, value in metrics.items()}))
"""


@pytest.mark.slow
def test_several_devices_are_one(python, config_file):
    done = python(MESHES, config_file, devices=8)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    one, *others = map(json.loads, done.stdout.splitlines())
    assert {"teacher_cosine", "teacher_similarity", "matryoshka_4", "matryoshka_8", "total"} < one.keys()
    for other in others:
        assert other.keys() == one.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=2e-5), name
