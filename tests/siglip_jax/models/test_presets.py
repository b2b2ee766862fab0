"""The published checkpoints: figures from their papers, and weights that are or are not theirs."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax import cli, loading, verify
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models import presets
from siglip_jax.models.architecture import Architecture, TowerSize, parameter_counts
from siglip_jax.models.towers import TwoTowers, parameter_shapes
from siglip_jax.weights import big_vision

NAME = "google/siglip2-base-patch16-256"


def test_every_published_checkpoint_is_there():
    """The list of big_vision's README_siglip2.md and SigLIP_demo.ipynb, by Hugging Face name."""
    expected = {f"google/siglip-base-patch16-{n}" for n in (224, 256, 384, 512)}
    expected |= {f"google/siglip-large-patch16-{n}" for n in (256, 384)}
    expected |= {f"google/siglip-so400m-patch14-{n}" for n in (224, 384)}
    expected |= {"google/siglip-base-patch16-256-multilingual", "google/siglip-so400m-patch16-256-i18n"}
    expected |= {f"google/siglip2-base-patch16-{n}" for n in (224, 256, 384, 512, "naflex")}
    expected |= {"google/siglip2-base-patch32-256"}
    expected |= {f"google/siglip2-large-patch16-{n}" for n in (256, 384, 512)}
    expected |= {f"google/siglip2-so400m-patch14-{n}" for n in (224, 384)}
    expected |= {f"google/siglip2-so400m-patch16-{n}" for n in (256, 384, 512, "naflex")}
    expected |= {f"google/siglip2-giant-opt-patch16-{n}" for n in (256, 384)}
    assert presets.PRESETS.keys() == expected
    files = [preset.big_vision for preset in presets.PRESETS.values()]
    assert len(set(files)) == len(files) == 27


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("google/siglip-base-patch16-224", 203),
        ("google/siglip2-base-patch16-256", 375),
        ("google/siglip2-so400m-patch16-256", 1136),
        ("google/siglip2-giant-opt-patch16-256", 1871),
    ],
)
def test_parameter_counts(name, millions):
    assert round(parameter_counts(presets.PRESETS[name].architecture)["total"] / 1e6) == millions


@pytest.mark.parametrize("name", presets.PRESETS)
def test_counts_are_those_of_the_modules(name):
    architecture = presets.PRESETS[name].architecture
    shapes = parameter_shapes(architecture)
    found = {kind: sum(x.size for x in jax.tree.leaves(shapes[kind])) for kind in ("img", "txt")}
    total = sum(x.size for x in jax.tree.leaves(shapes))
    assert parameter_counts(architecture) == {"image": found["img"], "text": found["txt"], "total": total}


def test_odd_ones():
    def arch(name):
        return presets.PRESETS[name].architecture

    assert arch("google/siglip-so400m-patch14-224").text_length == 16
    assert arch("google/siglip-so400m-patch14-384").grid == (27, 27)  # 384 pixels are 27.4 patches
    assert not arch("google/siglip-so400m-patch16-256-i18n").text_head
    giant = arch("google/siglip2-giant-opt-patch16-384")
    assert (giant.image.width, giant.text.width, giant.embedding_dim) == (1536, 1152, 1536)
    shapes = parameter_shapes(giant)
    assert shapes["txt"]["head"]["kernel"].shape == (1152, 1536)
    naflex = parameter_shapes(arch("google/siglip2-base-patch16-naflex"))["img"]
    assert naflex["pos_embedding"].shape == (16, 16, 768)
    assert naflex["embedding"]["kernel"].shape == (768, 768)


def test_preprocessing_of_both_conventions():
    def fields(name, convention):
        value = presets.PRESETS[name].preprocessing(convention)
        return value.resize, value.lowercase, value.punctuation, value.pad_id

    one, two = "google/siglip-base-patch16-224", NAME
    assert fields(one, "big_vision") == ("bilinear_no_antialias", "ascii", "keep", 1)
    assert fields(one, "huggingface") == ("bicubic", "unicode", "delete", 1)
    assert fields(two, "big_vision") == ("bilinear_no_antialias", "ascii", "keep", 0)
    assert fields(two, "huggingface") == ("bilinear", "unicode", "keep", 0)
    naflex = presets.PRESETS["google/siglip2-so400m-patch16-naflex"].preprocessing("huggingface")
    assert (naflex.resize, naflex.patch_size, naflex.max_patches) == ("naflex", 16, 256)
    with pytest.raises(ValueError, match="expected big_vision or huggingface"):
        presets.PRESETS[one].preprocessing("open_clip")


