"""Which parameters are frozen, and that they cost neither moments nor a backward pass."""

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from siglip_jax.analysis import flops
from siglip_jax.errors import UserError
from siglip_jax.losses import sigmoid_loss
from siglip_jax.training.config import default_config
from siglip_jax.training.optimizer.adamw import make_optimizer
from siglip_jax.training.optimizer.freezing import FREEZE_PRESETS, check_freezing, frozen_parameters


def flatten(tree) -> dict:
    """{"img/embedding/kernel": array, ...}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def trained_names(model, preset, rules=()):
    config = default_config()
    config.optimizer.freeze, config.optimizer.freeze_rules = preset, tuple(rules)
    check_freezing(config, model.params)
    return {name for name, frozen in flatten(frozen_parameters(config, model.params)).items() if not frozen}


def test_freeze_presets(tiny_model):
    names = set(flatten(tiny_model.params))
    image = {name for name in names if name.startswith("img/")}
    embeddings = {
        "img/embedding/kernel",
        "img/embedding/bias",
        "img/pos_embedding",
        "txt/Embed_0/embedding",
        "txt/pos_embedding",
    }
    assert embeddings < names
    assert FREEZE_PRESETS.keys() == {"none", "image", "text", "embeddings", "heads"}
    assert trained_names(tiny_model, "none") == names
    assert trained_names(tiny_model, "image") == names - image
    assert trained_names(tiny_model, "text") == image | {"t", "b"}
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
        (
            {"freeze": "everything"},
            "freeze='everything'; expected one of none, image, text, embeddings",
        ),
        ({"freeze_rules": ((".*", True),)}, "freezes every parameter"),
        ({"freeze_rules": (("image/.*", True),)}, "'image/.*' matches no parameter; paths are such as b, img/"),
        ({"freeze_rules": (("img/(", True),)}, "no regular expression"),
        ({"freeze_rules": (("img/.*", "yes"),)}, "has the value 'yes'; expected True or False"),
        ({"freeze_rules": ("img/.*",)}, "expected pairs"),
    ],
    ids=str,
)
def test_faulty_freezing_is_refused(tiny_model, tiny_config, changes, message):
    tiny_config.optimizer.update(changes)
    with pytest.raises(UserError, match=message):
        check_freezing(tiny_config, tiny_model.params)


@pytest.mark.parametrize("preset", ["image", "heads"])
def test_what_is_frozen_has_no_moments(tiny_model, tiny_config, preset):
    tiny_config.optimizer.freeze = preset
    state = jax.eval_shape(make_optimizer(tiny_config).init, tiny_model.params)
    frozen = flatten(frozen_parameters(tiny_config, tiny_model.params))
    learning = [x for name, x in flatten(tiny_model.params).items() if not frozen[name]]
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    # Two moments each, and the counters.
    assert 0 <= held - 2 * sum(x.nbytes for x in learning) <= 16


def test_what_is_frozen_costs_no_backward_pass(tiny_model, tiny_config, random_batch, make_step):
    """A locked image tower runs forward alone: it saves twice its forward FLOPs but for the patches, which need no
    gradient of the pixels anyway."""
    batch, spent = random_batch(), {}
    for preset in ("none", "image", "heads"):
        tiny_config.optimizer.freeze = preset
        step, state = make_step(tiny_config)
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


def test_frozen_in_microbatches(tiny_model, tiny_config, random_batch, make_step):
    """A plain gradient step, without the optimiser's own mask: what is frozen has no gradient, t has the whole one."""
    tiny_config.optimizer.freeze, batch = "image", random_batch()
    step, state = make_step(tiny_config, optimizer=optax.sgd(0.1), microbatch=4)
    found = jax.device_get(step(state, batch)[0]["params"])
    jax.tree.map(np.testing.assert_array_equal, found["img"], tiny_model.params["img"])
    assert not np.array_equal(found["txt"]["head"]["kernel"], tiny_model.params["txt"]["head"]["kernel"])
    image = tiny_model.encode_image(tiny_model.preprocessing.to_float(batch["image"]))
    text, (t, b) = tiny_model.encode_text(batch["text"]), (tiny_model.params[name] for name in ("t", "b"))
    slope = jax.grad(lambda t: sigmoid_loss(image, text, t, b, groups=batch["group"]))(t)
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(found["t"], t - 0.1 * slope, rtol=1e-5)
