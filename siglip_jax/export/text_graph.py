"""Titles to token ids written in TensorFlow's operations, as `Preprocessing.text` makes them; the module comes as `tf`.

The SentencePiece model is part of the graph, through tensorflow-text: whoever loads it imports `tensorflow_text` first,
or serves it with TensorFlow Serving, which brings these operations along.
"""

from __future__ import annotations

import re
import string
from typing import Any

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import EOS_ID, MAX_TITLE_CHARACTERS, Preprocessing
from siglip_jax.preprocessing.preprocessing import BEFORE_MARK, WORD_MARK
from siglip_jax.preprocessing.tokenizer import is_json

# What Python's str.split() takes for white space, as a class of RE2.
_SPACE = r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_NO_CHARACTER = "\uffff"  # of no text
_PUNCTUATION = f"[{re.escape(string.punctuation)}]"


def check_tokenizer(preprocessing: Preprocessing | None) -> None:
    """Raises a UserError where titles cannot become ids in a graph."""
    if preprocessing is None or preprocessing.tokenizer is None:
        raise UserError("the model has no tokenizer, so a graph takes no strings; choose --text=ids")
    if is_json(preprocessing.tokenizer):
        raise UserError(
            "the tokenizer is a tokenizer.json, for which TensorFlow has no operation; choose --text=ids, or "
            "give the model the SentencePiece .model file that it was made from"
        )


class TextGraph:
    """string [n] -> int32 [n, text_length]. Keep it with the graph: it holds the tokenizer's resource.

    Raises:
      UserError: tensorflow-text is not installed, or a tokenizer that it has no operation for.
    """

    def __init__(self, tf: Any, preprocessing: Preprocessing):
        check_tokenizer(preprocessing)
        try:
            import tensorflow_text
        except ImportError as error:
            raise UserError(
                f"a graph that takes strings needs tensorflow-text ({error}); install siglip-jax[export], or choose "
                "--text=ids"
            ) from error
        self._tf, self._preprocessing = tf, preprocessing
        self.tokenizer = tensorflow_text.SentencepieceTokenizer(model=preprocessing.tokenizer, out_type=tf.int32)
        self._dropped = preprocessing.ids_before_mark

    def __call__(self, titles: Any) -> Any:
        tf, length = self._tf, self._preprocessing.text_length
        inputs, marked = self._inputs(titles)
        pieces = self.tokenizer.tokenize(inputs)
        skip = tf.where(marked, (self._dropped or 0), 0)
        counts = tf.minimum(tf.cast(pieces.row_lengths(), tf.int32) - skip, length - 1)
        # Dense, so that every row can begin at its own place.
        rows = pieces.to_tensor(shape=[None, length + (self._dropped or 0)])
        columns = tf.range(length)[None]
        ids = tf.gather(rows, skip[:, None] + columns, batch_dims=1)
        end = counts[:, None]
        ids = tf.where(columns < end, ids, tf.where(columns == end, EOS_ID, self._preprocessing.pad_id))
        return tf.ensure_shape(ids, [None, length])

    def _inputs(self, titles: Any) -> tuple[Any, Any]:
        """What is tokenised, and which rows begin with `BEFORE_MARK`; see `Preprocessing._tokenizer_input`."""
        tf, preprocessing = self._tf, self._preprocessing
        replace = tf.strings.regex_replace
        # What is no UTF-8 would be an error of the whole batch.
        titles = tf.strings.unicode_transcode(titles, "UTF-8", "UTF-8", errors="replace", replacement_char=ord("?"))
        cut = tf.strings.substr(titles, 0, MAX_TITLE_CHARACTERS, unit="UTF8_CHAR")
        text = cut
        if preprocessing.punctuation == "delete":
            text = bare = replace(replace(cut, _PUNCTUATION, ""), WORD_MARK, " ")
            text = tf.strings.strip(replace(text, f"{_SPACE}+", " "))
        if preprocessing.lowercase == "ascii":
            text = tf.strings.lower(text)
        elif preprocessing.lowercase == "unicode":  # ends at a zero, so that zeros are something else meanwhile
            text = tf.strings.lower(replace(text, r"\x00", _NO_CHARACTER), encoding="utf-8")
            text = replace(text, _NO_CHARACTER, "\x00")
        if self._dropped is None:
            return text, tf.zeros(tf.shape(text), tf.bool)
        empty, spaced = tf.equal(text, ""), tf.strings.regex_full_match(bare, f"(?s){_SPACE}.*")
        of_spaced = tf.where(spaced, tf.strings.join([f"{BEFORE_MARK} ", text]), text)
        return tf.where(empty, BEFORE_MARK, of_spaced), empty | spaced
