"""Weights of every format: equal outputs to the references, every tensor there and back, every damage refused."""

import dataclasses
import io
import json
import math
import zipfile

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

import siglip_jax
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import TwoTowers, parameter_shapes
from siglip_jax.preprocessing import Patches
from siglip_jax.weights import big_vision, huggingface_names
from siglip_jax.weights.formats import written_formats
from siglip_jax.weights.stored_model import LAYOUTS

SOURCES = {
    "loop": "big_vision_siglip_loop.weights.npz",
    "scan": "big_vision_siglip_scan.weights.npz",
    "siglip": "hf_siglip",
    "naflex": "hf_siglip2_naflex",
}


def architecture(**changes) -> Architecture:
    fields = dict(
        image_size=(16, 16),
        patch_size=8,
        image=TowerSize(width=12, depth=2, mlp_dim=20, heads=3),
        text=TowerSize(width=12, depth=3, mlp_dim=28, heads=2),
        vocab_size=37,
        text_length=5,
    )
    return Architecture(**(fields | changes))


def random_model(seed=0, dtype=np.float32, **changes) -> Model:
    module = TwoTowers(architecture(**changes), param_dtype=np.dtype(dtype).name)
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(module.architecture)
    return Model(module=module, params=jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), shapes))


def flat(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in flax.traverse_util.flatten_dict(params, sep="/").items()}


def assert_bits_equal(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def npz(path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def load(path, **options) -> Model:
    return siglip_jax.load(path, param_dtype="stored", **options)


# --- the references ---------------------------------------------------------------------------------------------------


def reference(golden, name):
    """Inputs and outputs of a reference implementation, under one set of names."""
    if name in ("loop", "scan"):
        return npz(golden / f"big_vision_siglip_{name}.io.npz")
    stored = npz(golden / SOURCES[name] / "io.npz")
    image = stored["pixel_values"].transpose(0, 2, 3, 1) if name == "siglip" else None
    if name == "naflex":
        image = Patches(stored["pixel_values"], stored["spatial_shapes"])
        np.testing.assert_array_equal(image.mask, stored["pixel_attention_mask"])
    return {
        "image": image,
        "text": stored["input_ids"],
        "zimg": stored["image_embeds"],
        "ztxt": stored["text_embeds"],
        "logits": stored["logits_per_image"],
        "loss": stored["loss"],
    }


@pytest.mark.parametrize("name", SOURCES)
def test_equals_the_reference(golden, name):
    expected = reference(golden, name)
    model = siglip_jax.load(golden / SOURCES[name])
    zimg, ztxt = model.encode_image(expected["image"]), model.encode_text(expected["text"])
    np.testing.assert_allclose(zimg, expected["zimg"], atol=1e-5)
    np.testing.assert_allclose(ztxt, expected["ztxt"], atol=1e-5)
    logits = model.logits(zimg, ztxt)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)
    signs = 2 * np.eye(len(logits)) - 1
    loss = np.logaddexp(0, -signs * logits.astype(np.float64)).sum() / len(logits)
    assert loss == pytest.approx(float(expected["loss"]), rel=1e-5)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["stacked", "layers"])
@pytest.mark.parametrize("name", SOURCES)
def test_round_trips_keep_every_bit(golden, tmp_path, name, layout):
    start = load(golden / SOURCES[name])
    start.save(tmp_path / "a.npz", format="big_vision", layout=layout)
    load(tmp_path / "a.npz").save(tmp_path / "b", format="huggingface")
    load(tmp_path / "b").save(tmp_path / "c")
    end = load(tmp_path / "c")
    assert end.architecture == start.architecture
    assert_bits_equal(end.params, start.params)


@pytest.mark.parametrize(("name", "layout"), [("loop", "layers"), ("scan", "stacked")])
def test_big_vision_files_come_back_as_they_were(golden, tmp_path, name, layout):
    original = npz(golden / SOURCES[name])
    load(golden / SOURCES[name]).save(tmp_path / "again.npz", format="big_vision", layout=layout)
    assert_bits_equal(npz(tmp_path / "again.npz"), original)
    big_vision.write_params(load(golden / SOURCES[name]).params, tmp_path / "bare.npz", layout=layout, prefix="")
    assert_bits_equal(npz(tmp_path / "bare.npz"), {k.removeprefix("params/"): v for k, v in original.items()})
    assert_bits_equal(load(tmp_path / "bare.npz").params, load(golden / SOURCES[name]).params)


