"""Several comparisons at once: the level of each at which all hold together.

Comparisons of one encoder with ten others share its queries, so they are wrong together rather than one by one, and a
tenth of the level for each would be too strict. The largest |z| of normal variables that are correlated as the
differences are says how strict is right (the max-t rule of Romano and Wolf 2005; Hothorn, Bretz and Westfall 2008).
That law is drawn from, and the draws needed do not grow with the comparisons: their maximum has one 95 % point, however
many there are.
"""

import numpy as np
import scipy.stats

_CHUNK = 1 << 22  # numbers drawn at once


def correct(
    p: np.ndarray, covariance: np.ndarray, *, confidence: float, samples: int, seed: int
) -> tuple[float, np.ndarray, int]:
    """(level, p_all [c], comparisons): p <= level exactly where p_all <= 1 - confidence.

    Neither is stricter than Bonferroni, so a p that stands out is small however few the draws.

    Args:
      p: [c] of each comparison alone; NaN (not measured) stays NaN and does not count.
      covariance: [c, c] of the differences; one that never varies does not count.
      samples, seed: of the draws.
    """
    allowed = 1 - confidence
    measured = np.flatnonzero(np.isfinite(p) & (np.diagonal(covariance) > 0))
    count = len(measured)
    if count < 2:
        return allowed, p.copy(), count
    z = scipy.stats.norm.isf(p[measured] / 2)
    largest = _largest(covariance[np.ix_(measured, measured)], samples=samples, seed=seed)
    above = samples - np.searchsorted(largest, z, side="left")
    p_all = p.copy()
    p_all[measured] = np.clip((1 + above) / (1 + samples), p[measured], np.minimum(1, count * p[measured]))
    # The z that as few draws reach as `allowed` allows, counted as p_all counts.
    place = samples - 1 - int(np.floor(allowed * (1 + samples) - 1 + 1e-9))
    drawn = 2 * scipy.stats.norm.sf(largest[place]) if place < samples else 0.0
    return float(np.clip(drawn, allowed / count, allowed)), p_all, count


def _largest(covariance: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """Draws of the largest |z|, ascending: float64 [samples]."""
    scale = np.sqrt(np.diagonal(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    factor = vectors * np.sqrt(np.maximum(values, 0))  # a difference of variances may have eigenvalues below 0
    factor /= np.linalg.norm(factor, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(scale))
    sizes = [min(step, samples - lo) for lo in range(0, samples, step)]
    return np.sort(
        np.concatenate([np.abs(random.standard_normal((n, len(scale))) @ factor.T).max(axis=1) for n in sizes])
    )
