"""Tokenizer files behind one interface: SentencePiece models, and Hugging Face's tokenizer.json.

Both libraries are imported when first used; data workers load this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from siglip_jax.errors import UserError

# mC4's and T5's published files have 100 ids more than the models have rows: <extra_id_0>, ..., which no title spells.
SENTINELS = 100
EOS_ID = 1  # of every SigLIP tokenizer, published or trained here
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")  # beside a saved model: SentencePiece, Hugging Face


class Tokenizer(Protocol):
    """Ids of strings, without anything added: no beginning, no end, no padding, no truncation."""

    def encode(self, titles: Sequence[str]) -> list[list[int]]: ...

    def piece_id(self, piece: str) -> int | None:
        """The id of a piece of the vocabulary, None where there is no such piece."""

    def piece(self, number: int) -> str:
        """The piece of an id."""

    @property
    def vocab_size(self) -> int: ...


def is_json(serialised: bytes) -> bool:
    """Whether the bytes are a tokenizer.json; a SentencePiece model never starts with a brace."""
    return serialised.lstrip()[:1] == b"{"


def file_name(serialised: bytes) -> str:
    """What the file is called beside a saved model."""
    return TOKENIZER_FILES[is_json(serialised)]


def open_tokenizer(serialised: bytes) -> Tokenizer:
    """The bytes of a SentencePiece model or of a tokenizer.json -> a `Tokenizer`.

    Raises:
      UserError: neither, or a tokenizer.json without the `tokenizers` library.
    """
    if not serialised:
        raise UserError("the tokenizer is an empty file; pass a SentencePiece .model file or a tokenizer.json")
    return _HuggingFace(serialised) if is_json(serialised) else _SentencePiece(serialised)


class _SentencePiece:
    def __init__(self, serialised: bytes):
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=serialised)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"the tokenizer is not a SentencePiece model ({_one_line(error)}); "
                "pass a .model file or a tokenizer.json"
            ) from error

    def encode(self, titles: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(titles))

    def piece_id(self, piece: str) -> int | None:
        number = self._processor.piece_to_id(piece)  # that of the unknown piece where there is none
        return number if self._processor.id_to_piece(number) == piece else None

    def piece(self, number: int) -> str:
        return self._processor.id_to_piece(number)

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()


class _HuggingFace:
    def __init__(self, serialised: bytes):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                f"a tokenizer.json needs the tokenizers library ({error}); install siglip-jax[huggingface], or pass "
                "the SentencePiece .model file it was made from"
            ) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(serialised)
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"the tokenizer is not a tokenizer.json ({_one_line(error)}); pass the file of that name"
            ) from error
        self._tokenizer.no_truncation()  # ours keeps EOS
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a title that says "<eos>" is text, as in SentencePiece

    def encode(self, titles: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(titles), add_special_tokens=False)]

    def piece_id(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)

    def piece(self, number: int) -> str:
        return self._tokenizer.id_to_token(number) or ""

    @property
    def vocab_size(self) -> int:
        # Ids may have gaps, so the number of pieces would not do.
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:120]
