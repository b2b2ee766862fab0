"""Titles to ids in TensorFlow's operations beside `Preprocessing.text`."""

import io
import itertools

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_jax.errors import UserError
from siglip_jax.export.golden import ODD_TITLES
from siglip_jax.export.text_graph import TextGraph, check_tokenizer
from siglip_jax.preprocessing import Preprocessing

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_text")
# What the rules of titles look at, beside letters that lower case treats in a way of its own.
LETTERS = st.sampled_from(list("ab cAB\u2581.,!-_ \u3000\u00a0ÉΣσİ\n\t\x1c🙂\0\x85漢e\u0301ﬁ\uffff"))
TITLES = st.lists(st.text(LETTERS | st.characters(max_codepoint=0x2BFF, exclude_categories=["Cs"]), max_size=12))


@pytest.fixture(scope="module")
def graphs():
    """[(preprocessing, its graph)] of all rules."""
    titles = ["red shirt for women", "blue running shoes, size 10", "Café au lait mug", "a bag with a mark"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles), model_writer=model, vocab_size=36, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    found = []
    for lowercase, punctuation in itertools.product(("none", "ascii", "unicode"), ("keep", "delete")):
        rules = {"lowercase": lowercase, "punctuation": punctuation, "pad_id": int(punctuation == "delete")}
        value = Preprocessing(image_size=(8, 8), tokenizer=model.getvalue(), text_length=8, **rules)
        graph = TextGraph(tf, value)
        found.append((value, tf.function(graph, [tf.TensorSpec([None], tf.string)], autograph=False)))
    return found


@settings(max_examples=60, deadline=None)
@given(titles=TITLES)
def test_equals_the_preprocessing(graphs, titles):
    titles = [*titles, "", "a\u2581b"]
    for value, graph in graphs:
        assert graph(tf.constant(titles)).numpy().tolist() == value.text(titles).tolist(), value


def test_odd_titles(graphs):
    for value, graph in graphs:
        assert graph(tf.constant(ODD_TITLES)).numpy().tolist() == value.text(ODD_TITLES).tolist()


def test_no_utf8_is_no_failure(graphs):
    """As half an emoji becomes a question mark in `Preprocessing.text`."""
    value, graph = graphs[0]
    found = graph(tf.constant([b"red \xff shirt"])).numpy()
    assert found.tolist() == value.text(["red ? shirt"]).tolist()


def test_what_has_no_graph(graphs):
    value = graphs[0][0]
    for tokenizer in (None, b'{"model": {}}'):
        with pytest.raises(UserError, match="choose --text=ids"):
            check_tokenizer(value.replace(tokenizer=tokenizer))
