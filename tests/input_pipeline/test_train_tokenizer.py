"""Trained in memory: the ids SigLIP wants, the same bytes each time, and every title decodes back."""

import string

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

TITLES = [
    f"{colour} {kind} for {who}"
    for colour in ("red", "navy blue", "grün", "ivory")
    for kind in ("dress", "running shoes", "t-shirt", "leather bag")
    for who in ("women", "men", "kids")
]
MODEL = train_tokenizer(TITLES, vocab_size=400)
PROCESSOR = sentencepiece.SentencePieceProcessor(model_proto=MODEL)


def test_special_ids():
    ids = (PROCESSOR.pad_id(), PROCESSOR.eos_id(), PROCESSOR.unk_id(), PROCESSOR.bos_id())
    assert ids == (0, 1, 2, -1)
    row = Preprocessing(image_size=(8, 8), tokenizer=MODEL, text_length=16).text("Red dress")[0].tolist()
    assert row[-1] == 0
    assert row.count(1) == 1


def test_deterministic_whatever_the_order():
    assert train_tokenizer(TITLES[::-1], vocab_size=400) == MODEL
    assert train_tokenizer(iter(TITLES), vocab_size=400) == MODEL


@settings(deadline=None)
@given(st.text(string.ascii_letters + string.digits + string.punctuation + " "))
def test_ascii_titles_decode_back(title):
    assert PROCESSOR.decode(PROCESSOR.encode(title)) == " ".join(title.split())


@given(st.text(st.characters(exclude_categories=("C", "Z"))))
def test_no_title_is_unknown(title):
    assert PROCESSOR.unk_id() not in PROCESSOR.encode(title)


def test_words_of_the_catalogue_become_pieces():
    assert PROCESSOR.encode("leather dress", out_type=str) == ["▁leather", "▁dress"]


@pytest.mark.parametrize("titles", [["a"], ["日本語 シャツ"], ["x" * 50_000], ["  ", "hat"]])
def test_small_catalogues_get_small_vocabularies(titles):
    model = train_tokenizer(titles, vocab_size=4096)
    assert 259 < sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() < 400


def test_the_vocabulary_has_the_wanted_size():
    assert PROCESSOR.get_piece_size() <= 400
    assert (
        sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer(TITLES, vocab_size=300)).get_piece_size()
        == 300
    )


@pytest.mark.parametrize(
    ("titles", "size", "message"),
    [
        ([], 400, "no titles"),
        (["", "  "], 400, "no titles"),
        (TITLES, 100, "more than 259"),
        (TITLES, 0, "more than 259"),
    ],
)
def test_what_cannot_be_trained(titles, size, message):
    with pytest.raises(UserError, match=message) as error:
        train_tokenizer(titles, vocab_size=size)
    assert "\n" not in str(error.value)


def test_nothing_is_printed(capfd):
    train_tokenizer(TITLES, vocab_size=400)
    assert capfd.readouterr() == ("", "")
