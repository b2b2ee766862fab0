"""What transformers embeds from our folders, and we from its folders: odd titles and images, end to end.

The gate compares with what transformers 4.57 and 5.24 embedded from folders of these models (transformers.npz, which
also holds the titles, the images and the tokenizers). The slow tests run installed ones, each a Python with torch,
transformers, sentencepiece, protobuf and tokenizers:

    SIGLIP_JAX_TRANSFORMERS=venv-4.49/bin/python:venv-5/bin/python make test-slow
    python tests/behaviour/test_transformers.py venv-4.57/bin/python venv-5/bin/python    # makes transformers.npz anew
"""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.model import Model
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import TwoTowers, parameter_shapes
from siglip_jax.preprocessing import Preprocessing

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "transformers.npz"
PEER = pathlib.Path(__file__).with_name("transformers_peer.py")
INSTALLED = [path for path in os.environ.get("SIGLIP_JAX_TRANSFORMERS", "").split(":") if path]
TOLERANCE, LENGTH, VOCABULARY = 1e-5, 12, 512
SIZE = TowerSize(width=16, depth=1, mlp_dim=32, heads=2)

PLAIN = ["red dress", "", "   ", "Men's Black Running-Shoe!!!", "ÄÖÜ Straße ﬁ 42", "word " * 40, "👗 red 🇯🇵 👨‍👩‍👧"]
PLAIN += [
    "赤いドレス レディース",
    "a  b\tc\nd",
    "▁under ▁ b",
    "...!!!",
    " !red",
    "zero\u200bwidth\ufeff",
    "İstanbul K",
    "x" * 300,
]
PLAIN += ["\u00a0nbsp\u3000wide", "e\u0301 combining", "red dress "]
SPECIAL = ["</s>", "red </s> dress", "<pad> <eos> <unk> <bos> dress", "<eos>", "<s> x", "<0x0A> bytes", "[CLS] <mask>"]
TRANSPARENT = ("rgba.png", "la.png")
COLUMN = ("tall.png",)  # one column of patches
RGB = ("plain.png", "tiny.png", "wide.png", "tall.png", "same.png", "exif.jpg")


def kinds(spiece: bytes, gemma: bytes) -> dict[str, Preprocessing]:
    siglip = {"tokenizer": spiece, "pad_id": 1, "punctuation": "delete", "resize": "bicubic"}
    naflex = {"tokenizer": gemma, "resize": "naflex", "patch_size": 4, "max_patches": 12}
    fields = {
        "siglip": siglip,
        "siglip-cased": siglip | {"lowercase": "none", "value_range": (0.0, 1.0)},
        "siglip2": {"tokenizer": gemma},
        "siglip2-cased": {"tokenizer": gemma, "lowercase": "none"},
        "naflex": naflex,
    }
    return {name: Preprocessing(image_size=(16, 16), text_length=LENGTH, **each) for name, each in fields.items()}


def model_of(preprocessing: Preprocessing) -> Model:
    """Weights that depend on nothing but the architecture, large enough that titles differ."""
    architecture = Architecture(
        image_size=(16, 16),
        patch_size=4,
        image=SIZE,
        text=SIZE,
        vocab_size=VOCABULARY,
        text_length=LENGTH,
        naflex=preprocessing.resize == "naflex",
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), parameter_shapes(architecture))
    return Model(module=TwoTowers(architecture), params=params, preprocessing=preprocessing)


def differs(version: str, kind: str) -> tuple[str, ...]:
    """Images that this transformers is known to see otherwise (docs/guide/preprocessing.md)."""
    if version.startswith("5"):
        return TRANSPARENT
    return COLUMN if kind == "naflex" else ()


def assert_equal(found, expected, *, names, titles, left_out, label):
    kept = [name not in left_out for name in names]
    for what, rows, those in (("image", kept, names), ("text", slice(None), titles)):
        error = np.abs(found[what] - expected[what])[rows].max(axis=1)
        worst = int(error.argmax())
        assert error.max() < TOLERANCE, f"{label}: {what} {np.array(those)[rows][worst]!r} is off by {error.max():.1e}"


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def inputs(stored):
    """(titles, {name: encoded image}, {kind: Preprocessing})."""
    images = {name.removeprefix("file/"): x.tobytes() for name, x in stored.items() if name.startswith("file/")}
    return json.loads(str(stored["titles"])), images, kinds(stored["spiece"].tobytes(), stored["gemma"].tobytes())


def embeddings(model, titles, images):
    return {"image": model.encode_image(list(images.values())), "text": model.encode_text(titles)}