@pytest.mark.parametrize("name", ["siglip", "naflex"])
def test_huggingface_folders_come_back_as_they_were(golden, tmp_path, name):
    load(golden / SOURCES[name]).save(tmp_path / "native")
    load(tmp_path / "native").save(tmp_path / "again", format="huggingface")
    original, again = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (golden / SOURCES[name], tmp_path / "again")
    )
    assert_bits_equal(again, original)
    stored, written = (
        json.loads((folder / "config.json").read_text()) for folder in (golden / SOURCES[name], tmp_path / "again")
    )
    for tower in ("text_config", "vision_config"):
        ignored = ("bos_token_id", "eos_token_id")  # CLIP's, which transformers never reads here
        assert {k: v for k, v in written[tower].items() if k not in ignored} == {
            k: v for k, v in stored[tower].items() if k not in ignored
        }
    assert {k: written[k] for k in ("architectures", "model_type", "dtype")} == {
        k: stored[k] for k in ("architectures", "model_type", "dtype")
    }


sizes = st.builds(
    lambda heads, head_dim, depth, mlp_dim: TowerSize(
        width=heads * head_dim, depth=depth, mlp_dim=mlp_dim, heads=heads
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
)


@settings(max_examples=25, deadline=None)
@given(
    image=sizes,
    text=sizes,
    patch=st.integers(1, 3),
    grid=st.integers(1, 3),
    naflex=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_architecture_round_trips(tmp_path_factory, image, text, patch, grid, naflex, layout):
    arch = architecture(image_size=(grid * patch,) * 2, patch_size=patch, image=image, text=text, naflex=naflex)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), parameter_shapes(arch))
    state = huggingface_names.to_state_dict(params, arch)
    back = huggingface_names.from_state_dict(state, arch, parameter_shapes(arch), source="test")
    assert_bits_equal(back, params)
    path = tmp_path_factory.mktemp("any") / "w.npz"
    big_vision.write_params(params, path, layout=layout)
    again = big_vision.read_params(path)
    assert_bits_equal(again, params)
    assert big_vision.architecture_of(again) == arch


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_keeps_every_bit(tmp_path, dtype):
    start = random_model(dtype=dtype)
    start.save(tmp_path / "a.npz", format="big_vision")
    if dtype == ml_dtypes.bfloat16:
        assert all(value.dtype == np.dtype("V2") for value in npz(tmp_path / "a.npz").values())
    load(tmp_path / "a.npz").save(tmp_path / "b", format="huggingface")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == np.dtype(dtype).name
    load(tmp_path / "b").save(tmp_path / "c")
    end = load(tmp_path / "c")
    assert_bits_equal(end.params, start.params)
    assert end.module.param_dtype == np.dtype(dtype).name
    widened = siglip_jax.load(tmp_path / "c")  # float32 unless asked otherwise
    assert {x.dtype.name for x in flat(widened.params).values()} == {"float32"}
    np.testing.assert_array_equal(widened.params["img"]["pos_embedding"], start.params["img"]["pos_embedding"])


def test_parameter_and_compute_types_are_chosen_apart(tmp_path):
    random_model().save(tmp_path)
    model = siglip_jax.load(tmp_path, dtype="float32", param_dtype="bfloat16")
    types = {name: x.dtype.name for name, x in flat(model.params).items()}
    assert {name for name, kind in types.items() if kind == "float32"} == {"t", "b"}
    assert set(types.values()) == {"float32", "bfloat16"}
    z = model.encode_image(np.zeros((1, 16, 16, 3), np.float32))
    assert np.linalg.norm(z) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("format", written_formats())
def test_the_exact_gelu_is_kept_or_said_to_be_lost(tmp_path, format, tower):
    size = dataclasses.replace(getattr(architecture(), tower), gelu="exact")
    model = random_model(**{tower: size})
    path = tmp_path / ("model.npz" if format == "big_vision" else "model")
    lost = model.save(path, format=format)
    back = load(path)
    if format == "big_vision":
        assert lost == ["the exact GELU; big_vision computes it by tanh, and so will whoever reads the .npz"]
        assert back.architecture == architecture()
    else:
        assert back.architecture == model.architecture
    assert_bits_equal(back.params, model.params)


