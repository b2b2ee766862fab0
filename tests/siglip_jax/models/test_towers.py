"""The towers against the real big_vision, and the options that must not change what they compute."""

import collections
import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.losses import sigmoid_loss
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import ImageTower, TwoTowers
from siglip_jax.models.transformer import REMAT_POLICIES
from siglip_jax.preprocessing import Patches

ARCHITECTURES = {
    "loop": Architecture(
        image_size=(32, 32),
        patch_size=8,
        image=TowerSize(width=48, depth=3, mlp_dim=96, heads=4),
        text=TowerSize(width=48, depth=2, mlp_dim=96, heads=4),
        vocab_size=211,
        text_length=16,
    ),
    "scan": Architecture(
        image_size=(48, 48),
        patch_size=16,
        image=TowerSize(width=64, depth=2, mlp_dim=160, heads=4),
        text=TowerSize(width=64, depth=3, mlp_dim=160, heads=4),
        vocab_size=307,
        text_length=12,
    ),
}
TINY = Architecture(
    image_size=(16, 24),
    patch_size=8,
    image=TowerSize(width=16, depth=3, mlp_dim=32, heads=2),
    text=TowerSize(width=24, depth=2, mlp_dim=32, heads=2),
    vocab_size=50,
    text_length=6,
)


def read_big_vision(path) -> dict:
    """A big_vision .npz as our tree; layers kept one by one (encoderblock_0, ...) are stacked."""
    flat = {}
    layers = collections.defaultdict(dict)
    with np.load(path) as stored:
        for key in stored.files:
            name = key.removeprefix("params/")
            head, mark, tail = name.partition("encoderblock_")
            if mark:
                number, _, rest = tail.partition("/")
                layers[f"{head}encoderblock/{rest}"][int(number)] = stored[key]
            else:
                flat[name] = stored[key]
    for name, found in layers.items():
        flat[name] = np.stack([found[number] for number in range(len(found))])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def shapes(tree) -> dict:
    return {name: np.shape(leaf) for name, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def example(architecture, n=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (n, *architecture.image_size, 3)).astype(np.float32)
    return image, rng.integers(0, architecture.vocab_size, (n, architecture.text_length), np.int32)


def random_params(module, *inputs):
    """Random weights, with no zero among biases and no one among scales."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_big_vision(golden, name):
    params = read_big_vision(golden / f"big_vision_siglip_{name}.weights.npz")
    with np.load(golden / f"big_vision_siglip_{name}.io.npz") as stored:
        expected = dict(stored)
    module = TwoTowers(ARCHITECTURES[name])

    @jax.jit
    def outputs(params, image, text):
        zimg, ztxt, t, b = module.apply({"params": params}, image, text)
        return zimg, ztxt, jnp.exp(t) * zimg @ ztxt.T + b, sigmoid_loss(zimg, ztxt, t, b)

    zimg, ztxt, logits, loss = outputs(params, expected["image"], expected["text"])
    np.testing.assert_allclose(zimg, expected["zimg"], atol=1e-5)
    np.testing.assert_allclose(ztxt, expected["ztxt"], atol=1e-5)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_names_are_big_visions(golden, name):
    architecture = ARCHITECTURES[name]
    ours = jax.eval_shape(lambda: TwoTowers(architecture).init(jax.random.key(0), *example(architecture))["params"])
    assert shapes(ours) == shapes(read_big_vision(golden / f"big_vision_siglip_{name}.weights.npz"))


def image_tower(**options):
    return ImageTower(TINY.image, TINY.patch_size, TINY.grid, **options)


def outputs_and_gradients(module):
    image, _ = example(TINY)
    params = random_params(module, image)
    weights = np.random.default_rng(4).normal(size=(len(image), TINY.embedding_dim)).astype(np.float32)

    @jax.jit
    def both(params):
        def scalar(params):
            z = module.apply({"params": params}, image)
            return (weights * z).sum(), z

        return jax.value_and_grad(scalar, has_aux=True)(params)

    return both(params)


@pytest.fixture(scope="module")
def plain():
    return outputs_and_gradients(image_tower())


@pytest.mark.parametrize(
    "options",
    [{"remat": "full"}, {"remat": "dots"}, {"remat": "dots_no_batch"}, {"unroll": 2}, {"remat": "full", "unroll": 8}],
    ids=str,
)
def test_remat_and_unroll_change_nothing(plain, options):
    assert options.get("remat", "none") in REMAT_POLICIES
    found = outputs_and_gradients(image_tower(**options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain)


def equations(jaxpr):
    """Every equation, those of inner functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def traced(**options):
    """All equations of both towers."""
    module = TwoTowers(TINY, **options)
    inputs = example(TINY)
    params = random_params(module, *inputs)
    return list(equations(jax.make_jaxpr(lambda p: module.apply({"params": p}, *inputs))(params).jaxpr))


def test_remat_and_unroll_reach_both_towers():
    def remats(found):
        return sum("policy" in e.params and "prevent_cse" in e.params for e in found)

    def unrolls(found):
        return [e.params["unroll"] for e in found if e.primitive.name == "scan"]

    assert (remats(traced()), unrolls(traced())) == (0, [1, 1])
    assert remats(traced(remat="dots")) == 2
    assert unrolls(traced(unroll=8)) == [3, 2]  # no more than there are layers


def test_bfloat16_computes_close_to_float32():
    inputs = example(TINY)
    params = random_params(TwoTowers(TINY), *inputs)
    exact, rounded = (
        jax.jit(TwoTowers(TINY, dtype=d).apply)({"params": params}, *inputs) for d in ("float32", "bfloat16")
    )
    for z, reference in zip(rounded[:2], exact[:2], strict=True):
        assert z.dtype == jnp.float32  # what leaves the towers is normalised in float32
        assert np.sum(np.asarray(z) * np.asarray(reference), axis=1).min() > 0.999
        assert not np.array_equal(z, reference)


def test_layer_norm_and_softmax_are_float32_under_bfloat16():
    found = traced(dtype="bfloat16")

    def input_types(*primitives):
        return [e.invars[0].aval.dtype.name for e in found if e.primitive.name in primitives]

    # Norms: two in the body of each scan, the final one of each tower, and one in the pooling head.
    assert input_types("rsqrt") == ["float32"] * (2 + 1 + 2 + 1 + 1)
    assert input_types("exp") == ["float32"] * 3  # the softmax of each scan's body and of the pooling head
    assert input_types("conv_general_dilated") == ["bfloat16"]
    assert "bfloat16" in input_types("dot_general")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (16, 7)}, "image_size .*smaller than patch_size 8"),
        ({"text_head": False}, "without a text head both towers need one width"),
        ({"naflex": 1}, "naflex=1; expected true or false"),
        ({"image": TowerSize(width=16, depth=1, mlp_dim=8, heads=3)}, "image.width 16 .*heads 3"),
        ({"image": TowerSize(width=16, depth=1, mlp_dim=8, heads=0)}, "heads=0.*from 1 to"),
        ({"text": TowerSize(width=16, depth=0, mlp_dim=8, heads=2)}, "depth=0.*from 1 to"),
        ({"text": TowerSize(width=10, depth=1, mlp_dim=8, heads=4)}, "text.width 10 .*heads 4"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    fields = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    with pytest.raises(UserError, match=message):
        Architecture(**(fields | changes))


def test_architecture_json():
    fields = TINY.to_json()
    assert Architecture.from_json(fields) == TINY
    for broken in ({**fields, "depth": 3}, {k: v for k, v in fields.items() if k != "text"}, {**fields, "image": {}}):
        with pytest.raises(UserError, match="not an architecture"):
            Architecture.from_json(broken)


def test_unknown_remat_is_refused():
    with pytest.raises(UserError, match="remat='most'; expected one of none, full"):
        jax.eval_shape(lambda: TwoTowers(TINY, remat="most").init(jax.random.key(0), *example(TINY)))


def _naflex() -> tuple[Architecture, Patches]:
    rng = np.random.default_rng(0)
    patches = Patches(rng.normal(size=(3, 6, 192)).astype(np.float32), np.array([[2, 3], [1, 4], [2, 1]], np.int32))
    return dataclasses.replace(TINY, naflex=True), patches


@pytest.mark.parametrize("naflex", [False, True])
@pytest.mark.slow
def test_towers_go_on_from_what_a_part_of_them_made(naflex):
    rng = np.random.default_rng(1)
    architecture, image = _naflex() if naflex else (TINY, rng.normal(size=(3, 16, 24, 3)).astype(np.float32))
    module = TwoTowers(architecture)
    batch = {"image": image, "text": rng.integers(0, 50, (3, 6))}
    params = jax.jit(module.init)(jax.random.key(0), batch["image"], batch["text"])["params"]
    image, text, _, _ = module.apply({"params": params}, batch["image"], batch["text"])
    for keys in (("image_embedding", "text_pooled"), ("image_tokens", "text_embedding")):
        stored = module.apply({"params": params}, batch, keys, method="store")
        assert set(stored) - {"image_shape"} == set(keys)
        assert ("image_shape" in stored) == (naflex and "image_tokens" in keys)
        for name in ("image", "text"):
            only = module.apply({"params": params}, {name: batch[name]}, keys, method="store")
            assert set(only) == {key for key in stored if key.startswith(name)}
        again = module.apply({"params": params}, stored, method="encode_batch")
        np.testing.assert_allclose(again[0], image, rtol=0, atol=1e-6)
        np.testing.assert_allclose(again[1], text, rtol=0, atol=1e-6)