@pytest.mark.parametrize("kind", ["siglip", "siglip2-cased", "naflex"])
def test_we_embed_what_transformers_embedded_from_our_folders(stored, inputs, kind):
    titles, images, preprocessing = inputs
    ours = embeddings(model_of(preprocessing[kind]), titles, images)
    versions = {name.split("/")[0] for name in stored if name.endswith(f"/{kind}/text")}
    assert len(versions) == 2
    for version in versions:
        theirs = {what: stored[f"{version}/{kind}/{what}"] for what in ("image", "text")}
        left_out = differs(version, kind)
        assert_equal(ours, theirs, names=list(images), titles=titles, left_out=left_out, label=f"{version} {kind}")


# --- installed ones ---------------------------------------------------------------------------------------------------

needs_transformers = pytest.mark.skipif(not INSTALLED, reason="SIGLIP_JAX_TRANSFORMERS names no Python")


def run_peer(python, command, folder, **job):
    path = folder / f"{command}.json"
    path.write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, PEER, command, path], capture_output=True, text=True, check=False, env=environment, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def write_images(folder, images):
    folder.mkdir()
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in images]


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("python", INSTALLED)
def test_transformers_embeds_our_folders_as_we_do(python, inputs, tmp_path):
    titles, images, preprocessing = inputs
    models = {kind: model_of(each) for kind, each in preprocessing.items()}
    for kind, model in models.items():
        model.save(tmp_path / kind, format="huggingface")
    (tmp_path / "out").mkdir()
    peer = run_peer(
        python,
        "embed",
        tmp_path,
        folders=[str(tmp_path / kind) for kind in models],
        titles=titles,
        images=write_images(tmp_path / "images", images),
        output=str(tmp_path / "out"),
    )
    compared = 0
    for kind, model in models.items():
        said = peer["said"][str(tmp_path / kind)]
        if kind == "naflex" and "does not recognize this architecture" in said:  # NaFlex came with 4.50
            continue
        assert (tmp_path / "out" / f"{kind}.npz").exists(), said
        with np.load(tmp_path / "out" / f"{kind}.npz") as theirs:
            ours = embeddings(model, titles, images)
            left_out = differs(peer["version"], kind)
            label = f"{peer['version']} {kind} ({said})"
            assert_equal(ours, theirs, names=list(images), titles=titles, left_out=left_out, label=label)
        compared += 1
    assert compared >= len(models) - 1


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("python", INSTALLED)
def test_we_embed_its_folders_as_transformers_does(python, inputs, tmp_path):
    _, images, preprocessing = inputs
    images = {name: images[name] for name in RGB}  # without do_convert_rgb its processors refuse the others
    for kind, file in (("siglip", "spiece.model"), ("siglip2-cased", "tokenizer.json")):
        model_of(preprocessing[kind]).save(tmp_path / f"ours-{kind}", format="huggingface")
        (tmp_path / kind).mkdir()
        (tmp_path / kind / file).write_bytes((tmp_path / f"ours-{kind}" / file).read_bytes())
    common = {"model_max_length": LENGTH, "model_input_names": ["input_ids"], "padding_side": "right"}
    gemma = common | {"add_bos_token": False, "add_eos_token": True, "do_lower_case": False}
    shared = {"length": LENGTH, "vocab_size": VOCABULARY}
    wanted = {
        "siglip": ("siglip", "siglip", "SiglipTokenizer", common),
        "siglip-as-it-is": ("siglip", "siglip", "SiglipTokenizer", common | {"do_lower_case": False}),
        "siglip2": ("siglip", "siglip2-cased", "GemmaTokenizer", gemma),
        "naflex": ("siglip2", "siglip2-cased", "GemmaTokenizer", gemma | {"do_lower_case": True}),
    }
    made = run_peer(
        python,
        "make",
        tmp_path,
        output=str(tmp_path / "theirs"),
        models={
            name: shared | dict(kind=kind, tokenizer=str(tmp_path / file), tokenizer_class=tokenizer, options=options)
            for name, (kind, file, tokenizer, options) in wanted.items()
        },
    )
    (tmp_path / "out").mkdir()
    folders = {name: tmp_path / "theirs" / name for name in wanted if (tmp_path / "theirs" / name).exists()}
    assert folders.keys() >= {"siglip", "siglip-as-it-is", "siglip2"}, made
    titles = PLAIN  # a special token that a title spells is one there
    peer = run_peer(
        python,
        "embed",
        tmp_path,
        folders=[str(folder) for folder in folders.values()],
        titles=titles,
        images=write_images(tmp_path / "images", images),
        output=str(tmp_path / "out"),
    )
    for name, folder in folders.items():
        label = f"{peer['version']} {name} ({peer['said'][str(folder)]})"
        assert (tmp_path / "out" / f"{name}.npz").exists(), label
        with np.load(tmp_path / "out" / f"{name}.npz") as theirs:
            ours = embeddings(siglip_jax.load(folder), titles, images)
            lower = name == "naflex" and peer["version"].startswith("4")  # GemmaTokenizer does not lower-case
            kept = [k for k, title in enumerate(titles) if not (lower and title != title.lower())]
            pair = [{"image": each["image"], "text": each["text"][kept]} for each in (ours, theirs)]
            left_out = differs(peer["version"], name)
            assert_equal(*pair, names=list(images), titles=[titles[k] for k in kept], left_out=left_out, label=label)


