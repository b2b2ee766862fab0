"""siglip-jax bench: time, memory and FLOPs of one part of the library, beside its peers and its floor, in one run.

siglip-jax bench loss --batch=8192 --dim=768
siglip-jax bench encode
siglip-jax bench rank
siglip-jax bench build --rows=20000
siglip-jax bench duplicates --dataset=data/fashion --attribute=articleType
"""

from __future__ import annotations

COMMANDS = {
    "loss": "the sigmoid loss with its gradients: dense, rematerialised, three plain products, PyTorch",
    "step": "a training step beside transformers' SiglipModel in PyTorch; the largest exact batch of each",
    "finetune": "what fine-tuning gains on new data and loses on old, with the defaults and with naive settings",
    "input": "from JPEG files to batches: the decoder alone, a PIL loop, tf.data, the loader",
    "pictures": "the JPEG decoders and resizers that are installed, beside PIL: time and difference",
    "resize": "what each way of resizing does to the ranking of an encoder",
    "build": "a dataset of many rows built from repeated pictures: rows/s, memory at each tenth",
    "duplicates": "pictures that look alike: cost, what is found after changes, what is wrongly taken, the search",
    "encode": "Model.encode_image beside the bare jitted function",
    "rank": "ranking metrics of a million queries: pytrec_eval, and ir_measures and ranx where installed",
}