# --- loading by name, with tiny stand-ins for the published weights ---------------------------------------------------

TINY = Architecture(
    image_size=(16, 16),
    patch_size=8,
    image=TowerSize(width=8, depth=1, mlp_dim=8, heads=2),
    text=TowerSize(width=8, depth=1, mlp_dim=8, heads=2),
    vocab_size=400,
    text_length=6,
)


@pytest.fixture
def tiny(monkeypatch) -> Model:
    """The preset NAME shrunk to TINY, and weights that fit it."""
    preset = dataclasses.replace(presets.PRESETS[NAME], architecture=TINY)
    monkeypatch.setitem(presets.PRESETS, NAME, preset)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), parameter_shapes(TINY))
    return Model(module=TwoTowers(TINY), params=params)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    from input_pipeline.train_tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "gemma.model"
    path.write_bytes(train_tokenizer(["red dress", "blue jeans", "a b c"], vocab_size=330))
    return path


def assert_same(model, expected):
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)


def test_a_name_and_local_weights(tiny, tmp_path):
    tiny.save(tmp_path / "w.npz", format="big_vision")
    tiny.save(tmp_path / "hf", format="huggingface")
    for weights in (tmp_path / "w.npz", tmp_path / "hf"):
        assert_same(siglip_jax.load(NAME, weights=weights), tiny)
    model = siglip_jax.load(NAME, weights=tmp_path / "w.npz")
    assert model.preprocessing == presets.PRESETS[NAME].preprocessing("big_vision")
    with pytest.raises(UserError, match="no tokenizer, so strings cannot be encoded"):
        model.encode_text(["red dress"])
    assert siglip_jax.load(tmp_path / "w.npz").preprocessing is None  # an .npz alone does not tell
    with pytest.raises(UserError, match="load it with preprocessing="):
        siglip_jax.load(tmp_path / "w.npz").encode_image([b""])


@pytest.mark.parametrize(
    "place", ["google/siglip2-base-patch16-256", "siglip2-base-patch16-256", "siglip2_b16_256.npz"]
)
def test_a_name_and_the_folder_of_weights(tiny, tmp_path, monkeypatch, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.save(path, format="big_vision" if path.suffix == ".npz" else "huggingface")
    monkeypatch.setenv(loading.WEIGHTS_FOLDER, str(tmp_path))
    assert_same(siglip_jax.load(NAME), tiny)


def test_a_name_through_the_hub(tiny, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv(loading.WEIGHTS_FOLDER, raising=False)
    tiny.save(tmp_path, format="huggingface")
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append(name)
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert_same(siglip_jax.load(NAME), tiny)
    assert asked == [NAME]

    def offline(name, **_):
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"did not answer \(no network at all\); download https://huggingface.co/goo"):
        siglip_jax.load(NAME)


def test_weights_of_another_model_are_refused(tiny, tmp_path):
    smaller = dataclasses.replace(TINY, text=TowerSize(width=8, depth=2, mlp_dim=8, heads=2))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), parameter_shapes(smaller))
    Model(module=TwoTowers(smaller), params=params).save(tmp_path / "w.npz", format="big_vision")
    with pytest.raises(UserError, match=r"not the weights of google/siglip2-base-patch16-256: text is .*'depth': 2"):
        siglip_jax.load(NAME, weights=tmp_path / "w.npz")


def test_another_tokenizer_is_refused(tiny, tmp_path, tokenizer_file, monkeypatch):
    tiny.save(tmp_path / "w.npz", format="big_vision")
    with pytest.raises(UserError, match=r"sha256 is .*, that of SigLIP 2 is 61a7b147"):
        siglip_jax.load(NAME, weights=tmp_path / "w.npz", tokenizer=tokenizer_file)
    sha256 = hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    family = dataclasses.replace(presets.SIGLIP2, tokenizer_sha256=sha256)
    monkeypatch.setitem(presets.PRESETS, NAME, dataclasses.replace(presets.PRESETS[NAME], family=family))
    model = siglip_jax.load(NAME, weights=tmp_path / "w.npz", tokenizer=tokenizer_file)
    assert model.encode_text(["red dress"]).shape == (1, 8)
    with pytest.raises(UserError, match="does not tell how titles are prepared"):
        siglip_jax.load(tmp_path / "w.npz", tokenizer=tokenizer_file)
    with pytest.raises(UserError, match="pass a SentencePiece"):
        siglip_jax.load(NAME, weights=tmp_path / "w.npz", tokenizer=tmp_path / "none.model")


