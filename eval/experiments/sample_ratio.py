"""Whether as many users came to each variant as the experiment was designed for.

If not, the two groups differ by more than what they were shown: assignment, redirects, logging or bots lost some of
one side. No difference between them can then be blamed on the variant, so there is no verdict (Fabijan et al. 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.stats

from siglip_jax.errors import UserError

ALPHA = 0.001  # checked on every look, and a false alarm stops an experiment


@dataclasses.dataclass(frozen=True)
class SampleRatio:
    """Users of each variant beside those expected; p of the chi-square test; `ok` is p >= alpha."""

    users: dict[str, int]
    expected: dict[str, float]
    p: float
    alpha: float
    ok: bool


def sample_ratio(users: Mapping[str, int], split: Mapping[str, float], *, alpha: float = ALPHA) -> SampleRatio:
    """The chi-square test of users against the designed split.

    Args:
      users: {variant: how many}.
      split: {variant: share}, in any unit.

    Raises:
      UserError: other variants in the split, or shares that are not above 0.
    """
    if set(users) != set(split) or not all(0 < share < np.inf for share in split.values()):
        raise UserError(
            f"split {dict(split)}: expected a share above 0 for each of the variants {', '.join(users)}, such as "
            f"--split={','.join(f'{name}=1' for name in users)}"
        )
    counts = np.array(list(users.values()), np.float64)
    shares = np.array([split[name] for name in users], np.float64)
    expected = counts.sum() * shares / shares.sum()
    p = float(scipy.stats.chisquare(counts, expected).pvalue)
    return SampleRatio(dict(users), dict(zip(users, map(float, expected), strict=True)), p, alpha, p >= alpha)