def test_an_unknown_gelu_is_refused():
    with pytest.raises(UserError, match="gelu='fast'; expected one of tanh, exact"):
        architecture(text=TowerSize(width=12, depth=1, mlp_dim=20, heads=3, gelu="fast"))


def test_a_head_of_identity_is_no_head(tmp_path):
    start = random_model(text_head=False)
    start.save(tmp_path / "hf", format="huggingface")
    state = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    np.testing.assert_array_equal(state["text_model.head.weight"], np.eye(12))
    assert not state["text_model.head.bias"].any()
    back = load(tmp_path / "hf")
    assert not back.architecture.text_head
    assert_bits_equal(back.params, start.params)
    state["text_model.head.weight"][0, 1] = 1e-3  # fine-tuned: no longer an identity
    safetensors.numpy.save_file(state, tmp_path / "hf" / "model.safetensors")
    tuned = load(tmp_path / "hf")
    assert tuned.architecture.text_head
    ids = np.arange(10).reshape(2, 5)
    assert not np.allclose(tuned.encode_text(ids), start.encode_text(ids), atol=1e-6)


def test_two_widths_meet_in_the_text_head(tmp_path):
    start = random_model(
        text=TowerSize(width=8, depth=1, mlp_dim=10, heads=2)
    )  # as g-opt's, whose text tower is So400m
    start.save(tmp_path / "hf", format="huggingface")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]["projection_size"] == 12
    back = load(tmp_path / "hf")
    assert_bits_equal(back.params, start.params)
    assert back.encode_text(np.zeros((1, 5), int)).shape == (1, 12)


def test_a_doubled_position_embedding_becomes_the_sum(golden, tmp_path):
    stored = npz(golden / SOURCES["loop"])
    extra = np.random.default_rng(0).normal(size=stored["params/txt/pos_embedding"].shape).astype(np.float32)
    np.savez(tmp_path / "old.npz", **stored, **{"params/txt/Encoder_0/pos_embedding": extra})
    model = load(tmp_path / "old.npz")
    expected = stored["params/txt/pos_embedding"] + extra
    np.testing.assert_array_equal(model.params["txt"]["pos_embedding"], expected)
    model.save(tmp_path / "new.npz", format="big_vision", layout="layers")
    new = npz(tmp_path / "new.npz")
    assert new.keys() == stored.keys()
    np.testing.assert_array_equal(new["params/txt/pos_embedding"], expected)


def test_optimiser_state_is_left_out(golden, tmp_path):
    stored = npz(golden / SOURCES["scan"])
    np.savez(tmp_path / "training.npz", **stored, **{"opt/0/count": np.ones(1, np.float32)})
    assert_bits_equal(load(tmp_path / "training.npz").params, load(golden / SOURCES["scan"]).params)
    np.savez(tmp_path / "odd.npz", **stored, **{"other/kernel": np.ones(1, np.float32)})
    with pytest.raises(UserError, match="other/kernel beside params/"):
        load(tmp_path / "odd.npz")


def test_several_files_and_old_buffers(golden, tmp_path):
    state = safetensors.numpy.load_file(golden / "hf_siglip" / "model.safetensors")
    state["text_model.embeddings.position_ids"] = np.arange(16)[None]
    names = sorted(state)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        safetensors.numpy.save_file({k: state[k] for k in names if where[k] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (tmp_path / "config.json").write_text((golden / "hf_siglip" / "config.json").read_text())
    assert_bits_equal(load(tmp_path).params, load(golden / "hf_siglip").params)
    for broken, message in (
        ({**where, "t": "model-00003-of-00002.safetensors"}, "missing, though the index names it"),
        ({**where, "t": "../x.safetensors"}, "not a .safetensors file beside it"),
        ({**where, "logit": where["logit_bias"]}, "does not fit model-0000.-of-00002.safetensors at logit"),
        ([], "not an index"),
    ):
        index.write_text(json.dumps({"weight_map": broken}))
        with pytest.raises(UserError, match=message):
            load(tmp_path)


def test_config_defaults_are_those_of_transformers():
    """What the published config.json of siglip-base-patch16-224 leaves out."""
    config = {"model_type": "siglip", "text_config": {"model_type": "siglip_text_model"}, "vision_config": {}}
    from siglip_jax.models.presets import PRESETS
    from siglip_jax.weights.huggingface import architecture_of

    found = architecture_of(config, text_head=True, source="test")
    assert found == PRESETS["google/siglip-base-patch16-224"].architecture


# --- refusals ---------------------------------------------------------------------------------------------------------


def rewritten(golden, tmp_path, change) -> epath.Path:
    """A copy of the Hugging Face folder with its tensors changed."""
    state = safetensors.numpy.load_file(golden / "hf_siglip" / "model.safetensors")
    change(state)
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden / "hf_siglip" / "config.json").read_text())
    return tmp_path


