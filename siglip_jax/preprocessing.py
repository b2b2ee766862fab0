"""How a picture becomes pixels and a title becomes token ids: one value, saved with every model.

Training, embedding, evaluation and export read the same value, since wrong preprocessing is the commonest reason for
ruined SigLIP results (big_vision issues 166, 186, 187). Only numpy, PIL and sentencepiece are imported here: data
workers load this module and must not load JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import string
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image

from siglip_jax.errors import UserError

MAX_IMAGE_PIXELS = 64_000_000  # larger pictures are refused before they are decoded
MAX_TITLE_CHARACTERS = 10_000  # characters beyond are cut before tokenising: they could never fit a text length
EOS_ID = 1  # of every SigLIP tokenizer, published or trained here

_PIL_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
_FIELD_CHOICES = {
    "resize": ("bilinear", "bicubic", "bilinear_no_antialias"),
    "lowercase": ("none", "ascii", "unicode"),
    "punctuation": ("keep", "delete"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Pictures to pixels, titles to ids.

    Alpha is dropped, EXIF rotation is ignored and only the first frame of an animation is read, as big_vision and
    the Hugging Face processors do, so that a published checkpoint sees what it was trained on.

    Attributes:
      image_size: (height, width) in pixels; pictures are squashed to it.
      resize: "bilinear" (antialiased, SigLIP 2 on Hugging Face), "bicubic" (antialiased, SigLIP 1 on Hugging Face) or
        "bilinear_no_antialias" (big_vision's own).
      value_range: what 0 and 255 are mapped to.
      tokenizer: serialised SentencePiece model, or None for a model of arrays and ids only.
      text_length: tokens per title, padding included.
      pad_id: fills short titles (1 in SigLIP 1, 0 in SigLIP 2).
      lowercase: "none", "ascii" (big_vision, SigLIP 1) or "unicode".
      punctuation: "keep" or "delete" (Hugging Face SigLIP 1: ASCII punctuation deleted, spaces collapsed).
    """

    image_size: tuple[int, int]
    resize: str = "bilinear"
    value_range: tuple[float, float] = (-1.0, 1.0)
    tokenizer: bytes | None = dataclasses.field(default=None, repr=False)
    text_length: int = 64
    pad_id: int = 0
    lowercase: str = "unicode"
    punctuation: str = "keep"

    def __post_init__(self):
        for field, choices in _FIELD_CHOICES.items():
            if getattr(self, field) not in choices:
                raise UserError(
                    f"preprocessing: {field}={getattr(self, field)!r}; expected one of {', '.join(choices)}"
                )
        sides = self.image_size
        if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise UserError(f"preprocessing: image_size={sides!r}; expected (height, width), whole and positive")
        if sides[0] * sides[1] > MAX_IMAGE_PIXELS:
            raise UserError(f"preprocessing: image_size={sides!r}; the limit is {MAX_IMAGE_PIXELS} pixels")
        if type(self.text_length) is not int or self.text_length < 1:
            raise UserError(f"preprocessing: text_length={self.text_length!r}; expected a whole number of at least 1")
        if type(self.pad_id) is not int or self.pad_id < 0:
            raise UserError(f"preprocessing: pad_id={self.pad_id!r}; expected a token id")
        span = self.value_range
        if len(span) != 2 or not all(isinstance(end, (int, float)) for end in span) or not span[0] < span[1]:
            raise UserError(f"preprocessing: value_range={span!r}; expected (low, high)")

    def replace(self, **changes: Any) -> Preprocessing:
        return dataclasses.replace(self, **changes)

    # --- pictures -------------------------------------------------------------------------------------------------

    def image(self, picture: bytes | PIL.Image.Image) -> np.ndarray:
        """One encoded (JPEG, PNG, ...) or opened picture -> uint8 [height, width, 3]."""
        return resize_image(decode_image(picture), self.image_size, method=self.resize)

    def images(self, pictures: Iterable[bytes | PIL.Image.Image]) -> np.ndarray:
        """Pictures -> float32 [n, height, width, 3] in `value_range`, what the image tower takes."""
        arrays = [self.image(picture) for picture in pictures]
        return self.to_float(np.reshape(arrays, (len(arrays), *self.image_size, 3)).astype(np.uint8))

    def to_float(self, image):
        """uint8 [..., 3] (numpy or JAX) -> float32 in `value_range`."""
        low, high = self.value_range
        return image.astype("float32") * np.float32((high - low) / 255) + np.float32(low)

    # --- titles ---------------------------------------------------------------------------------------------------

    def canonical(self, title: str) -> str:
        """The title as the tokenizer sees it: cut to a bound, lower-cased, punctuation handled."""
        # Half an emoji, left by a careless cut upstream, is no UTF-8; it becomes "?".
        title = title[:MAX_TITLE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
        if self.punctuation == "delete":
            title = " ".join(title.translate(_DELETE_PUNCTUATION).split())
        if self.lowercase == "ascii":
            title = title.translate(_ASCII_LOWER)
        elif self.lowercase == "unicode":
            title = title.lower()
        return title

    def text(self, titles: str | Sequence[str]) -> np.ndarray:
        """Titles -> int32 [n, text_length]: ids, EOS (kept last when the title is cut), then padding."""
        if self.tokenizer is None:
            raise UserError("this preprocessing has no tokenizer, so strings cannot be encoded; pass token ids")
        titles = [titles] if isinstance(titles, str) else titles
        ids = np.full((len(titles), self.text_length), self.pad_id, np.int32)
        for row, pieces in zip(ids, self._sentencepiece.encode([self.canonical(t) for t in titles]), strict=True):
            pieces = [*pieces[: self.text_length - 1], EOS_ID]
            row[: len(pieces)] = pieces
        return ids

    @functools.cached_property
    def _sentencepiece(self):
        assert self.tokenizer is not None
        return open_tokenizer(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer, padding included."""
        return max(self._sentencepiece.get_piece_size(), self.pad_id + 1)

    # --- storage --------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON; the tokenizer as its sha256."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tokenizer"}
        fields |= {"image_size": list(self.image_size), "value_range": list(self.value_range)}
        return {**fields, "tokenizer_sha256": hashlib.sha256(self.tokenizer).hexdigest() if self.tokenizer else None}

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes preprocessing.json and, where there is a tokenizer, tokenizer.model beside it."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.tokenizer is not None:
            (folder / "tokenizer.model").write_bytes(self.tokenizer)
        (folder / "preprocessing.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Preprocessing:
        """Reads what `save` wrote; the tokenizer must be the one the value was saved with."""
        folder = pathlib.Path(folder)
        path = folder / "preprocessing.json"
        if not path.is_file():
            raise UserError(f"{folder}: no preprocessing.json; expected a folder written by siglip-jax")
        try:
            fields = json.loads(path.read_text())
            sha256 = fields.pop("tokenizer_sha256")
            fields |= {"image_size": tuple(fields["image_size"]), "value_range": tuple(fields["value_range"])}
            tokenizer = (folder / "tokenizer.model").read_bytes() if sha256 else None
            value = cls(tokenizer=tokenizer, **fields)
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path}: not a preprocessing file ({error}); save the model again") from error
        except OSError as error:
            raise UserError(
                f"{folder}: tokenizer.model cannot be read ({error.strerror}); copy it beside {path.name}"
            ) from error
        if tokenizer is not None and (found := hashlib.sha256(tokenizer).hexdigest()) != sha256:
            raise UserError(
                f"{folder / 'tokenizer.model'}: sha256 is {found}, but the model was saved with {sha256}; "
                "put the original tokenizer back"
            )
        return value


_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def open_tokenizer(serialised: bytes):
    """A `sentencepiece.SentencePieceProcessor` over serialised bytes; anything else is a `UserError`."""
    import sentencepiece

    if not serialised:
        raise UserError("the tokenizer is an empty file; pass a SentencePiece .model file")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=serialised)
    except (RuntimeError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:120]
        raise UserError(f"the tokenizer is not a SentencePiece model ({reason}); pass a .model file") from error


def decode_image(picture: bytes | PIL.Image.Image) -> np.ndarray:
    """An encoded or opened picture -> uint8 [H, W, 3].

    Raises:
      UserError: not a picture, truncated, or more than MAX_IMAGE_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF or palette chunks are no reason for noise
            if isinstance(picture, bytes):
                picture = PIL.Image.open(io.BytesIO(picture))
            width, height = picture.size
            if width * height > MAX_IMAGE_PIXELS:
                raise UserError(f"picture of {width}x{height} pixels; the limit is {MAX_IMAGE_PIXELS} pixels")
            if picture.mode.startswith("I;16"):  # PIL would clip 16-bit values to 255 instead of scaling them
                return np.repeat((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            return np.asarray(picture.convert("RGB"))
    except UserError:
        raise
    except PIL.UnidentifiedImageError as error:  # its text names an object by its address, another one in each run
        raise UserError("not a readable picture (unknown format)") from error
    except Exception as error:  # PIL raises many types on damaged files, SyntaxError and struct.error among them
        raise UserError(f"not a readable picture ({type(error).__name__}: {str(error)[:100]})") from error


def resize_image(image: np.ndarray, size: tuple[int, int], *, method: str) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3], squashed to `size` = (h, w) by `method` (see `Preprocessing.resize`)."""
    if image.shape[:2] == tuple(size):
        return np.ascontiguousarray(image)
    if method in _PIL_FILTERS:
        return np.asarray(PIL.Image.fromarray(image).resize((size[1], size[0]), _PIL_FILTERS[method]))
    rows, columns = (_bilinear_taps(old, new) for old, new in zip(image.shape, size, strict=False))
    resized = image[rows[0]] * (1 - rows[2])[:, None, None] + image[rows[1]] * rows[2][:, None, None]
    resized = resized[:, columns[0]] * (1 - columns[2])[:, None] + resized[:, columns[1]] * columns[2][:, None]
    return resized.clip(0, 255).astype(np.uint8)  # truncated, as tf.cast does in big_vision's resize


@functools.lru_cache(maxsize=256)
def _bilinear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and the upper one's weight for each of `new` half-pixel-centred samples."""
    position = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    floor = np.floor(position)
    lower, upper = (np.clip(floor + step, 0, old - 1).astype(np.int64) for step in (0, 1))
    return lower, upper, (position - floor).astype(np.float32)
