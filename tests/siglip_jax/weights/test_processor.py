"""Hugging Face's processor files: what published ones say, there and back, and what is refused."""

import json

import numpy as np
import pytest

from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.weights.processor import read_processor, write_processor

TITLES = ["red dress", "blue jeans", "red shoes for men", "a b c d e f"]
TOKENIZER = train_tokenizer(TITLES, vocab_size=320)
SIZES = {"text_length": 16, "vocab_size": 400}

# As google/siglip-* and google/siglip2-* have them.
PIXELS = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 0.00392156862745098,
}
FIXED = {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"}
SIGLIP_1 = PIXELS | FIXED | {"resample": 3, "size": {"height": 224, "width": 224}}
SIGLIP_2 = PIXELS | FIXED | {"resample": 2, "size": {"height": 256, "width": 256}, "do_convert_rgb": None}
FLEXIBLE = PIXELS | {
    "image_processor_type": "Siglip2ImageProcessor",
    "processor_class": "Siglip2Processor",
    "max_num_patches": 256,
    "patch_size": 16,
    "resample": 2,
}
SIGLIP_TEXT = {
    "tokenizer_class": "SiglipTokenizer",
    "do_lower_case": True,
    "eos_token": {"content": "</s>", "lstrip": True, "__type": "AddedToken"},
    "pad_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 64,
    "model_input_names": ["input_ids"],
    "added_tokens_decoder": {"1": {"content": "</s>"}},
}
GEMMA_TEXT = {
    "tokenizer_class": "GemmaTokenizer",
    "add_bos_token": False,
    "add_eos_token": True,
    "pad_token": "<pad>",
    "padding_side": "right",
    "model_input_names": ["input_ids"],
    "sp_model_kwargs": {},
}


def write(folder, *, tokenizer="spiece.model", **files):
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    if tokenizer:
        (folder / tokenizer).write_bytes(TOKENIZER)


def test_siglip_1(tmp_path):
    write(tmp_path, preprocessor_config=SIGLIP_1, tokenizer_config=SIGLIP_TEXT)
    assert read_processor(tmp_path, **SIZES) == Preprocessing(
        image_size=(224, 224),
        resize="bicubic",
        tokenizer=TOKENIZER,
        text_length=16,
        pad_id=1,
        lowercase="unicode",
        punctuation="delete",
    )


def test_siglip_2(tmp_path):
    write(tmp_path, preprocessor_config=SIGLIP_2, tokenizer_config=GEMMA_TEXT, tokenizer="tokenizer.model")
    expected = Preprocessing(image_size=(256, 256), tokenizer=TOKENIZER, text_length=16, pad_id=0)
    assert read_processor(tmp_path, **SIZES) == expected
    (tmp_path / "tokenizer.json").write_text("{}")  # published beside it; the SentencePiece file is read
    assert read_processor(tmp_path, **SIZES) == expected


def test_naflex(tmp_path):
    write(tmp_path, preprocessor_config=FLEXIBLE, tokenizer_config=GEMMA_TEXT, tokenizer="tokenizer.model")
    expected = Preprocessing(
        image_size=(256, 256), resize="naflex", patch_size=16, max_patches=256, tokenizer=TOKENIZER, text_length=16
    )
    assert read_processor(tmp_path, **SIZES) == expected
    other = read_processor(tmp_path, image_size=(64, 64), **SIZES)  # another position grid
    assert other == expected.replace(image_size=(64, 64))


def test_newer_files(tmp_path):
    """processor_config.json, with the pictures' settings inside."""
    nested = {"image_processor": SIGLIP_1, "processor_class": "SiglipProcessor"}
    write(tmp_path, processor_config=nested, preprocessor_config=SIGLIP_2, tokenizer_config=SIGLIP_TEXT)
    assert read_processor(tmp_path, **SIZES).resize == "bicubic"
    write(tmp_path, processor_config={"processor_class": "SiglipProcessor"})  # as older ones have it
    assert read_processor(tmp_path, **SIZES).resize == "bilinear"


def test_missing_files(tmp_path):
    write(tmp_path, tokenizer_config=SIGLIP_TEXT)
    assert read_processor(tmp_path, **SIZES) is None
    write(tmp_path, preprocessor_config=SIGLIP_1)
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_processor(tmp_path, **SIZES).punctuation == "delete"  # spiece.model is SigLIP 1's name
    (tmp_path / "spiece.model").unlink()
    assert read_processor(tmp_path, **SIZES).tokenizer is None
    write(tmp_path, tokenizer="tokenizer.model")
    value = read_processor(tmp_path, **SIZES)
    assert (value.punctuation, value.lowercase, value.pad_id) == ("keep", "unicode", 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"image_mean": [0.0] * 3, "image_std": [1.0] * 3}, (0.0, 1.0)),
        ({"image_mean": 0.25, "image_std": 0.5}, (-0.5, 1.5)),
        ({"do_normalize": False}, (0.0, 1.0)),
        ({"do_rescale": False, "do_normalize": False}, (0.0, 255.0)),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, (-1.0, 1.0)),
    ],
)
def test_value_range(tmp_path, change, expected):
    write(tmp_path, preprocessor_config=SIGLIP_1 | change)
    assert read_processor(tmp_path, **SIZES).value_range == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("preprocessor", SIGLIP_1 | {"do_center_crop": True, "crop_size": 9}, "unknown settings do_center_crop='True'"),
        ("preprocessor", SIGLIP_1 | {"resample": 1}, r"resample=1; expected 2 \(bilinear\) or 3"),
        ("preprocessor", SIGLIP_1 | {"size": {"shortest_edge": 224}}, "size="),
        ("preprocessor", SIGLIP_1 | {"do_resize": False}, "do_resize=False"),
        ("preprocessor", SIGLIP_1 | {"image_mean": [0.4, 0.5, 0.5]}, "expected equal channels"),
        ("preprocessor", SIGLIP_1 | {"image_std": [0.0] * 3}, "expected numbers"),
        ("preprocessor", SIGLIP_1 | {"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
        ("preprocessor", SIGLIP_1 | {"image_processor_type": ["x"]}, "image_processor_type="),
        ("preprocessor", FLEXIBLE | {"resample": 3}, "resample=3"),
        ("preprocessor", FLEXIBLE | {"max_num_patches": "many"}, "max_num_patches='many'"),
        ("preprocessor", "[1]", "not a JSON object"),
        ("preprocessor", "{", "not a JSON object"),
        ("processor", {"image_processor": 3}, "image_processor is no JSON object"),
        ("processor", {"image_processor": SIGLIP_1, "video_processor": {"a": 1}}, "unknown settings video_processor"),
        ("tokenizer", SIGLIP_TEXT | {"tokenizer_class": "CLIPTokenizer"}, "tokenizer_class='CLIPTokenizer'"),
        ("tokenizer", SIGLIP_TEXT | {"remove_accents": True}, "unknown settings remove_accents"),
        ("tokenizer", SIGLIP_TEXT | {"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs="),
        ("tokenizer", SIGLIP_TEXT | {"eos_token": "red"}, "eos_token='red'"),
        ("tokenizer", SIGLIP_TEXT | {"pad_token": "[PAD]"}, r"pad_token='\[PAD\]' is not in spiece.model"),
        ("tokenizer", GEMMA_TEXT | {"add_bos_token": True}, "add_bos_token=True"),
        ("tokenizer", GEMMA_TEXT | {"add_eos_token": False}, "add_eos_token=False"),
        ("tokenizer", GEMMA_TEXT | {"padding_side": "left"}, "padding_side='left'"),
        (
            "tokenizer",
            SIGLIP_TEXT | {"model_max_length": 8},
            "model_max_length=8, where .*pads titles; expected 16",
        ),
        (
            "tokenizer",
            SIGLIP_TEXT | {"added_tokens_decoder": {"400": {"content": "nike"}}},
            "'nike' is a token that was added with id 400; spiece.model has none such, so titles with it get other ids",
        ),
        (
            "tokenizer",
            SIGLIP_TEXT | {"added_tokens_decoder": {"7": {"content": "</s>"}}},
            "id 7; spiece.model has id 1",
        ),
        ("tokenizer", SIGLIP_TEXT | {"additional_special_tokens": ["<brand>"]}, "'<brand>' is a token that was added"),
        ("tokenizer", GEMMA_TEXT | {"extra_special_tokens": {"image_token": "<img>"}}, "'<img>' is a token"),
        ("tokenizer", SIGLIP_TEXT | {"added_tokens_decoder": [1]}, "its added tokens cannot be read"),
    ],
)
def test_settings_that_cannot_be_followed(tmp_path, file, settings, message):
    write(tmp_path, preprocessor_config=SIGLIP_1)
    write(tmp_path, **{f"{file}_config": settings})
    with pytest.raises(UserError, match=message) as error:
        read_processor(tmp_path, **SIZES)
    assert f"{file}_config.json" in str(error.value)


def test_a_tokenizer_of_another_model(tmp_path):
    write(tmp_path, preprocessor_config=SIGLIP_1, tokenizer_config=SIGLIP_TEXT)
    with pytest.raises(UserError, match="the text tower has 100"):
        read_processor(tmp_path, text_length=16, vocab_size=100)


@pytest.mark.parametrize(
    "value",
    [
        Preprocessing(image_size=(32, 48), resize="bicubic", text_length=16),
        Preprocessing(image_size=(32, 48), resize="bilinear", value_range=(0.0, 1.0), text_length=16),
        Preprocessing(image_size=(32, 32), value_range=(-0.75, 3.0), text_length=16),
        Preprocessing(image_size=(16, 16), resize="naflex", patch_size=8, max_patches=4, text_length=16),
        Preprocessing(image_size=(8, 8), tokenizer=TOKENIZER, text_length=16, pad_id=1, punctuation="delete"),
        Preprocessing(image_size=(8, 8), tokenizer=TOKENIZER, text_length=16, punctuation="delete", lowercase="none"),
    ],
)
def test_there_and_back(tmp_path, value):
    notes = write_processor(value, tmp_path)
    assert len(notes) == (value.resize == "naflex")  # transformers' own budget is another, unless its caller says it
    assert all("call it with max_num_patches=4, patch_size=8" in note for note in notes)
    assert read_processor(tmp_path, **SIZES) == value


def test_what_transformers_cannot_follow_is_said(tmp_path):
    big_vision = Preprocessing(
        image_size=(8, 8),
        resize="bilinear_no_antialias",
        tokenizer=TOKENIZER,
        text_length=16,
        pad_id=1,
        lowercase="ascii",
    )
    notes = write_processor(big_vision, tmp_path)
    assert [note.split(":")[0] for note in notes] == ["resize", "lowercase", "punctuation"]
    expected = big_vision.replace(resize="bilinear", lowercase="unicode", punctuation="delete")
    assert read_processor(tmp_path, **SIZES) == expected


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"resize": "bilinear_pad", "fill": "white"}, "it will squash"),
        ({"resize": "bilinear_scaled_decode"}, "it will decode JPEG files whole"),
    ],
)
def test_other_resizes_are_said(tmp_path, fields, note):
    value = Preprocessing(image_size=(8, 8), **fields)
    notes = write_processor(value, tmp_path)
    assert len(notes) == 1
    assert note in notes[0]
    assert read_processor(tmp_path, **SIZES) == Preprocessing(image_size=(8, 8), text_length=SIZES["text_length"])


