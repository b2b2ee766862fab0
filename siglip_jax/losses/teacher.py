"""Terms that pull embeddings towards those of a teacher: row by row, or only in how similar the rows are to each other.

The similarity term compares two n x n matrices of cosines without making either. With P = Z + U and Q = Z - U,

  Z Z' - U U' = (P Q' + Q P') / 2,  so its squared norm is  (<P'P, Q'Q> + <P'Q, Q'P>) / 2

where every product on the right is d x d. Plain autodiff then keeps n d + d^2 numbers, at most n d^2 FLOPs a product
whatever the batch, and rows that are spread over devices meet in one sum of d x d matrices. Written in Q the value
loses no precision where student and teacher are near, as <Z'Z, Z'Z> - 2 <Z'U, Z'U> + <U'U, U'U> would. With no more
rows than numbers, n <= d, the matrix on the left is the smaller one, and a sum of squares has nothing to cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from siglip_jax.losses.arguments import INPUT_DTYPES
from siglip_jax.losses.tiles import dot


def cosine_term(embeddings: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean over the rows of 1 - <z_i, u_i>.

    Args:
      embeddings: [n, d], unit norm, float32 or bfloat16; sharded by rows or not.
      teacher: [n, d], unit norm; a constant to a derivative.

    Returns:
      float32 scalar, 0 to 2.

    Raises:
      ValueError: two shapes, no rows, or other dtypes.
    """
    z, u = _checked("cosine_term", embeddings, teacher)
    return jnp.mean(1 - jnp.sum(z * u, axis=1))


def mse_term(embeddings: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean over the rows of |z_i - u_i|^2, for unit rows twice the cosine term. Otherwise as `cosine_term`."""
    z, u = _checked("mse_term", embeddings, teacher)
    return jnp.mean(jnp.sum(jnp.square(z - u), axis=1))


def similarity_term(embeddings: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean over all n^2 pairs of rows of (<z_i, z_j> - <u_i, u_j>)^2, in O(n d) memory and a matrix of n^2 or d^2.

    It asks for the teacher's neighbours, not for its directions: a rotation of all embeddings changes nothing.
    Arguments and errors as `cosine_term`. Products of float32 are float32 on every platform (see `tiles.dot`).
    """
    z, u = _checked("similarity_term", embeddings, teacher)
    p, q = z + u, z - u
    if len(z) <= z.shape[1]:
        half = dot(p, q, contract=(1, 1))
        return jnp.mean(jnp.square((half + half.T) / 2))
    pp, qq, pq = (dot(a, b, contract=(0, 0)) for a, b in ((p, p), (q, q), (p, q)))
    return (jnp.sum(pp * qq) + jnp.sum(pq * pq.T)) / (2.0 * len(z) ** 2)


TEACHER_TERMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cosine": cosine_term,
    "mse": mse_term,
    "similarity": similarity_term,
}


def _checked(name: str, embeddings: Any, teacher: Any) -> tuple[jax.Array, jax.Array]:
    """Two float32 [n, d]; the second has no gradient."""
    z, u = jnp.asarray(embeddings), jnp.asarray(teacher)
    if z.ndim != 2 or z.shape != u.shape or not z.size:
        raise ValueError(f"{name}: embeddings {z.shape} and teacher {u.shape}; expected two equal [n, d]")
    for what, x in (("embeddings", z), ("teacher", u)):
        if x.dtype not in INPUT_DTYPES:
            raise ValueError(f"{name}: {what} are {x.dtype}; expected {' or '.join(INPUT_DTYPES)}")
    return z.astype(jnp.float32), jax.lax.stop_gradient(u.astype(jnp.float32))
