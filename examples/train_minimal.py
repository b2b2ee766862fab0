"""The sigmoid loss in a plain optax loop: SigLIP's two towers learn what toy images show.

python examples/train_minimal.py --steps=200

An image is a square or a frame of one of eight colours; its title is two token ids, (shape, colour). Everything that
`siglip-jax train` adds (datasets, meshes, checkpoints, evaluation) is left out.
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from siglip_jax.losses import sigmoid_loss
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import TwoTowers

SIDE = 16  # pixels
COLOURS = np.array(list(itertools.product((-0.8, 0.8), repeat=3)), np.float32)  # RGB in [-1, 1]
SHAPES = 2  # square, frame
TOWER = TowerSize(width=32, depth=1, mlp_dim=64, heads=2)
ARCHITECTURE = Architecture(
    image_size=(SIDE, SIDE), patch_size=8, image=TOWER, text=TOWER, vocab_size=SHAPES + len(COLOURS), text_length=2
)


def draw(shape: int, colour: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [SIDE, SIDE, 3] in [-1, 1]: a noisy image of one colour, with a grey hole where it is a frame."""
    image = np.broadcast_to(COLOURS[colour], (SIDE, SIDE, 3)).copy()
    if shape == 1:
        image[4:-4, 4:-4] = 0
    return (image + rng.normal(0, 0.2, image.shape)).clip(-1, 1).astype(np.float32)


def batches(batch_size: int, rng: np.random.Generator):
    """Without end: {"image" [n, h, w, 3], "text" int32 [n, 2], "group" int32 [n], equal for equal titles}."""
    while True:
        shapes, colours = rng.integers(0, SHAPES, batch_size), rng.integers(0, len(COLOURS), batch_size)
        yield {
            "image": np.stack([draw(shape, colour, rng) for shape, colour in zip(shapes, colours, strict=True)]),
            "text": np.stack([shapes, SHAPES + colours], axis=1).astype(np.int32),
            "group": (shapes * len(COLOURS) + colours).astype(np.int32),
        }


def main(steps: int, batch_size: int, seed: int) -> None:
    module = TwoTowers(ARCHITECTURE)
    data = batches(batch_size, np.random.default_rng(seed))
    first = next(data)
    params = jax.jit(module.init)(jax.random.key(seed), first["image"], first["text"])["params"]
    # One of 16 titles is the right one, so b begins near log(1 / 15).
    params = {**params, "b": jnp.full_like(params["b"], -2.7)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(3e-3, steps)))
    state = optimizer.init(params)

    def loss_of(params, batch):
        image = module.apply({"params": params}, batch["image"], method="encode_image")
        text = module.apply({"params": params}, batch["text"], method="encode_text")
        return sigmoid_loss(image, text, params["t"], params["b"], groups=batch["group"])

    @jax.jit
    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    for number, batch in zip(range(1, steps + 1), data, strict=False):
        params, state, loss = step(params, state, batch)
        if number == 1 or number % 20 == 0:
            print(f"step {number}: loss {float(loss):.3f}")

    # Every image against all 16 titles.
    titles = np.array(list(itertools.product(range(SHAPES), range(SHAPES, ARCHITECTURE.vocab_size))), np.int32)
    test = next(batches(256, np.random.default_rng(seed + 1)))
    encode = jax.jit(lambda params, x, method: module.apply({"params": params}, x, method=method), static_argnums=2)
    image, text = encode(params, test["image"], "encode_image"), encode(params, titles, "encode_text")
    print(f"accuracy {np.mean(np.argmax(image @ text.T, axis=1) == test['group']):.3f} of {len(titles)} titles")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
