"""The formats of model files: one entry each in FORMATS. To add one, write a file that makes a `Format`, and its entry.

docs/adding.md has an example. `siglip_jax.load`, `Model.save` and `siglip-jax convert` read the table.
"""

from __future__ import annotations

from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.weights import tensors
from siglip_jax.weights.big_vision import BIG_VISION
from siglip_jax.weights.huggingface import HUGGINGFACE
from siglip_jax.weights.native import NATIVE
from siglip_jax.weights.open_clip.open_clip_folder import OPEN_CLIP, STATE_DICT
from siglip_jax.weights.sentence_transformers import SENTENCE_TRANSFORMERS
from siglip_jax.weights.stored_model import Format

FORMATS: dict[str, Format] = {  # by the name that is saved with; detected in this order
    "native": NATIVE,
    "sentence_transformers": SENTENCE_TRANSFORMERS,
    "huggingface": HUGGINGFACE,
    "open_clip": OPEN_CLIP,
    "big_vision": BIG_VISION,
    "state_dict": STATE_DICT,
}


def written_formats() -> list[str]:
    """Names of the formats that can be written."""
    return [name for name, each in FORMATS.items() if each.write is not None]


def expected_sources() -> str:
    """What a model is loaded from, for error messages."""
    formats = ", ".join(each.description for each in FORMATS.values())
    return f"a preset (siglip-jax models lists them), {formats}"


def detect_format(source: epath.Path) -> Format:
    """The format of a path.

    Raises:
      UserError: nothing there, neither a file nor a folder, or of no known format.
    """
    if not source.exists():
        raise UserError(f"{source}: not found; expected {expected_sources()}")
    if not source.is_dir() and not files.is_regular(source):
        raise UserError(f"{source}: neither a file nor a folder; expected {expected_sources()}")
    for each in FORMATS.values():
        if each.detect(source):
            return each
    if hint := tensors.conversion(source, tensors.SINGLE):
        raise UserError(f"{source}: {hint}")
    kind = "folder" if source.is_dir() else f"{source.suffix or 'plain'} file"
    raise UserError(f"{source}: a {kind} of no known format; expected {expected_sources()}")
