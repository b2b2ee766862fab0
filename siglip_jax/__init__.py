"""Fine-tune SigLIP in JAX. Importing this package is cheap: public names are loaded on first use."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Model": "siglip_jax.model",
    "load": "siglip_jax.loading",
    "Patches": "siglip_jax.patches",
    "Preprocessing": "siglip_jax.preprocessing",
    "UserError": "siglip_jax.errors",
}

__all__ = ["Model", "Patches", "Preprocessing", "UserError", "__version__", "load"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
