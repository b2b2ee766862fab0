"""What decides the parameter shapes of a SigLIP model. No JAX is imported: listing models must answer at once."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

from siglip_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")  # of computing and of storing
GELUS = ("tanh", "exact")  # by its tanh approximation, as every published SigLIP was trained, or by the error function
# Far beyond any model; a damaged file must not ask for terabytes.
MAX_SIZE, MAX_DEPTH, MAX_PIXELS = 2**24, 1024, 2**14
FEATURE_NAME = re.compile("[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSize:
    """Width, depth, MLP width and heads of one transformer, and which GELU its MLPs have (of `GELUS`)."""

    width: int
    depth: int
    mlp_dim: int
    heads: int
    gelu: str = "tanh"

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.width, self.depth, self.mlp_dim, self.heads

    def to_json(self) -> dict[str, Any]:
        """The usual GELU goes without saying."""
        fields = dataclasses.asdict(self)
        return fields if self.gelu != GELUS[0] else {name: x for name, x in fields.items() if name != "gelu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSize:
    """Sizes of an adapter: an image tower whose input is one or several stored vectors of an item.

    Attributes:
      inputs: how many numbers each vector has, ((name, numbers), ...) in the order of the names; a mapping may be
        given.
      base: how many numbers of an embedding stand for the inputs as they are, at most those of all inputs together.
      head: how many stand for what is learned, which titles are compared with.
      mlp_dim, depth: width and number of the hidden layers.
    """

    inputs: tuple[tuple[str, int], ...]
    base: int
    head: int
    mlp_dim: int
    depth: int = 1

    def __post_init__(self) -> None:
        pairs = dict(self.inputs)  # of pairs or of a mapping
        # In one order whatever a config or a file had: neither keeps it, and a tree of arrays has its keys sorted.
        object.__setattr__(self, "inputs", tuple(sorted(pairs.items())))
        if bad := [name for name in pairs if not FEATURE_NAME.fullmatch(name)]:
            raise UserError(f"model: a feature named {bad[0]!r}; expected letters, digits, _ and -, a letter first")
        if not pairs:
            raise UserError("model: an adapter without features; expected at least one name and its numbers")
        sizes = (*pairs.values(), self.base, self.head, self.mlp_dim, self.depth)
        if any(type(size) is not int or not 0 < size <= MAX_SIZE for size in sizes):
            raise UserError(f"model: {self}; expected whole numbers from 1 to {MAX_SIZE}")
        if self.base > self.numbers:
            raise UserError(f"model: a base of {self.base} for {self.numbers} numbers; expected at most as many")

    @property
    def dimensions(self) -> dict[str, int]:
        """{name: how many numbers its vectors have}."""
        return dict(self.inputs)

    @property
    def numbers(self) -> int:
        """Of all inputs together."""
        return sum(self.dimensions.values())

    @property
    def projects(self) -> bool:
        """Whether the base is a projection of the inputs."""
        return self.base < self.numbers

    @property
    def width(self) -> int:
        """Of the embedding."""
        return self.head + self.base

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "inputs": self.dimensions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that decides the parameter shapes of a SigLIP model; plain JSON there and back.

    Attributes:
      image_size: (height, width) in pixels; what is left of a division by `patch_size` is not looked at (384 by 14 in
        the published So400m). (1, 1) of an adapter, which sees no pixels.
      patch_size: pixels per side of a square patch; 1 of an adapter.
      image: sizes of the transformer of pictures, or of the adapter of stored vectors.
      text: sizes of the transformer of titles.
      vocab_size, text_length: rows of the token embedding, tokens per title.
      text_head: whether a linear layer follows the text tower; SigLIP 1 i18n has none.
      naflex: pictures of any aspect ratio, as `Patches`; `image_size` then is the grid of the position embedding times
        `patch_size`, and each picture gets that embedding resized to its own grid.
      embedding_dim: width of the shared space; equals `image.width`, since the image tower has no projection (what
        Hugging Face calls projection_size is the output of the text head).
    """

    image_size: tuple[int, int]
    patch_size: int
    image: TowerSize | FeatureSize
    text: TowerSize
    vocab_size: int
    text_length: int
    text_head: bool = True
    naflex: bool = False

    def __post_init__(self) -> None:
        sizes = (*self.image_size, self.patch_size, self.vocab_size, self.text_length)
        towers = [tower for tower in (self.image, self.text) if isinstance(tower, TowerSize)]
        whole = (*sizes, *(size for tower in towers for size in tower.sizes))
        if len(self.image_size) != 2 or any(type(size) is not int or not 0 < size <= MAX_SIZE for size in whole):
            raise UserError(f"model: {self}; expected (height, width) and whole numbers from 1 to {MAX_SIZE}")
        if unknown := [tower.gelu for tower in towers if tower.gelu not in GELUS]:
            raise UserError(f"model: gelu={unknown[0]!r}; expected one of {', '.join(GELUS)}")
        for name, found, limit in (
            ("layers", max(self.image.depth, self.text.depth), MAX_DEPTH),
            ("pixels a side", max(self.image_size), MAX_PIXELS),
        ):
            if found > limit:
                raise UserError(f"model: {found} {name}; the limit is {limit}")
        if any(side < self.patch_size for side in self.image_size):
            raise UserError(f"model: image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        for name, tower in (("image", self.image), ("text", self.text)):
            if isinstance(tower, TowerSize) and tower.width % tower.heads:
                raise UserError(f"model: {name}.width {tower.width} is not a multiple of {name}.heads {tower.heads}")
        if type(self.text_head) is not bool or type(self.naflex) is not bool:
            raise UserError(f"model: text_head={self.text_head!r}, naflex={self.naflex!r}; expected true or false")
        if self.features and (self.image_size, self.patch_size, self.naflex) != ((1, 1), 1, False):
            raise UserError(
                f"model: image_size={self.image_size}, patch_size={self.patch_size}, naflex={self.naflex} of an "
                "adapter, which sees no pictures; expected (1, 1), 1 and false"
            )
        if not self.text_head and self.text.width != self.text_dim:
            raise UserError(
                f"model: without a text head both towers need one width; text {self.text.width}, image {self.text_dim}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position embedding."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def embedding_dim(self) -> int:
        return self.image.width

    @property
    def text_dim(self) -> int:
        """What the text tower gives: `embedding_dim`, or the learned part of an adapter's."""
        return self.image.head if isinstance(self.image, FeatureSize) else self.image.width

    @property
    def features(self) -> dict[str, int]:
        """{name: numbers} of the vectors that an adapter takes; empty for a model of pictures."""
        return self.image.dimensions if isinstance(self.image, FeatureSize) else {}

    def pictures_tower(self, what: str) -> TowerSize:
        """Sizes of the transformer of pictures.

        Raises:
          UserError: `what` needs one, and this model is an adapter.
        """
        if isinstance(self.image, FeatureSize):
            raise UserError(f"{what}: this model takes the features {self.features}, not pictures")
        return self.image

    def to_json(self) -> dict[str, Any]:
        towers = {"image": self.image.to_json(), "text": self.text.to_json()}
        return {**dataclasses.asdict(self), "image_size": list(self.image_size), **towers}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Architecture:
        try:
            image = FeatureSize if "inputs" in fields["image"] else TowerSize
            towers = {"image": image(**fields["image"]), "text": TowerSize(**fields["text"])}
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

    def pictures(size: TowerSize) -> int:
        rows, columns = architecture.grid
        patches = (architecture.patch_size**2 * 3 + 1 + rows * columns) * size.width
        return patches + encoder(size) + size.width + attention_and_mlp(size) + norm(size.width)

    def adapter(size: FeatureSize) -> int:
        statistics = 2 * size.numbers + len(size.inputs) + 1  # mean, scale; weight; strength
        projection = size.numbers * size.base if size.projects else 0
        linear = size.numbers * size.head
        widths = [size.numbers, *[size.mlp_dim] * size.depth, size.head]
        return statistics + projection + linear + sum((a + 1) * b for a, b in itertools.pairwise(widths))

    image, text = architecture.image, architecture.text
    tokens = (architecture.vocab_size + architecture.text_length) * text.width
    head = (text.width + 1) * architecture.text_dim if architecture.text_head else 0
    shown = adapter(image) if isinstance(image, FeatureSize) else pictures(image)
    counts = {"image": shown, "text": tokens + encoder(text) + head}
    return {**counts, "total": sum(counts.values()) + 2}
