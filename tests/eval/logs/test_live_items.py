"""How old an item is at a time."""

import numpy as np

from eval.logs import Live


def test_the_age_of_items_in_days():
    day = 86_400_000_000
    live = Live(np.array([0, 3 * day, np.iinfo(np.int64).min]), np.full(3, np.iinfo(np.int64).max), "as given")
    ages = live.age(np.array([0, 1, 1, 2]), np.array([2 * day, 3 * day + day // 2, day, 5 * day]))
    np.testing.assert_array_equal(ages, [2.0, 0.5, -2.0, np.nan])
