"""Published figures of published checkpoints, to tell on a networked machine that the right weights were loaded."""

from __future__ import annotations

import dataclasses
import math
import urllib.request
from typing import TYPE_CHECKING

from siglip_jax.errors import UserError
from siglip_jax.models.presets import Preset
from siglip_jax.preprocessing import Preprocessing

if TYPE_CHECKING:
    from siglip_jax.model import Model

# Two cats on a sofa, the picture of transformers' own integration tests.
PICTURE = "http://images.cocodataset.org/val2017/000000039769.jpg"
TITLES = ("a photo of 2 cats", "a photo of 2 dogs")
MAX_IMAGE_BYTES = 10 * 2**20
LOGIT_TOLERANCE = 0.05  # decoders differ by a grey level


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """Figures of one checkpoint; None where none is published.

    Attributes:
      logits: of PICTURE with TITLES under the Hugging Face processor (transformers, tests/models/siglip).
      temperature, bias: exp(t) and b, as far as their publishers printed them.
    """

    logits: tuple[float, float] | None = None
    temperature: float | None = None
    bias: float | None = None


KNOWN = {
    "google/siglip-base-patch16-224": Known(logits=(-0.7567, -10.3354)),
    "google/siglip-so400m-patch14-384": Known(temperature=112.3, bias=-16.5),
    "google/siglip2-so400m-patch16-256": Known(temperature=109.9, bias=-15.9),  # SigLIP2_demo.ipynb
}


def verify(model: Model, preset: Preset, *, picture: bytes) -> list[str]:
    """Compares a loaded model with what is published of its preset; returns what was found, a line each.

    Args:
      model: with a tokenizer.
      picture: PICTURE, encoded.

    Raises:
      UserError: a figure that differs, or the wrong title preferred.
    """
    known = KNOWN.get(preset.name, Known())
    t, b = (float(model.params[name][0]) for name in ("t", "b"))
    lines = [f"exp(t) = {math.exp(t):.2f}, b = {b:.2f}"]
    for name, found, expected in (("exp(t)", math.exp(t), known.temperature), ("b", b, known.bias)):
        if expected is not None:
            if abs(found - expected) > 0.06:  # they are printed with one decimal
                raise UserError(f"{preset.name}: {name} is {found:.2f}; published is {expected}: other weights")
            lines.append(f"{name} is the published {expected}")
    if model.preprocessing is None or model.preprocessing.tokenizer is None:
        raise UserError(f"{preset.name}: verifying encodes titles; pass --tokenizer ({preset.family.tokenizer})")
    convention: Preprocessing = preset.preprocessing("huggingface", tokenizer=model.preprocessing.tokenizer)
    model = model.replace(preprocessing=convention)
    cats, dogs = (float(x) for x in model.logits(model.encode_image([picture]), model.encode_text(list(TITLES)))[0])
    found_logits = f"logits of {PICTURE.rsplit('/', 1)[1]}: {TITLES[0]!r} {cats:.4f}, {TITLES[1]!r} {dogs:.4f}"
    lines.append(found_logits)
    if known.logits is not None:
        if max(abs(cats - known.logits[0]), abs(dogs - known.logits[1])) > LOGIT_TOLERANCE:
            raise UserError(
                f"{preset.name}: {found_logits}; published are {known.logits}: other weights or preprocessing"
            )
        lines.append(f"the logits are the published {known.logits}")
    if not cats > dogs:
        raise UserError(f"{preset.name}: {found_logits}; a picture of cats should prefer the first")
    return lines


def fetch_image(url: str = PICTURE) -> bytes:
    """Downloads the picture, at most MAX_PICTURE_BYTES of it."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read(MAX_IMAGE_BYTES)
    except OSError as error:
        raise UserError(f"{url}: cannot be fetched ({error}); download it and pass --image") from error
