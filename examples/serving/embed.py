"""Photos to embeddings by onnxruntime in Python: pip install onnxruntime pillow

siglip-jax export --model=runs/shop --dataset=data/shop --output=runs/shop-onnx/images.onnx --takes=images
python embed.py runs/shop-onnx/images.onnx a.jpg b.png      # a line of JSON for each photo: its embedding

Alpha is dropped and an orientation in EXIF ignored, as in training; the graph resizes.
"""

import json
import sys

import numpy as np
import onnxruntime
import PIL.Image


def decoded(photo: str) -> np.ndarray:
    """uint8 [height, width, 3]."""
    with PIL.Image.open(photo) as image:
        if image.mode.startswith("I;16"):  # PIL would clip these levels instead of scaling them
            upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(upper[..., None], 3, axis=-1)
        return np.asarray(image.convert("RGB"))


def main(model: str, *photos: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for photo in photos:
        # Photos of one size may go in together, as [n, height, width, 3].
        (embedding,) = session.run(["embedding"], {"images": decoded(photo)[None]})[0]
        print(json.dumps(embedding.tolist()))


if __name__ == "__main__":
    main(*sys.argv[1:])
