"""Micro-batched towers around one loss against the unbroken batch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.analysis.flops import dot_flops
from siglip_jax.losses.reference import dense_sigmoid_loss
from siglip_jax.training.parallel.microbatch import value_and_grad_in_microbatches

ROWS, MICRO = 12, 3


def small_towers(rng, width=5):
    params = {
        "img": {"kernel": rng.normal(size=(7, width)), "out": rng.normal(size=(width, 4))},
        "txt": {"kernel": rng.normal(size=(6, width)), "out": rng.normal(size=(width, 4))},
        "t": np.full(1, 1.0),
        "b": np.full(1, -2.0),
    }
    batch = {"image": rng.normal(size=(ROWS, 7)), "text": rng.normal(size=(ROWS, 6))}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch))


def encode(params, batch, key):
    """Two layers a tower, with dropout between them."""

    def tower(name, x, key):
        hidden = jnp.tanh(x @ params[name]["kernel"])
        if key is not None:
            hidden *= jax.random.bernoulli(key, 0.7, hidden.shape) / 0.7
        out = hidden @ params[name]["out"]
        return out / jnp.linalg.norm(out, axis=-1, keepdims=True)

    keys = (None, None) if key is None else jax.random.split(key)
    return tower("img", batch["image"], keys[0]), tower("txt", batch["text"], keys[1])


def loss(params, embeddings, batch):
    return dense_sigmoid_loss(*embeddings, params["t"], params["b"])


@pytest.mark.parametrize("seed", [None, 3])
def test_every_gradient_is_that_of_the_unbroken_batch(seed):
    params, batch = small_towers(np.random.default_rng(0))
    key = None if seed is None else jax.random.key(seed)

    def unbroken(params):
        pieces = [jax.tree.map(lambda x, i=i: x[i : i + MICRO], batch) for i in range(0, ROWS, MICRO)]
        keys = [None if key is None else jax.random.fold_in(key, number) for number in range(len(pieces))]
        parts = [encode(params, piece, k) for piece, k in zip(pieces, keys, strict=True)]
        return loss(params, jax.tree.map(lambda *x: jnp.concatenate(x), *parts), batch)

    expected, gradients = jax.jit(jax.value_and_grad(unbroken))(params)
    found = jax.jit(value_and_grad_in_microbatches(encode, loss, microbatch=MICRO))(params, batch, key)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), found[1], gradients)
    if key is not None:  # the masks matter, or the test would not see that they are repeated
        other = value_and_grad_in_microbatches(encode, loss, microbatch=MICRO)(params, batch, None)
        assert abs(float(other[0] - expected)) > 1e-3


@pytest.mark.parametrize("microbatch", [0, 5, 24])
def test_rows_that_do_not_divide(microbatch):
    params, batch = small_towers(np.random.default_rng(0))
    with pytest.raises(ValueError, match=rf"microbatch={microbatch}; expected a divisor"):
        value_and_grad_in_microbatches(encode, loss, microbatch=microbatch)(params, batch)


def test_activations_of_one_microbatch_are_all_there_is():
    """256 rows of 4,096 hidden values in two towers are 8 MiB; 16 rows are 0.5."""
    params, batch = small_towers(np.random.default_rng(0), width=4096)
    batch = jax.tree.map(lambda x: jnp.tile(x, (64, 1))[:256], batch)
    whole = jax.jit(jax.value_and_grad(lambda p, b: loss(p, encode(p, b, None), b)))
    cut = jax.jit(value_and_grad_in_microbatches(encode, loss, microbatch=16))
    sizes = [f.lower(params, batch).compile().memory_analysis().temp_size_in_bytes / 2**20 for f in (whole, cut)]
    assert sizes[0] > 8
    assert sizes[1] < 2.5  # and the gradients of the parameters, 0.35


def test_one_microbatch_costs_no_second_forward_pass():
    params, batch = small_towers(np.random.default_rng(0))
    whole = dot_flops(jax.value_and_grad(lambda p, b: loss(p, encode(p, b, None), b)), params, batch)
    flops = [
        dot_flops(value_and_grad_in_microbatches(encode, loss, microbatch=rows), params, batch)
        for rows in (ROWS, MICRO)
    ]
    assert flops[0] == whole < flops[1]


# Eight devices: the same gradients, and rows that never leave their device.
SHARDED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from siglip_jax.analysis.hlo import collectives
from siglip_jax.losses import sigmoid_loss
from siglip_jax.training.parallel.microbatch import value_and_grad_in_microbatches
from siglip_jax.training.parallel.sharding import BATCH_AXES, make_mesh

rng = np.random.default_rng(0)
params = {"kernel": rng.normal(size=(5, 4)), "t": np.ones(1), "b": -np.ones(1)}
params = jax.tree.map(lambda x: x.astype(np.float32), params)
batch = rng.normal(size=(2, 48, 5)).astype(np.float32)

def encode(params, batch, key):
    outputs = (jnp.tanh(x @ params["kernel"]) for x in batch)
    return tuple(y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in outputs)

found = []
for sizes, microbatch in (((1, 1, 1), 48), ((8, 1, 1), 2), ((2, 2, 2), 3)):
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes)), devices)
    loss = lambda p, e, batch: sigmoid_loss(*e, p["t"], p["b"], mesh=mesh, axis=BATCH_AXES, communication="ring")
    step = jax.jit(value_and_grad_in_microbatches(encode, loss, microbatch=microbatch, mesh=mesh, axis=BATCH_AXES))
    rows = tuple(jax.device_put(x, NamedSharding(mesh, P(BATCH_AXES))) for x in batch)
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    value, gradients = step(whole, rows)
    kinds = {c.kind for c in collectives(step.lower(whole, rows).compile().as_text())}
    arrays = (value, *(gradients[name] for name in ("kernel", "t", "b")))
    found.append([*(np.asarray(a).tolist() for a in arrays), sorted(kinds)])
print(json.dumps(found))
"""


def test_on_eight_devices_nothing_but_the_ring_moves(python):
    done = python(SHARDED, devices=8)
    assert done.returncode == 0, done.stderr
    one, *several = json.loads(done.stdout)
    for other in several:
        for a, b in zip(one[:-1], other[:-1], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
        # Sums of the loss and of the parameters' gradients, the ring; no row is gathered.
        assert set(other[-1]) == {"all-reduce", "collective-permute"}