def test_every_wrong_key_is_listed(golden, tmp_path):
    def change(state):
        del state["logit_bias"], state["text_model.head.bias"]
        state["vision_model.extra"] = np.zeros(1, np.float32)
        state["vision_model.post_layernorm.weight"] = np.zeros(5, np.float32)

    with pytest.raises(UserError) as error:
        load(rewritten(golden, tmp_path, change))
    for part in (
        "4 keys differ",
        "missing logit_bias",
        "missing text_model.head.bias",
        "extra vision_model.extra",
        "vision_model.post_layernorm.weight is [5], expected [48]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", SOURCES)
def test_not_finite_weights_are_refused(golden, tmp_path, name, bad):
    model = load(golden / SOURCES[name])
    params = jax.tree.map(np.array, model.params)
    params["txt"]["Encoder_0"]["encoderblock"]["MlpBlock_0"]["Dense_1"]["kernel"][1, 2, 3] = bad
    for format, path in (("native", "a"), ("huggingface", "b"), ("big_vision", "c.npz")):
        model.replace(params=params).save(tmp_path / path, format=format)
        with pytest.raises(UserError, match="MlpBlock_0/Dense_1/kernel holds NaN or infinity"):
            load(tmp_path / path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip_vision_model"}, "is one tower; expected both"),
        ({"model_type": "clip"}, "model_type is 'clip'; expected siglip or siglip2"),
        ({"vision_config": {"num_attention_heads": 5}}, "image.width 48 .*heads 5"),
        ({"vision_config": {"num_hidden_layers": 2}}, "extra vision_model.encoder.layers.2"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act is 'quick_gelu'; SigLIP has 'gelu_pytorch_tanh'"),
        ({"vision_config": {"vision_use_head": False}}, "vision_use_head is False"),
        ({"vision_config": {"image_size": "big"}}, "image_size"),
        ({"text_config": {"projection_size": 40}}, "projection_size is 40.* 48 dimensions"),
        ({"text_config": {"layer_norm_eps": 1e-5}}, "layer_norm_eps"),
        ({"text_config": []}, "projection_size is 768"),
    ],
)
def test_wrong_configs_are_refused(golden, tmp_path, changes, message):
    folder = rewritten(golden, tmp_path, lambda state: None)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_config_is_refused(golden, tmp_path, text):
    folder = rewritten(golden, tmp_path, lambda state: None)
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: not a JSON object"):
        load(folder)


def test_one_tower_is_refused(golden, tmp_path):
    stored = npz(golden / SOURCES["scan"])
    for tower, kept in (("image", "params/txt"), ("text", "params/img")):
        np.savez(tmp_path / "one.npz", **{k: v for k, v in stored.items() if k.startswith(kept)})
        with pytest.raises(UserError, match=f"no {tower} tower"):
            load(tmp_path / "one.npz")
    np.savez(tmp_path / "none.npz", **{k: v for k, v in stored.items() if k != "params/t"})
    with pytest.raises(UserError, match="missing t"):
        load(tmp_path / "none.npz")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["scan", "siglip"])
def test_truncated_files_are_refused(golden, tmp_path, name, fraction):
    if name == "scan":
        data, path = (golden / SOURCES[name]).read_bytes(), tmp_path / "w.npz"
        target = path
    else:
        folder = rewritten(golden, tmp_path, lambda state: None)
        path, target = folder / "model.safetensors", folder
        data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"not a complete (\.npz|safetensors)"):
        load(target)


