"""The order of an epoch: a permutation whose number k is computed from k alone, for many k at once.

It is Grain's order (`grain.MapDataset.range(n).seed(s).shuffle()`), to the last row, computed by numpy where Grain goes
row by row, 5 us each: batches of tens of thousands of stored vectors would wait for their row numbers. The method is a
cipher of as many bits as the numbers have (Simon, https://eprint.iacr.org/2013/404, four rounds), applied again to what
falls outside (https://www.cs.ucdavis.edu/~rogaway/papers/subset.pdf).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from siglip_jax.errors import UserError

_ROUNDS, _LEAST_BITS = 4, 16
_SMALL = 1 << 12  # numbers: their order is kept whole


@dataclasses.dataclass(frozen=True)
class RowOrder:
    """Row numbers by position, each epoch of `count` in another order; 0, 1, 2, ... where `shuffle` is off.

    Attributes:
      seed: 0 ... 2**32 - 1.
    """

    count: int
    seed: int
    shuffle: bool = True

    def __len__(self) -> int:
        return self.count

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n] positions from the start of the run -> int64 [n], 0 ... count - 1."""
        epochs, within = np.divmod(np.asarray(positions, np.int64), self.count)
        if not self.shuffle:
            return within
        rows = np.empty_like(within)
        first = int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = _permuted(within[here], self.count, (first + epoch) % 2**32)
        return rows


def first_rows(count: int, *, most: int, seed: int) -> np.ndarray:
    """int64, ascending: `most` rows of 0 ... count - 1, drawn by the seed; all of them for 0.

    What a smaller `most` gives is among what a larger one gives.

    Raises:
      UserError: more than there are, or a seed out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}; expected 0 to {2**32 - 1}")
    if not most:
        return np.arange(count)
    if not 0 < most <= count:
        raise UserError(f"most={most}; expected 1 to {count}, the rows there are, or 0 for all of them")
    return np.sort(RowOrder(count, seed).at(np.arange(most)))


def _permuted(numbers: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Of 0 ... count - 1: where a permutation of them, chosen by the seed, puts each."""
    if count == 1:
        return numbers
    if count <= _SMALL:
        return _whole(count, seed)[numbers]
    # Grain counts a bit less for 2**k + 1 numbers with even k from 16, and then repeats some of them.
    bits = max(_LEAST_BITS, (count - 1).bit_length())
    half = np.uint64((bits + 1) // 2)
    keys = _round_keys(seed)
    found = _encrypted(numbers.astype(np.uint64), keys, half)
    while len(outside := np.flatnonzero(found >= count)):
        found[outside] = _encrypted(found[outside], keys, half)
    return found.astype(np.int64)


@functools.lru_cache(maxsize=4)
def _whole(count: int, seed: int) -> np.ndarray:
    """`_permuted` of all numbers. Each would take hundreds of encryptions, so these are a table here."""
    half = np.uint64(_LEAST_BITS // 2)
    table = _encrypted(np.arange(1 << _LEAST_BITS, dtype=np.uint64), _round_keys(seed), half).astype(np.int64)
    found = table[:count].copy()
    while len(outside := np.flatnonzero(found >= count)):
        found[outside] = table[found[outside]]
    return found


def _encrypted(numbers: np.ndarray, keys: tuple[int, ...], half: np.uint64) -> np.ndarray:
    mask = np.uint64((1 << int(half)) - 1)

    def rotated(x: np.ndarray, by: int) -> np.ndarray:
        return ((x << np.uint64(by)) | (x >> (half - np.uint64(by)))) & mask

    left, right = numbers >> half, numbers & mask
    for key in keys:
        mixed = (rotated(right, 1) & rotated(right, 8)) ^ rotated(right, 2) ^ (np.uint64(key) & mask)
        left, right = right, left ^ mixed
    return (left << half) | right


@functools.lru_cache(maxsize=16)
def _round_keys(seed: int) -> tuple[int, ...]:
    """What C++'s `std::seed_seq{seed}` generates: four numbers of 32 bits (ISO C++, [rand.util.seedseq])."""
    n, s, word = _ROUNDS, 1, 2**32
    t = (n - 1) // 2  # of fewer than 7 numbers
    p = (n - t) // 2
    q = p + t
    steps = max(s + 1, n)
    keys = [0x8B8B8B8B] * n

    def scrambled(x: int) -> int:
        return x ^ (x >> 27)

    for k in range(steps):
        mixed = 1664525 * scrambled(keys[k % n] ^ keys[(k + p) % n] ^ keys[(k - 1) % n]) % word
        more = mixed + (s if k == 0 else k % n + (seed if k <= s else 0))
        keys[(k + p) % n] = (keys[(k + p) % n] + mixed) % word
        keys[(k + q) % n] = (keys[(k + q) % n] + more) % word
        keys[k % n] = more % word
    for k in range(steps, steps + n):
        mixed = 1566083941 * scrambled((keys[k % n] + keys[(k + p) % n] + keys[(k - 1) % n]) % word) % word
        less = (mixed - k % n) % word
        keys[(k + p) % n] ^= mixed
        keys[(k + q) % n] ^= less
        keys[k % n] = less
    return tuple(keys)
