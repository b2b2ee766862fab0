"""Random batches for the tiny model, and its training step on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.training.optimizer.adamw import make_optimizer, make_schedule
from siglip_jax.training.optimizer.freezing import frozen_parameters
from siglip_jax.training.parallel.sharding import make_mesh
from siglip_jax.training.step import init_state, make_train_step


@pytest.fixture(scope="session")
def random_batch(tiny_model):
    """random_batch(n=8, seed=0) -> a batch whose first two rows share a title."""
    architecture = tiny_model.architecture

    def batch(n: int = 8, seed: int = 0) -> dict:
        rng = np.random.default_rng(seed)
        return {
            "image": rng.integers(0, 256, (n, *architecture.image_size, 3), np.uint8),
            "text": rng.integers(0, architecture.vocab_size, (n, architecture.text_length), np.int32),
            "group": np.array([0, 0, *range(2, n)], np.int32),
        }

    return batch


@pytest.fixture(scope="session")
def RandomBatches(random_batch):
    """RandomBatches(n=16): an iterator for the loop; batch k, from 1, is `random_batch(n, seed=k)`."""

    class RandomBatches:
        def __init__(self, n: int = 16):
            self.n, self.position = n, 0

        def __iter__(self):
            return self

        def __next__(self):
            self.position += 1
            return random_batch(self.n, seed=self.position)

        def get_state(self):
            return {"position": self.position}

        def set_state(self, state):
            self.position = state["position"]

    return RandomBatches


@pytest.fixture(scope="session")
def make_step(tiny_model):
    """make_step(config, *, optimizer=None, **options of make_train_step) -> (jitted step, state before step 1)."""

    def make(config, *, optimizer=None, **options):
        optimizer = optimizer or make_optimizer(config)
        params = jax.tree.map(lambda x: jnp.asarray(x) + 0, tiny_model.params)
        state = init_state(params, optimizer, ema_decay=config.ema_decay)
        step, shardings = make_train_step(
            tiny_model.module,
            optimizer,
            to_float=tiny_model.preprocessing.to_float,
            mesh=make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1]),
            state=state,
            schedule=make_schedule(config),
            frozen=frozen_parameters(config, state["params"]),
            ema_decay=config.ema_decay,
            **options,
        )
        return step, jax.device_put(state, shardings)

    return make


@pytest.fixture(scope="session")
def loss_by_hand(tiny_model):
    """loss_by_hand(batch, *, same_group) -> the sigmoid loss of the untouched model over a batch of 8 rows, float64."""

    def loss(batch, *, same_group):
        pixels = (batch["image"].astype(np.float64) / 127.5 - 1).astype(np.float32)
        image, text = tiny_model.encode_image(pixels), tiny_model.encode_text(batch["text"])
        logits = tiny_model.logits(image, text).astype(np.float64)
        pair, same = np.eye(8, dtype=bool), batch["group"][:, None] == batch["group"]
        positive = same if same_group == "positive" else pair
        losses = np.logaddexp(0, np.where(positive, -1, 1) * logits)
        return losses[positive | ~same].sum() / 8

    return loss
