"""What decides the parameter shapes of a SigLIP model. No JAX is imported: listing models must answer at once."""

from __future__ import annotations

import dataclasses
from typing import Any

from siglip_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")  # of computing and of storing
# Far beyond any model; a damaged file must not ask for terabytes.
MAX_SIZE, MAX_DEPTH, MAX_PIXELS = 2**24, 1024, 2**14


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSize:
    """Width, depth, MLP width and heads of one transformer."""

    width: int
    depth: int
    mlp_dim: int
    heads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that decides the parameter shapes of a SigLIP model; plain JSON there and back.

    Attributes:
      image_size: (height, width) in pixels; what is left of a division by `patch_size` is not looked at (384 by 14 in
        the published So400m).
      patch_size: pixels per side of a square patch.
      image, text: sizes of the two transformers.
      vocab_size, text_length: rows of the token embedding, tokens per title.
      text_head: whether a linear layer follows the text tower; SigLIP 1 i18n has none.
      naflex: pictures of any aspect ratio, as `Patches`; `image_size` then is the grid of the position embedding times
        `patch_size`, and each picture gets that embedding resized to its own grid.
      embedding_dim: width of the shared space; equals `image.width`, since the image tower has no projection (what
        Hugging Face calls projection_size is the output of the text head).
    """

    image_size: tuple[int, int]
    patch_size: int
    image: TowerSize
    text: TowerSize
    vocab_size: int
    text_length: int
    text_head: bool = True
    naflex: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.image_size, self.patch_size, self.vocab_size, self.text_length)
        whole = (*sizes, *dataclasses.astuple(self.image), *dataclasses.astuple(self.text))
        if len(self.image_size) != 2 or any(type(size) is not int or not 0 < size <= MAX_SIZE for size in whole):
            raise UserError(f"model: {self}; expected (height, width) and whole numbers from 1 to {MAX_SIZE}")
        for name, found, limit in (
            ("layers", max(self.image.depth, self.text.depth), MAX_DEPTH),
            ("pixels a side", max(self.image_size), MAX_PIXELS),
        ):
            if found > limit:
                raise UserError(f"model: {found} {name}; the limit is {limit}")
        if any(side < self.patch_size for side in self.image_size):
            raise UserError(f"model: image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        for name, tower in (("image", self.image), ("text", self.text)):
            if tower.width % tower.heads:
                raise UserError(f"model: {name}.width {tower.width} is not a multiple of {name}.heads {tower.heads}")
        if type(self.text_head) is not bool or type(self.naflex) is not bool:
            raise UserError(f"model: text_head={self.text_head!r}, naflex={self.naflex!r}; expected true or false")
        if not self.text_head and self.text.width != self.image.width:
            raise UserError(
                f"model: without a text head both towers need one width; "
                f"text {self.text.width}, image {self.image.width}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position embedding."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def embedding_dim(self) -> int:
        return self.image.width

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Architecture:
        try:
            towers = {name: TowerSize(**fields[name]) for name in ("image", "text")}
            return cls(**{**fields, **towers, "image_size": tuple(fields["image_size"])})
        except UserError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"model: not an architecture ({error}); expected {cls._expected()}") from error

    @classmethod
    def _expected(cls) -> str:
        return ", ".join(field.name for field in dataclasses.fields(cls))


def parameter_counts(architecture: Architecture) -> dict[str, int]:
    """How many numbers the image tower, the text tower and the whole model (with t and b) have."""

    def norm(width: int) -> int:
        return 2 * width

    def attention_and_mlp(size: TowerSize) -> int:
        attention = 4 * (size.width + 1) * size.width
        return attention + (size.width + 1) * size.mlp_dim + (size.mlp_dim + 1) * size.width

    def encoder(size: TowerSize) -> int:
        return size.depth * (attention_and_mlp(size) + 2 * norm(size.width)) + norm(size.width)

    image, text = architecture.image, architecture.text
    rows, columns = architecture.grid
    patches = (architecture.patch_size**2 * 3 + 1 + rows * columns) * image.width
    pooling = image.width + attention_and_mlp(image) + norm(image.width)
    tokens = (architecture.vocab_size + architecture.text_length) * text.width
    head = (text.width + 1) * architecture.embedding_dim if architecture.text_head else 0
    counts = {"image": patches + encoder(image) + pooling, "text": tokens + encoder(text) + head}
    return {**counts, "total": sum(counts.values()) + 2}