def gemma_like() -> bytes:
    """A tokenizer.json that puts no space before the first word."""
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {piece: k for k, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "b", "ab"])}
    model = tokenizers.models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>", fuse_unk=True)
    built = tokenizers.Tokenizer(model)
    built.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    return built.to_str().encode()


@pytest.mark.parametrize("lowercase", ["unicode", "none", "ascii"])
def test_gemma_there_and_back(tmp_path, lowercase):
    """The file itself lower-cases and ends titles, since no class does both in every version."""
    value = Preprocessing(image_size=(8, 8), tokenizer=gemma_like(), text_length=16, lowercase=lowercase)
    notes = write_processor(value, tmp_path)
    assert [note.split(":")[0] for note in notes] == ["lowercase"] * (lowercase == "ascii") + ["tokenizer"]
    assert "transformers before 4.50 knows SiglipTokenizer alone; call AutoTokenizer" in notes[-1]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (settings["pad_token"], settings["eos_token"], settings["bos_token"]) == ("<pad>", "<eos>", "<bos>")
    assert settings["split_special_tokens"] is True
    back = read_processor(tmp_path, **SIZES)
    assert settings["model_input_names"] == ["input_ids"]
    expected = value.replace(lowercase="unicode" if lowercase == "ascii" else lowercase, tokenizer=back.tokenizer)
    assert back == expected
    np.testing.assert_array_equal(back.text(["ab ba", "AB Ba"]), value.text(["ab ba", "AB Ba"]))
    alone = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("AB a").ids
    assert alone == value.text("AB a")[0][: len(alone)].tolist()
    del settings["do_lower_case"]  # as transformers writes it: the file says it as well
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "TokenizersBackend"}))
    assert read_processor(tmp_path, **SIZES) == expected


