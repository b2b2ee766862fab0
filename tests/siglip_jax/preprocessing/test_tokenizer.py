"""Both kinds of tokenizer file give the same ids; the ids of the reference implementations; any string is encoded.

The published tokenizers are too large for the repository: tests of their ids look for the files, by sha256, in the
folder that the environment variable SIGLIP_JAX_TOKENIZERS names, and are skipped without it.
"""

import hashlib
import io
import json
import os
import pathlib
import pickle
import string
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import EOS_ID, Preprocessing, open_tokenizer

tokenizers = pytest.importorskip("tokenizers")

C4_BPE = "c11735e80bee63a602bd548dda8f832f36eff3127a579b687a5907338233b0e9"
SIGLIP_1 = "1e5036bed065526c3c212dfbe288752391797c4bb1a284aa18c9a0b23fcaf8ec"
GEMMA = "61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2"
ODD_TITLES = [
    "",
    " ",
    "🙂 ✨ bag",
    "red\x00dress",
    "\x07\x1b[31m",
    "\u200b\ufeff",
    "メルカリ ワンピース 新品",
    "\n\t ",
    "red dress " * 1000,
    "</s> is text",
    "<pad>",
]


def tokenizer_json(model: bytes) -> bytes:
    """A SentencePiece byte-pair model as a tokenizer.json: a merge for each way to put a piece together, by rank."""
    spm = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {spm.id_to_piece(i): i for i in range(spm.get_piece_size())}
    plain = [piece for piece, i in vocab.items() if not (spm.is_control(i) or spm.is_byte(i) or spm.is_unknown(i))]
    splits = [(piece[:k], piece[k:]) for piece in plain for k in range(1, len(piece))]
    merges = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
    unknown = spm.id_to_piece(spm.unk_id())
    bpe = tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    built = tokenizers.Tokenizer(bpe)
    normalizers = tokenizers.normalizers
    built.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(tokenizers.Regex(r"^\s+|\s+$"), ""),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    control = [tokenizers.AddedToken(spm.id_to_piece(i), special=True) for i in vocab.values() if spm.is_control(i)]
    built.add_special_tokens(control)
    # What transformers leaves in the file, none of which may come through.
    built.enable_truncation(3)
    built.enable_padding(length=9)
    built.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS_ID)])
    return built.to_str().encode()


TITLES = [f"{colour} {kind} for {who}" for colour in ("red", "grün") for kind in ("dress", "shoes") for who in "ab"]
MODEL = train_tokenizer([*TITLES, string.ascii_lowercase, string.digits, string.punctuation], vocab_size=420)
JSON = tokenizer_json(MODEL)
PLAIN = Preprocessing(image_size=(8, 8), tokenizer=MODEL, text_length=24)
TWIN = PLAIN.replace(tokenizer=JSON)


def file_of(sha256: str) -> bytes:
    folder = pathlib.Path(os.environ.get("SIGLIP_JAX_TOKENIZERS") or pytest.skip("SIGLIP_JAX_TOKENIZERS is not set"))
    for path in sorted(folder.glob("*.model")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path.read_bytes()
    pytest.skip(f"no file of sha256 {sha256[:8]} in SIGLIP_JAX_TOKENIZERS")


# --- both kinds of file -----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(string.ascii_letters + string.digits + string.punctuation + " äöüÄÖÜ🙂メ新", max_size=60))
def test_both_kinds_of_file_give_the_same_ids(title):
    np.testing.assert_array_equal(TWIN.text(title), PLAIN.text(title))


def test_both_kinds_of_file_on_odd_titles():
    titles = [title for title in ODD_TITLES if title.isprintable()]  # the twin lacks SentencePiece's character table
    np.testing.assert_array_equal(TWIN.text(titles), PLAIN.text(titles))
    assert TWIN.vocab_size == PLAIN.vocab_size == sentencepiece.SentencePieceProcessor(model_proto=MODEL).vocab_size()


@pytest.mark.parametrize("serialised", [MODEL, JSON], ids=["SentencePiece", "tokenizer.json"])
def test_pieces(serialised):
    tokenizer = open_tokenizer(serialised)
    assert tokenizer.piece_id("</s>") == EOS_ID
    assert tokenizer.piece(EOS_ID) == "</s>"
    assert tokenizer.piece_id("no such piece") is None
    assert tokenizer.piece_id("<unk>") == 2
    again = pickle.loads(pickle.dumps(PLAIN.replace(tokenizer=serialised)))  # as data workers get it
    np.testing.assert_array_equal(again.text(TITLES), PLAIN.text(TITLES))


def test_storage(tmp_path):
    TWIN.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == JSON
    assert Preprocessing.load(tmp_path) == TWIN
    PLAIN.save(tmp_path)  # both files are there now; the sum tells which one counts
    assert Preprocessing.load(tmp_path) == PLAIN
    (tmp_path / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"tokenizer\.model: sha256 is .* but the model was saved with"):
        Preprocessing.load(tmp_path)


def test_damaged_files():
    for junk, message in ((b"{", r"not a tokenizer\.json"), (b"{}", r"not a tokenizer\.json"), (b"", "empty file")):
        with pytest.raises(UserError, match=message):
            PLAIN.replace(tokenizer=junk or b"").text("red") if junk else open_tokenizer(junk)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"install siglip-jax\[huggingface\]"):
        TWIN.replace(text_length=9).text("red")
    assert PLAIN.replace(text_length=9).text("red").shape == (1, 9)