def test_tampered_npz_is_refused(golden, tmp_path):
    data = bytearray((golden / SOURCES["scan"]).read_bytes())
    data[len(data) // 2] ^= 0xFF  # the zip's checksum tells
    (tmp_path / "w.npz").write_bytes(data)
    with pytest.raises(UserError, match="not a complete"):
        load(tmp_path / "w.npz")


def test_pickles_are_never_read(golden, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    stored = npz(golden / SOURCES["scan"]) | {"params/t": np.array([Trap()], object)}
    np.savez(tmp_path / "trap.npz", **stored)
    with pytest.raises(UserError, match=r"not a complete \.npz of arrays"):
        load(tmp_path / "trap.npz")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which is never read; convert it"):
        load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(big_vision, "MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(10_000, np.float32))
    with pytest.raises(UserError, match=r"unpacks to .* GiB; the limit"):
        load(tmp_path / "bomb.npz")


def test_layers_that_do_not_stack_are_refused(golden, tmp_path):
    stored = npz(golden / SOURCES["loop"])
    name = "params/img/Transformer/encoderblock_1/LayerNorm_0/bias"
    np.savez(tmp_path / "gap.npz", **{k: v for k, v in stored.items() if k != name})
    with pytest.raises(UserError, match=r"LayerNorm_0/bias are \[0, 2\]"):
        load(tmp_path / "gap.npz")
    np.savez(tmp_path / "shape.npz", **(stored | {name: np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match="expected 0, 1"):
        load(tmp_path / "shape.npz")
    np.savez(tmp_path / "ints.npz", **(stored | {"params/t": np.zeros(1, np.int32)}))
    with pytest.raises(UserError, match="params/t holds int32"):
        load(tmp_path / "ints.npz")


def test_a_lying_header_is_refused(golden, tmp_path):
    """A member whose .npy header promises more than it holds."""
    with zipfile.ZipFile(golden / SOURCES["scan"]) as source, zipfile.ZipFile(tmp_path / "w.npz", "w") as target:
        for entry in source.namelist():
            data = source.read(entry)
            if entry == "params/txt/pos_embedding.npy":
                buffer = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)}
                )
                data = buffer.getvalue() + bytes(64)
            target.writestr(entry, data)
    with pytest.raises(UserError, match=r"not a complete \.npz|limit"):
        load(tmp_path / "w.npz")


def test_places_without_a_model_are_refused(tmp_path):
    (tmp_path / "model.txt").write_text("x")
    for path, message in (
        (tmp_path / "none", "not found; expected a preset"),
        ("google/siglip3-base", "not found; expected a preset"),
        (tmp_path / "model.txt", r"a \.txt file of no known format; expected .*, a big_vision \.npz"),
        (tmp_path, "a folder of no known format; expected .*config.json with model.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            load(path)
    with pytest.raises(UserError, match="weights= goes with a preset"):
        load(tmp_path, weights=tmp_path)
    for option in ({"param_dtype": "int8"}, {"position_resize": "nearest"}):
        with pytest.raises(UserError, match="expected one of"):
            siglip_jax.load(tmp_path, **option)
    with pytest.raises(UserError, match=r"format='onnx'; expected one of native, .*huggingface, open_clip, big_vision"):
        random_model().save(tmp_path / "x", format="onnx")
    with pytest.raises(UserError, match=r"a big_vision checkpoint is an \.npz file"):
        random_model().save(tmp_path / "x", format="big_vision")
    with pytest.raises(UserError, match="not square"):
        random_model(image_size=(16, 24)).save(tmp_path / "x", format="huggingface")


def test_rectangular_pictures_in_an_npz_need_their_size(tmp_path):
    random_model(image_size=(16, 24)).save(tmp_path / "w.npz", format="big_vision")
    with pytest.raises(UserError, match="6 positions are of no square picture"):
        load(tmp_path / "w.npz")


def test_exp_t_is_not_clamped(golden, tmp_path):
    model = load(golden / SOURCES["scan"])
    model.replace(params={**model.params, "t": np.array([math.log(112.3)], np.float32)}).save(tmp_path / "m")
    z = np.eye(64, dtype=np.float32)[:1]
    logit = load(tmp_path / "m").logits(z, z)[0, 0]
    assert logit == pytest.approx(112.3 + model.params["b"][0], rel=1e-5)
