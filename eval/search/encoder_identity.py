"""When two encoders are one: by what decides their numbers, not by where they lie."""

from collections.abc import Mapping
from typing import Any

_NOT_OF_NUMBERS = ("name", "dtype", "features")  # where the encoder lies, how it computes, what it reads


def encoder_identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an encoder's numbers; its name where it has no checksum, such as "pixels:16x12".

    Args:
      description: "model" of a store's manifest.
    """
    named = not any(key.endswith("sha256") for key in description)
    return {key: value for key, value in description.items() if key not in _NOT_OF_NUMBERS or (named and key == "name")}
