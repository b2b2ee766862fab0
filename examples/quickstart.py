"""Load a model, encode images, search them by text.

python examples/quickstart.py                                    # a tiny model of random weights: no network, no sense
python examples/quickstart.py google/siglip2-base-patch16-256 photos/*.jpg
"""

import pathlib
import sys
import tempfile

import PIL.Image

import siglip_jax
from eval.search import build_index

QUERIES = ["a red dress", "a blue shoe"]


def main(model: siglip_jax.Model, images: dict[str, PIL.Image.Image]) -> None:
    index = build_index(model.encode_image(list(images.values())), list(images), backend="exact")
    found = index.search(model.encode_text(QUERIES), k=min(3, len(images)))
    for query, names, scores in zip(QUERIES, found.ids, found.scores, strict=True):
        print(f"{query}: " + ", ".join(f"{name} {score:.3f}" for name, score in zip(names, scores, strict=True)))


def tiny_model(folder: pathlib.Path) -> siglip_jax.Model:
    """Random weights, saved and loaded as any model is; its tokenizer is trained on the queries."""
    from input_pipeline.train_tokenizer import train_tokenizer
    from siglip_jax.model import init
    from siglip_jax.models.architecture import Architecture, TowerSize
    from siglip_jax.models.towers import TwoTowers

    size = TowerSize(width=32, depth=1, mlp_dim=64, heads=2)
    shape = Architecture(image_size=(32, 32), patch_size=8, image=size, text=size, vocab_size=400, text_length=8)
    tokenizer = train_tokenizer(QUERIES, vocab_size=400)
    preprocessing = siglip_jax.Preprocessing(image_size=(32, 32), text_length=8, tokenizer=tokenizer)
    init(TwoTowers(shape), preprocessing, seed=0).save(folder / "model")
    return siglip_jax.load(folder / "model")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(siglip_jax.load(sys.argv[1]), {path: PIL.Image.open(path) for path in sys.argv[2:]})
    else:
        colours = ("red", "green", "blue", "white")
        with tempfile.TemporaryDirectory() as folder:
            main(tiny_model(pathlib.Path(folder)), {name: PIL.Image.new("RGB", (64, 64), name) for name in colours})