# --- any string -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    title=st.text(st.characters(exclude_categories=()), max_size=60),
    length=st.integers(1, 70),
    lowercase=st.sampled_from(["none", "ascii", "unicode"]),
    punctuation=st.sampled_from(["keep", "delete"]),
    pad_id=st.integers(0, 1),
    tokenizer=st.sampled_from([MODEL, JSON]),
)
def test_any_string_in_any_rules(title, length, tokenizer, **rules):
    value = PLAIN.replace(text_length=length, tokenizer=tokenizer, **rules)
    ids = value.text([title, title])
    assert ids.shape == (2, length)
    assert ids.dtype == np.int32
    assert 0 <= ids.min() <= ids.max() < value.vocab_size
    end = ids[0].tolist().index(EOS_ID)
    assert (ids[0, end + 1 :] == value.pad_id).all()
    np.testing.assert_array_equal(ids[0], ids[1])


# --- the references ---------------------------------------------------------------------------------------------------


def test_known_canonical_form():
    value = PLAIN.replace(punctuation="delete")
    assert value.canonical("COSER in RED-GOLD armor!!!") == "coser in redgold armor"


def test_hugging_face_leaves_the_word_mark_of_an_empty_word():
    """What its SigLIP 1 tokenizer does with a title of nothing, or with white space at the front."""
    keeps = io.BytesIO()  # white space at the end, as the published tokenizers do
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["red dress", "blue jeans"]), model_writer=keeps, vocab_size=20, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    value = PLAIN.replace(punctuation="delete", pad_id=EOS_ID)
    keeping = value.replace(tokenizer=keeps.getvalue())
    mark = sentencepiece.SentencePieceProcessor(model_proto=keeps.getvalue()).piece_to_id("▁")
    for title in ("", " ", "...", " - "):
        assert keeping.text(title)[0].tolist() == [mark, *[EOS_ID] * 23]
        assert value.text(title)[0].tolist() == [EOS_ID] * 24  # as transformers 4.49, 4.57 and 5.24 have it
        assert PLAIN.text("")[0].tolist() == [EOS_ID, *[0] * 23]
    for title in ("  red Dress", "- red dress", "▁ red dress", "\n(red) dress"):
        assert keeping.text(title)[0].tolist() == [mark, *keeping.text("red dress")[0][:-1].tolist()]
        assert value.text(title)[0].tolist() == value.text("red dress")[0].tolist()
    for title in ("red dress  ", "(red) dress", "-red dress"):
        assert keeping.text(title)[0].tolist() == keeping.text("red dress")[0].tolist()


def test_hugging_face_siglip_1_ids(golden):
    stored = json.loads((golden / "hf_siglip_tokens.json").read_text())
    value = PLAIN.replace(tokenizer=file_of(C4_BPE), text_length=stored["length"], pad_id=1, punctuation="delete")
    np.testing.assert_array_equal(value.text(stored["titles"]), stored["ids"])


def test_big_vision_siglip_1_ids(golden):
    stored = json.loads((golden / "big_vision_tokens.json").read_text())
    value = PLAIN.replace(tokenizer=file_of(C4_BPE), text_length=stored["length"], pad_id=1, lowercase="ascii")
    np.testing.assert_array_equal(value.text(stored["titles"]), stored["siglip1_c4_bpe_32k"])


def test_published_siglip_1_ids():
    value = PLAIN.replace(tokenizer=file_of(SIGLIP_1), text_length=10, pad_id=1, punctuation="delete")
    known = {
        "red armor portrait": [1226, 14431, 9391],
        "COSER in RED-GOLD armor!!!": [1005, 264, 365, 268, 1226, 16947, 14431],
    }
    for title, ids in known.items():
        assert value.text(title)[0].tolist() == ids + [1] * (10 - len(ids))


def test_gemma_ids(golden):
    stored = json.loads((golden / "gemma_tokens.json").read_text())
    assert stored["tokenizer_sha256"] == GEMMA
    value = PLAIN.replace(tokenizer=file_of(GEMMA), text_length=stored["length"])
    np.testing.assert_array_equal(value.text(stored["titles"]), stored["ids"])
    repeated = stored["repeated"]
    assert value.text(repeated["title"] * repeated["times"])[0].tolist() == repeated["ids"]
    assert value.vocab_size == 256_000