def test_a_preprocessing_that_does_not_fit_is_refused(tiny, tmp_path):
    tiny.save(tmp_path / "w.npz", format="big_vision")
    for changes, message in (
        ({"image_size": (24, 24)}, r"image_size \(24, 24\), the model's is \(16, 16\)"),
        ({"text_length": 7}, "text_length 7, the model's is 6"),
        ({"resize": "naflex", "patch_size": 8, "max_patches": 9}, "NaFlex patch size 8, the model's is 0"),
    ):
        value = presets.PRESETS[NAME].preprocessing("big_vision").replace(**changes)
        with pytest.raises(UserError, match=message):
            siglip_jax.load(tmp_path / "w.npz", preprocessing=value)


def test_an_npz_with_the_preprocessing_of_a_preset(tiny, tmp_path, tokenizer_file):
    """Asked for by name; the pictures and titles are those of the model's own size."""
    tiny.save(tmp_path / "mine.npz", format="big_vision")
    other = "google/siglip-base-patch16-224"
    model = siglip_jax.load(tmp_path / "mine.npz", preprocessing=other)
    expected = presets.PRESETS[other].preprocessing("big_vision").replace(image_size=(16, 16), text_length=6)
    assert model.preprocessing == expected
    assert expected.resize == "bilinear_no_antialias"
    with pytest.raises(UserError, match=r"sha256 is .*, that of SigLIP is 1e5036be"):
        siglip_jax.load(tmp_path / "mine.npz", preprocessing=other, tokenizer=tokenizer_file)
    with pytest.raises(UserError, match="preprocessing='siglip9'; expected a preset's name"):
        siglip_jax.load(tmp_path / "mine.npz", preprocessing="siglip9")
    flags = [f"--model={tmp_path / 'mine.npz'}", f"--output={tmp_path / 'native'}", f"--preprocessing={other}"]
    assert cli.main(["convert", *flags]) == 0
    assert siglip_jax.load(tmp_path / "native").preprocessing == expected


def test_shapes_find_the_published_resolution():
    """So400m/14 at 384: the grid alone would say 378 pixels."""
    published = presets.PRESETS["google/siglip2-so400m-patch14-384"].architecture
    from_shapes = dataclasses.replace(published, image_size=(378, 378))
    assert big_vision.published_size(from_shapes) == published
    assert big_vision.published_size(TINY) == TINY


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify(tiny, tokenizer_file, monkeypatch):
    import io

    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    preset = presets.PRESETS[NAME]
    model = tiny.replace(preprocessing=preset.preprocessing("huggingface", tokenizer=tokenizer_file.read_bytes()))
    titles = ("cats", "dogs")  # the real ones begin alike, and six tokens of this tokenizer are all beginning
    logits = model.logits(model.encode_image([buffer.getvalue()]), model.encode_text(list(titles)))[0]
    better, worse = (titles[i] for i in np.argsort(-logits))  # which one is chance, of random weights
    cats, dogs = sorted(logits.tolist(), reverse=True)
    assert cats > dogs
    monkeypatch.setattr(verify, "TITLES", (better, worse))
    t, b = (float(model.params[name][0]) for name in ("t", "b"))
    right = verify.Known(logits=(float(cats), float(dogs)), temperature=round(float(np.exp(t)), 1), bias=round(b, 1))

    def check(known):
        monkeypatch.setitem(verify.KNOWN, NAME, known)
        return verify.verify(model, preset, picture=buffer.getvalue())

    assert len(check(right)) == 5
    for wrong in (
        dataclasses.replace(right, logits=(float(cats) + 0.2, float(dogs))),
        dataclasses.replace(right, temperature=right.temperature + 1),
        dataclasses.replace(right, bias=right.bias - 1),
    ):
        with pytest.raises(UserError, match="other weights"):
            check(wrong)
    monkeypatch.setattr(verify, "TITLES", (worse, better))
    with pytest.raises(UserError, match="a picture of cats should prefer the first"):
        check(verify.Known())
