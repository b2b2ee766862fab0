"""Fine-tune SigLIP in JAX: from a model to its checkpoint.

    model = siglip_jax.load("google/siglip2-base-patch16-256")

Importing this package is cheap. The public names stand in `__init__.pyi`, here as in every folder that has some, and
are imported when they are first used.

From the ground up: `preprocessing` (no JAX), `models`, `losses`, `weights` (formats of files), `model` and `loading`
(what users hold), `training`, `analysis` (what a compiled step costs), `export`, `cli`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
