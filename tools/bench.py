"""siglip-jax bench: time, memory and FLOPs of one part of the library, beside its peers and its floor, in one run.

siglip-jax bench loss --batch=8192 --dim=768
"""

from __future__ import annotations

COMMANDS = {"loss": "the sigmoid loss with its gradients: dense, rematerialised, three plain products, PyTorch"}
