"""Contrastive losses over a global batch."""

from siglip_jax.losses.sigmoid import sigmoid_loss
from siglip_jax.losses.softmax import softmax_loss

__all__ = ["sigmoid_loss", "softmax_loss"]