def test_naflex_titles_and_budgets_that_transformers_needs_to_be_told(tmp_path):
    value = Preprocessing(
        image_size=(256, 256), resize="naflex", patch_size=16, max_patches=256, tokenizer=gemma_like()
    )
    assert write_processor(value, tmp_path / "plain") == []
    cased = value.replace(lowercase="none", text_length=16, max_patches=100)
    notes = write_processor(cased, tmp_path / "cased")
    assert [note.split(":")[0] for note in notes] == ["max_patches", "lowercase", "text_length"]
    assert "call GemmaTokenizer.from_pretrained" in notes[1]
    assert "call it with max_length=16" in notes[2]


def test_tokens_that_were_added_beside_the_settings(tmp_path):
    write(tmp_path, preprocessor_config=SIGLIP_1, tokenizer_config=SIGLIP_TEXT, added_tokens={"</s>": 1})
    assert read_processor(tmp_path, **SIZES).pad_id == 1
    write(tmp_path, added_tokens={"nike": 400})
    with pytest.raises(UserError, match="'nike' is a token that was added with id 400"):
        read_processor(tmp_path, **SIZES)


def test_a_folder_that_transformers_would_mask_is_said(tmp_path, capsys):
    write(tmp_path, preprocessor_config=SIGLIP_1, tokenizer_config=SIGLIP_TEXT)
    assert read_processor(tmp_path, **SIZES) is not None
    assert capsys.readouterr().err == ""
    del (without := dict(SIGLIP_TEXT))["model_input_names"]
    write(tmp_path, tokenizer_config=without)
    assert read_processor(tmp_path, **SIZES) is not None
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path / 'tokenizer_config.json'} has no model_input_names, so transformers")
    assert said.count("\n") == 1


