"""How a picture becomes pixels and a title becomes token ids: one value, saved with every model.

Training, embedding, evaluation and export read the same value, since wrong preprocessing is the commonest reason for
ruined SigLIP results (big_vision issues 166, 186, 187). Only numpy, picture and tokenizer libraries are imported here
and in the rest of this folder: data workers load this module and must not load JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError, check_choice
from siglip_jax.preprocessing.images import FILLS, MAX_IMAGE_PIXELS, cut_patches, decode_image, scratch
from siglip_jax.preprocessing.patches import Patches
from siglip_jax.preprocessing.resize_table import NAFLEX, RESIZES
from siglip_jax.preprocessing.tokenizer import EOS_ID, SENTINELS, TOKENIZER_FILES, Tokenizer, file_name, open_tokenizer

MAX_TEXT_LENGTH = 2**16
MAX_TITLE_CHARACTERS = 10_000  # characters beyond are cut before tokenising: they could never fit a text length

_FIELD_CHOICES: dict[str, Iterable[str]] = {
    "resize": RESIZES,
    "lowercase": ("none", "ascii", "unicode"),
    "punctuation": ("keep", "delete"),
    "exif": ("ignored",),
}
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
WORD_MARK = "\u2581"  # how SentencePiece writes a space
BEFORE_MARK = f"a{WORD_MARK}"  # a word of its own, which no canonical title begins with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Pictures to pixels, titles to ids.

    Alpha is dropped, 16-bit levels keep their upper byte and only the first frame of an animation is read, as
    big_vision and the Hugging Face processors do, so that a published checkpoint sees what it was trained on. Neither
    do these turn a picture by its EXIF orientation; since other programs do, that rule has a name, `exif`.

    Attributes:
      image_size: (height, width) in pixels; pictures are squashed to it. With "naflex": the nominal size of the
        position grid, grid * patch_size, which does not change the pictures.
      resize: "bilinear" (antialiased, SigLIP 2 on Hugging Face), "bicubic" (antialiased, SigLIP 1 on Hugging Face),
        "bilinear_no_antialias" (big_vision's own), "bilinear_scaled_decode" (bilinear of a JPEG decoded at 1/2, 1/4 or
        1/8 where that is no smaller than `image_size`: faster, other pixels), "bilinear_pad" (bilinear, the aspect
        ratio kept, `fill` around) or "naflex" (SigLIP 2, arXiv 2502.14786: the aspect ratio is kept, bilinear and
        antialiased, to at most `max_patches` patches).
      fill: of "bilinear_pad", "white", "grey" or "edge" (the mean colour of the picture's edges there); "" for others.
      value_range: what 0 and 255 are mapped to.
      patch_size, max_patches: of "naflex", pixels per side of a patch and patches per picture; 0 for other kinds.
      tokenizer: serialised SentencePiece model or tokenizer.json, or None for a model of arrays and ids only.
      text_length: tokens per title, padding included.
      pad_id: fills short titles (1 in SigLIP 1, 0 in SigLIP 2).
      lowercase: "none", "ascii" (big_vision, SigLIP 1) or "unicode".
      punctuation: "keep" or "delete" (Hugging Face SigLIP 1: ASCII punctuation deleted, spaces collapsed).
      exif: "ignored", the one rule of training, embedding, serving and export: pixels are taken as they are stored,
        whatever orientation their EXIF notes ask for. (PIL turns a TIFF as it reads one, for everybody.)
    """

    image_size: tuple[int, int]
    resize: str = "bilinear"
    fill: str = ""
    value_range: tuple[float, float] = (-1.0, 1.0)
    patch_size: int = 0
    max_patches: int = 0
    tokenizer: bytes | None = dataclasses.field(default=None, repr=False)
    text_length: int = 64
    pad_id: int = 0
    lowercase: str = "unicode"
    punctuation: str = "keep"
    exif: str = "ignored"

    def __post_init__(self) -> None:
        for field, choices in _FIELD_CHOICES.items():
            check_choice(f"preprocessing: {field}", getattr(self, field), choices)
        for field in ("image_size", "value_range"):
            if isinstance(getattr(self, field), list):  # of JSON
                object.__setattr__(self, field, tuple(getattr(self, field)))
        sides = self.image_size
        if not isinstance(sides, tuple) or len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise UserError(f"preprocessing: image_size={sides!r}; expected (height, width), whole and positive")
        if sides[0] * sides[1] > MAX_IMAGE_PIXELS:
            raise UserError(f"preprocessing: image_size={sides!r}; the limit is {MAX_IMAGE_PIXELS} pixels")
        self._check_patches()
        if RESIZES[self.resize].uses_fill:
            check_choice(f"preprocessing: resize={self.resize!r} with fill", self.fill, FILLS)
        elif self.fill != "":
            owners = " or ".join(f"resize={name!r}" for name, resize in RESIZES.items() if resize.uses_fill)
            raise UserError(f"preprocessing: fill={self.fill!r} belongs to {owners}; leave it out")
        if type(self.text_length) is not int or not 1 <= self.text_length <= MAX_TEXT_LENGTH:
            raise UserError(f"preprocessing: text_length={self.text_length!r}; expected 1 to {MAX_TEXT_LENGTH}")
        if type(self.pad_id) is not int or not 0 <= self.pad_id < 2**31:
            raise UserError(f"preprocessing: pad_id={self.pad_id!r}; expected a token id")
        span = self.value_range
        if (
            not isinstance(span, tuple)
            or len(span) != 2
            or not all(isinstance(end, (int, float)) and abs(end) < 1e6 for end in span)
            or not span[0] < span[1]
        ):
            raise UserError(f"preprocessing: value_range={span!r}; expected (low, high)")
        if self.tokenizer is not None and not isinstance(self.tokenizer, bytes):
            raise UserError(
                f"preprocessing: tokenizer is a {type(self.tokenizer).__name__}; expected the bytes of the file"
            )

    def _check_patches(self) -> None:
        given = f"preprocessing: resize={self.resize!r} with patch_size={self.patch_size!r}, "
        given += f"max_patches={self.max_patches!r}"
        sizes = (self.patch_size, self.max_patches)
        if any(type(size) is not int for size in sizes):
            raise UserError(f"{given}; expected whole numbers")
        if not RESIZES[self.resize].uses_patches:
            if any(sizes):
                raise UserError(f"{given}; these belong to resize={NAFLEX!r}: leave them out")
            return
        if min(sizes) < 1:
            raise UserError(f"{given}; expected both at least 1")
        if self.patch_size**2 * self.max_patches > MAX_IMAGE_PIXELS:
            raise UserError(f"{given}; the limit is {MAX_IMAGE_PIXELS} pixels")
        if any(side % self.patch_size for side in self.image_size):
            raise UserError(f"{given}; image_size={self.image_size} is not a multiple of the patch size")

    def replace(self, **changes: Any) -> Preprocessing:
        return dataclasses.replace(self, **changes)

    def check_fits(
        self, *, image_size: tuple[int, int], text_length: int, vocab_size: int, naflex_patch: int = 0
    ) -> None:
        """Raises a UserError where a model of these sizes cannot take what this value makes.

        `naflex_patch` is the patch size of a NaFlex model, 0 of others.
        """
        ours: dict[str, Any] = {"image_size": tuple(self.image_size), "text_length": self.text_length}
        theirs: dict[str, Any] = {"image_size": tuple(image_size), "text_length": text_length}
        ours["NaFlex patch size"], theirs["NaFlex patch size"] = self.patch_size, naflex_patch
        problems = [
            f"{name} {ours[name]}, the model's is {theirs[name]}" for name in ours if ours[name] != theirs[name]
        ]
        # A lookup beyond the table is silent in XLA.
        if self.tokenizer is not None and self.vocab_size > vocab_size + SENTINELS:
            problems.append(f"{self.vocab_size} token ids, the model has {vocab_size}")
        if problems:
            raise UserError(f"preprocessing: {'; '.join(problems)}; give the preprocessing that belongs to the model")

    # --- pictures -------------------------------------------------------------------------------------------------

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one picture's pixels in a batch: (height, width, 3), or (max_patches, patch_size**2 * 3) for NaFlex."""
        if self.resize == NAFLEX:
            return self.max_patches, self.patch_size**2 * 3
        return *self.image_size, 3

    def image(
        self,
        picture: bytes | PIL.Image.Image,
        *,
        crop: Callable[[np.ndarray], np.ndarray] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """One encoded (JPEG, PNG, ...) or opened picture -> uint8 [height, width, 3].

        With "naflex" height and width are multiples of `patch_size` and differ between pictures.

        Args:
          crop: uint8 [H, W, 3], as it came -> the part of it to take, which may be a view.
          out: where to write instead of a new array, such as a row of a batch: uint8 `row_shape`; not for "naflex".

        Raises:
          UserError: what is no readable picture, or too large a one; `out` of another shape; an opened JPEG with
            "bilinear_scaled_decode", which needs the encoded bytes.
        """
        resize = RESIZES[self.resize]
        at_least = self.image_size if resize.reduced_decode else None
        array = decode_image(picture, at_least=at_least, memory=scratch())
        array = array if crop is None else crop(array)
        if self.resize == NAFLEX and out is not None:
            raise UserError("NaFlex pictures differ in size; leave out= away and pass them to batch()")
        size = resize.size(array.shape[0], array.shape[1], self)
        resized = resize.apply(array, size, self, out)
        if resized.dtype != np.uint8 or resized.shape != (*size, 3):
            given = f"{resized.dtype} {list(resized.shape)}"
            raise TypeError(f"resize {self.resize!r} gave {given}; expected uint8 {[*size, 3]}")
        if out is None:
            # An image that nothing was done to may be a view of memory that the next one is decoded to.
            return resized.copy() if np.may_share_memory(resized, array) else resized
        if resized is not out:
            out[...] = resized
        return out

    def batch(self, images: Sequence[np.ndarray]) -> np.ndarray | Patches:
        """What `image` gave -> uint8 [n, height, width, 3], or for NaFlex `Patches` padded with zeros."""
        if self.resize != NAFLEX:
            return np.stack(images) if len(images) else np.zeros((0, *self.row_shape), np.uint8)
        pixels = np.zeros((len(images), *self.row_shape), np.uint8)
        shape = np.zeros((len(images), 2), np.int32)
        for row, image in enumerate(images):
            cut = cut_patches(image, self.patch_size)
            pixels[row, : len(cut)] = cut
            shape[row] = image.shape[0] // self.patch_size, image.shape[1] // self.patch_size
        return Patches(pixels, shape)

    def images(self, pictures: Iterable[bytes | PIL.Image.Image]) -> Any:
        """Pictures -> what the image tower takes: float32 [n, height, width, 3] in `value_range`, or `Patches`."""
        arrays = []
        for row, picture in enumerate(pictures):
            try:
                arrays.append(self.image(picture))
            except UserError as error:
                raise UserError(f"picture {row}: {error}") from error
        return self.to_float(self.batch(arrays))

    def to_float(self, image: Any) -> Any:
        """uint8 [..., 3] or `Patches` (numpy or JAX) -> float32 in `value_range`, zero where there is no patch.

        A dict of features, what an adapter takes instead of pictures, is returned as it is: they are no pixels.
        """
        if isinstance(image, Mapping):
            return image
        low, high = self.value_range
        scale, offset = np.float32((high - low) / 255), np.float32(low)
        if isinstance(image, Patches):
            exists = image.mask[..., None]
            pixels = (image.pixels * exists).astype("float32") * scale + exists.astype("float32") * offset
            return Patches(pixels, image.shape)
        return image.astype("float32") * scale + offset

    # --- titles ---------------------------------------------------------------------------------------------------

    def canonical(self, title: str) -> str:
        """The title after its rules: cut to a bound, punctuation handled, lower-cased."""
        title = self._cut(title)
        if self.punctuation == "delete":
            title = " ".join(_without_punctuation(title).split())
        if self.lowercase == "ascii":
            title = title.translate(_ASCII_LOWER)
        elif self.lowercase == "unicode":
            title = title.lower()
        return title

    def text(self, titles: str | Sequence[str]) -> np.ndarray:
        """Titles -> int32 [n, text_length]: ids, EOS (kept last when the title is cut), then padding.

        Raises:
          UserError: no tokenizer, or one that cannot be read.
        """
        if self.tokenizer is None:
            raise UserError("this preprocessing has no tokenizer, so strings cannot be encoded; pass token ids")
        titles = [titles] if isinstance(titles, str) else list(titles)
        for number, title in enumerate(titles):
            if not isinstance(title, str):
                raise UserError(f"title {number} is a {type(title).__name__}; expected strings, or an int array of ids")
        ids = np.full((len(titles), self.text_length), self.pad_id, np.int32)
        inputs = [self._tokenizer_input(title) for title in titles]
        for row, text, pieces in zip(ids, inputs, self._tokenizer.encode(inputs), strict=True):
            if self.ids_before_mark is not None and text.startswith(BEFORE_MARK):
                pieces = pieces[self.ids_before_mark :]
            pieces = [*pieces[: self.text_length - 1], EOS_ID]
            row[: len(pieces)] = pieces
        return ids

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer, padding included."""
        return max(self._tokenizer.vocab_size, self.pad_id + 1)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        assert self.tokenizer is not None
        return open_tokenizer(self.tokenizer)

    @functools.cached_property
    def ids_before_mark(self) -> int | None:
        """Ids of what `_tokenizer_input` puts before the word mark; None where it puts nothing."""
        if self.punctuation != "delete" or self._tokenizer.piece_id(WORD_MARK) is None:
            return None
        return len(self._tokenizer.encode([BEFORE_MARK.removesuffix(WORD_MARK)])[0])

    def _tokenizer_input(self, title: str) -> str:
        """The canonical title; in Hugging Face's SigLIP 1, what it makes of one that is empty or starts with a space.

        Its tokenizer puts the word mark before the title first, tidies up afterwards, and asks SentencePiece behind
        another token. What is left in front of the first word is then up to the normalisation of the tokenizer: an
        empty word in published ones, nothing where it takes white space together.
        """
        canonical = self.canonical(title)
        if self.ids_before_mark is None:
            return canonical
        if not canonical:
            return BEFORE_MARK
        spaced = _without_punctuation(self._cut(title))[0].isspace()
        return f"{BEFORE_MARK} {canonical}" if spaced else canonical

    @staticmethod
    def _cut(title: str) -> str:
        # Half an emoji, left by a careless cut upstream, is no UTF-8; it becomes "?".
        return title[:MAX_TITLE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")

    # --- storage --------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Every field in use as plain JSON; the tokenizer as its sha256."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tokenizer"}
        if not self.fill:  # as in files written before there was one, to which stored values are compared
            del fields["fill"]
        fields |= {"image_size": list(self.image_size), "value_range": list(self.value_range)}
        return {**fields, "tokenizer_sha256": hashlib.sha256(self.tokenizer).hexdigest() if self.tokenizer else None}

    def save(self, folder: epath.PathLike) -> None:
        """Writes preprocessing.json and, where there is one, tokenizer.model or tokenizer.json beside it."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.tokenizer is not None:
            (folder / file_name(self.tokenizer)).write_bytes(self.tokenizer)
        (folder / "preprocessing.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: epath.PathLike) -> Preprocessing:
        """Reads what `save` wrote; the tokenizer must be the one the value was saved with."""
        folder = epath.Path(folder)
        path = folder / "preprocessing.json"
        if not path.exists():
            raise UserError(f"{folder}: no preprocessing.json; expected a folder written by siglip-jax")
        fields = files.read_json(path)
        try:
            sha256 = fields.pop("tokenizer_sha256")
            fields |= {"image_size": tuple(fields["image_size"]), "value_range": tuple(fields["value_range"])}
            value = cls(**fields)
            if not (sha256 is None or (isinstance(sha256, str) and len(sha256) == 64)):
                raise ValueError(f"tokenizer_sha256 is {sha256!r}")
        except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path}: not a preprocessing file ({error}); save the model again") from error
        return value.replace(tokenizer=_read_tokenizer(folder, sha256)) if sha256 else value


def comparable(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What `to_json` gave, in whatever version: a field that files did not name yet has the value it always had."""
    return None if stored is None else {"exif": "ignored", **stored}


def _read_tokenizer(folder: epath.Path, sha256: str) -> bytes:
    """The tokenizer file of that sum; a folder may hold one of each kind, such as one from Hugging Face."""
    found = []
    for name in TOKENIZER_FILES:
        try:
            serialised = (folder / name).read_bytes()
        except OSError:
            continue
        if (sum_ := hashlib.sha256(serialised).hexdigest()) == sha256:
            return serialised
        found.append(f"{folder / name}: sha256 is {sum_}")
    if not found:
        raise UserError(
            f"{folder}: neither {' nor '.join(TOKENIZER_FILES)} can be read; copy the one of sha256 {sha256} "
            "beside preprocessing.json"
        )
    raise UserError(f"{'; '.join(found)}, but the model was saved with {sha256}; put the original tokenizer back")


def _without_punctuation(title: str) -> str:
    # The word mark stands for a space, so one that a title brings along is one.
    return title.translate(_DELETE_PUNCTUATION).replace(WORD_MARK, " ")