# --- making transformers.npz ------------------------------------------------------------------------------------------

CORPUS = ["red dress for women", "men's black running shoe", "blue jeans slim fit", "赤いドレス", "größe 42 straße"]
CORPUS += [" ".join("abcdefghijklmnopqrstuvwxyz0123456789")]


def train_sentencepiece(**options) -> bytes:
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_writer=file, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="identity", pad_id=0, eos_id=1, **options,
    )  # fmt: skip
    return file.getvalue()


def gemma_like() -> bytes:
    """A tokenizer.json as Gemma's: byte pairs, no space before the first word, bytes for what is not known."""
    import sentencepiece
    import tokenizers

    pieces = {"eos_piece": "<eos>", "bos_piece": "<bos>", "bos_id": 2, "unk_id": 3}
    trained = train_sentencepiece(
        model_type="bpe", vocab_size=420, byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
        **pieces,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_proto=trained)
    vocab = {model.id_to_piece(k): k for k in range(model.get_piece_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, k in vocab.items()
        if not (model.is_control(k) or model.is_unknown(k) or model.is_byte(k))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    built = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    built.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    built.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    special = [tokenizers.AddedToken(name, special=True, normalized=False) for name in list(vocab)[:4]]
    built.add_special_tokens(special)
    return built.to_str().encode()


def make_images() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    exif = PIL.Image.Exif()
    exif[274] = 6  # turned by a quarter

    def encoded(shape, name, mode=None, **options):
        image = PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        file = io.BytesIO()
        (image.convert(mode) if mode else image).save(file, name, **options)
        return file.getvalue()

    return {
        "plain.png": encoded((40, 30, 3), "PNG"),
        "tiny.png": encoded((1, 1, 3), "PNG"),
        "wide.png": encoded((2, 300, 3), "PNG"),
        "tall.png": encoded((400, 3, 3), "PNG"),
        "grey.png": encoded((33, 21), "PNG"),
        "rgba.png": encoded((20, 30, 4), "PNG"),
        "la.png": encoded((20, 25, 4), "PNG", "LA"),
        "same.png": encoded((16, 16, 3), "PNG"),
        "exif.jpg": encoded((60, 20, 3), "JPEG", exif=exif),
        "cmyk.jpg": encoded((40, 50, 3), "JPEG", "CMYK"),
        "palette.gif": encoded((20, 25, 3), "GIF", "P"),
    }


def make_golden(pythons, folder: pathlib.Path) -> None:
    titles, images = PLAIN + SPECIAL, make_images()
    spiece, gemma = train_sentencepiece(model_type="unigram", vocab_size=120, unk_id=2, bos_id=-1), gemma_like()
    written = {"titles": np.array(json.dumps(titles))} | {
        name: np.frombuffer(data, np.uint8)
        for name, data in {"spiece": spiece, "gemma": gemma, **{f"file/{k}": v for k, v in images.items()}}.items()
    }
    preprocessing = kinds(spiece, gemma)
    for kind, each in preprocessing.items():
        model_of(each).save(folder / kind, format="huggingface")
    paths = write_images(folder / "images", images)
    for python in pythons:
        folders = [str(folder / kind) for kind in preprocessing]
        peer = run_peer(python, "embed", folder, folders=folders, titles=titles, images=paths, output=str(folder))
        print(peer)
        for kind in preprocessing:
            with np.load(folder / f"{kind}.npz") as found:
                written |= {f"{peer['version']}/{kind}/{what}": found[what] for what in ("image", "text")}
    np.savez_compressed(GOLDEN, **written)
    print(GOLDEN, GOLDEN.stat().st_size)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        make_golden(sys.argv[1:], pathlib.Path(temporary))