def test_a_tokenizer_json_that_no_class_reads(tmp_path):
    value = Preprocessing(image_size=(8, 8), tokenizer=gemma_like(), text_length=16, punctuation="delete")
    (note,) = write_processor(value, tmp_path)
    assert "no tokenizer was written" in note
    assert read_processor(tmp_path, **SIZES).tokenizer is None


def test_transformers_is_told_to_use_no_mask_and_to_end_titles(tmp_path):
    """Transformers 5 reads the end of a title from tokenizer.json alone, and makes a mask unless told."""
    tokenizers = pytest.importorskip("tokenizers")
    write_processor(Preprocessing(image_size=(8, 8), tokenizer=gemma_like(), text_length=16), tmp_path)
    found = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("ab a")
    assert found.ids == [7, 4, 5, 1]
    again = tmp_path / "again"
    ended = (tmp_path / "tokenizer.json").read_bytes()
    write_processor(Preprocessing(image_size=(8, 8), tokenizer=ended, text_length=16), again)
    assert (again / "tokenizer.json").read_bytes() == ended  # one that does so already stays as it is
    siglip = tmp_path / "siglip"
    write_processor(
        Preprocessing(image_size=(8, 8), tokenizer=TOKENIZER, text_length=16, pad_id=1, punctuation="delete"), siglip
    )
    assert json.loads((siglip / "tokenizer_config.json").read_text())["model_input_names"] == ["input_ids"]


@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["attention_mask"], []])
def test_a_folder_whose_titles_are_masked_is_refused(tmp_path, names):
    write(tmp_path, preprocessor_config=SIGLIP_1, tokenizer_config=SIGLIP_TEXT | {"model_input_names": names})
    with pytest.raises(UserError, match=r"model_input_names=.*; expected \['input_ids'\], as SigLIP was trained"):
        read_processor(tmp_path, **SIZES)
