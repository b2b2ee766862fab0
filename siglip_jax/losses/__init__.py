"""Contrastive losses over a global batch."""

from siglip_jax.losses.sigmoid import sigmoid_loss

__all__ = ["sigmoid_loss"]
