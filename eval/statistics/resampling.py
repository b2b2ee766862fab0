"""Random sums over clusters: bootstrap weights and sign flips, for a million clusters in seconds.

Below `MANY` clusters the bootstrap draws as many clusters as there are, with replacement. From there on every cluster
gets a weight of its own from Poisson(1): as many draws on average, but independent of each other, so that they are made
and summed piece by piece (Hanley and MacGibbon 2006; Chamandy et al. 2012, "Estimating uncertainty for massive data
streams"). How many are drawn then varies by 1 / sqrt(clusters) of itself, which cancels in a mean, a ratio of sums.

Every piece of clusters has a generator of its own: results depend on the seed, not on the number of threads.
"""

from collections.abc import Callable

import numpy as np

from eval.metrics.threads import in_threads

MANY = 1 << 14
_BLOCK = 1 << 16  # weights made at once, by each thread: stay in its cache
_PIECE = 1 << 12  # clusters of one generator
_PRODUCT = 500_000  # multiply-adds of a matrix product that BLAS leaves on the calling thread
# P(Poisson(1) <= k) for k = 0, 1, ... in 65,536ths: a weight is the number of these that 16 random bits reach.
_POISSON = np.array([24109, 48219, 60273, 64292, 65296, 65497, 65531, 65535], np.uint16)


def bootstrap_sums(sums: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Sums over resampled clusters: float64 [samples, column] of sums [cluster, column], at least one cluster.

    From `MANY` clusters on to 1e-6 of their spread, for which columns should be centred.
    """
    if len(sums) >= MANY:
        return _in_pieces(sums, _poisson_weights, samples=samples, stream=[seed, 2])
    clusters = len(sums)
    out = np.empty((samples, sums.shape[1]))
    random = np.random.default_rng([seed, 0])
    step = max(1, _BLOCK // clusters)
    for lo in range(0, samples, step):
        size = min(step, samples - lo)
        drawn = random.integers(0, clusters, (size, clusters)) + np.arange(size)[:, None] * clusters
        times = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        out[lo : lo + size] = times.astype(np.float64) @ sums
    return out


def flipped_sums(sums: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Sums with a random sign for every cluster: float64 [samples, column] of sums [cluster, column]."""
    if len(sums) >= MANY:
        return 2 * _in_pieces(sums, _coins, samples=samples, stream=[seed, 3]) - sums.sum(axis=0)
    out = np.empty((samples, sums.shape[1]))
    random = np.random.default_rng([seed, 1])
    step = max(1, _BLOCK // len(sums))
    for lo in range(0, samples, step):
        size = min(step, samples - lo)
        sign = 2.0 * random.integers(0, 2, (size, len(sums)), dtype=np.int8) - 1
        out[lo : lo + size] = sign @ sums
    return out


def _in_pieces(
    sums: np.ndarray,
    weights: Callable[[np.random.SFC64, int, int], np.ndarray],
    *,
    samples: int,
    stream: list[int],
) -> np.ndarray:
    """Weighted sums: products in float32, in which small whole weights are exact, added up in float64."""
    singles = sums.astype(np.float32)
    step = _BLOCK // _PIECE

    def piece(number: int) -> np.ndarray:
        rows = singles[number * _PIECE : (number + 1) * _PIECE]
        generator = np.random.SFC64(np.random.SeedSequence([*stream, number]))
        blocks = (min(step, samples - lo) for lo in range(0, samples, step))
        return np.concatenate([_product(weights(generator, size, len(rows)), rows) for size in blocks])

    out = np.zeros((samples, sums.shape[1]))
    for found in in_threads(piece, range(-(-len(sums) // _PIECE))):
        out += found
    return out


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right, in parts too small for the threads of BLAS, which would stand in the way of ours."""
    step = max(1, _PRODUCT // right.size)
    return np.concatenate([left[lo : lo + step] @ right for lo in range(0, len(left), step)])


def _poisson_weights(generator: np.random.SFC64, samples: int, clusters: int) -> np.ndarray:
    random = generator.random_raw(-(-samples * clusters // 4)).view(np.uint16)[: samples * clusters]
    times = np.zeros(len(random), np.uint8)
    for threshold in _POISSON:
        times += random >= threshold
    return times.reshape(samples, clusters).astype(np.float32)


def _coins(generator: np.random.SFC64, samples: int, clusters: int) -> np.ndarray:
    random = generator.random_raw(-(-samples * clusters // 64)).view(np.uint8)
    return np.unpackbits(random)[: samples * clusters].reshape(samples, clusters).astype(np.float32)
