"""siglip-jax bench: time, memory and FLOPs of one part of the library, beside its peers and its floor, in one run.

siglip-jax bench loss --batch=8192 --dim=768
siglip-jax bench encode
siglip-jax bench build --rows=20000
siglip-jax bench duplicates --dataset=data/fashion --attribute=articleType
"""

from __future__ import annotations

COMMANDS = {
    "loss": "the sigmoid loss with its gradients: dense, rematerialised, three plain products, PyTorch",
    "finetune": "what fine-tuning gains on new data and loses on old, with the defaults and with naive settings",
    "build": "a dataset of many rows built from repeated pictures: rows/s, memory at each tenth",
    "duplicates": "pictures that look alike: cost, what is found after changes, what is wrongly taken, the search",
    "encode": "Model.encode_image beside the bare jitted function",
}
