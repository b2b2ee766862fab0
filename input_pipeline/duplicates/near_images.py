"""Pictures that look alike: a signature of 64 bytes for each, and the exact search for pairs of near signatures.

Sixty-four bits, which is what a perceptual hash usually has, find re-encoded copies among photographs of the world; on
product pictures with a white ground they link most of a catalogue with itself. So 64 bits only choose candidates, and
192 more and the colours decide.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pyarrow as pa

SIGNATURE_BYTES = 64
NEAR = 20  # of 256 bits; `siglip-jax bench duplicates` tells what this finds and what it takes for alike
MAX_NEAR = 32
HASH_NEAR = 6  # of the 64 leading bits
COLOUR_NEAR = 2.5  # levels of 256
_SIZE, _FREQUENCIES, _CELLS = 64, 16, 4
_FLAT = 0.02  # grey levels; what is less is noise of a plain ground, or nothing at all, and its sign says nothing
_PAIRS_AT_ONCE = 2**21  # candidates compared in one go, which bounds the memory


def image_signature(image: np.ndarray) -> np.ndarray:
    """uint8 [64] of a picture, uint8 [H, W, 3]: 32 bytes of structure, 32 of colour.

    Structure: the signs of the 16 x 16 lowest frequencies, without those constant along a side, of the DCT of the luma
    at 64 x 64 pixels, as in PDQ ("The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", Facebook
    2019) but around zero and from low to high, so that the first 64 bits are a coarser hash by themselves. Colour: Cb
    and Cr as means over a grid of 4 x 4. Scale and aspect ratio do not matter, brightness and contrast hardly.
    """
    small = PIL.Image.fromarray(image).resize((_SIZE, _SIZE), PIL.Image.Resampling.BOX, reducing_gap=2.0)
    small = small.convert("YCbCr")
    cosines, order = _transform()
    frequencies = (cosines @ np.asarray(small, np.float32)[:, :, 0] @ cosines.T).ravel()[order]
    colour = np.asarray(small.reduce(_SIZE // _CELLS))[:, :, 1:]
    return np.concatenate([np.packbits(frequencies > _FLAT), colour.ravel()])


def perceptual_hash(image: np.ndarray) -> int:
    """The 64 leading bits of the signature of a picture, uint8 [H, W, 3], the coarsest highest."""
    return int(leading_bits(image_signature(image)[None])[0])


def leading_bits(signatures: np.ndarray) -> np.ndarray:
    """uint64 [n] of uint8 [n, 64]: `perceptual_hash` of the same pictures."""
    return np.ascontiguousarray(signatures[:, :8]).view(">u8").ravel().astype(np.uint64)


def signatures(column: pa.ChunkedArray) -> np.ndarray:
    """uint8 [n, 64] of an Arrow column of binary[64], which has no nulls."""
    if column.null_count:
        raise ValueError(f"{column.null_count} rows have no signature; expected rows with pictures")
    size = SIGNATURE_BYTES
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, chunk.offset * size)
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, np.uint8), *chunks]).reshape(-1, size)


def near_image_pairs(signatures: np.ndarray, *, distance: int = NEAR) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of pictures that look alike, each once, in pieces.

    Two look alike where at most `distance` of 256 bits of structure and `HASH_NEAR` of the leading 64 differ, and the
    colours by `COLOUR_NEAR` on average.

    Args:
      signatures: uint8 [n, 64], distinct: a thousand copies of one would be half a million pairs.
      distance: bits, 0 to `MAX_NEAR`.

    Yields:
      int64 [m] and int64 [m]: indices of the pictures of each pair.

    Raises:
      ValueError: signatures of another shape, or a distance out of range.
    """
    _check(signatures, distance)
    hashes = leading_bits(signatures)
    alike = _Comparison(signatures, distance)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.r_[True, hashes[order][1:] != hashes[order][:-1]][: len(order)])
    sizes = np.diff(np.r_[starts, len(order)])
    for left, right in _equal_pairs(hashes[order]):
        yield alike(order[left], order[right])
    for first, second, _ in near_hashes(hashes[order[starts]], distance=HASH_NEAR):
        for left, right in _products(starts[first], sizes[first], starts[second], sizes[second]):
            yield alike(order[left], order[right])


class _Comparison:
    """Of pairs of indices of signatures, those that look alike."""

    def __init__(self, signatures: np.ndarray, distance: int):
        self._hashes = leading_bits(signatures)
        self._structure = np.ascontiguousarray(signatures[:, :32]).view(np.uint64)
        self._colour, self._distance = signatures[:, 32:], distance

    def __call__(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        near = np.bitwise_count(self._hashes[a] ^ self._hashes[b]) <= HASH_NEAR
        a, b = a[near], b[near]
        near = np.bitwise_count(self._structure[a] ^ self._structure[b]).sum(1, dtype=np.int64) <= self._distance
        a, b = a[near], b[near]
        differences = np.maximum(self._colour[a], self._colour[b]) - np.minimum(self._colour[a], self._colour[b])
        near = differences.mean(1) <= COLOUR_NEAR
        return a[near], b[near]


def near_groups(signatures: np.ndarray, *, distance: int = NEAR) -> np.ndarray:
    """int64 [n]: pictures that look alike, directly or through others, have equal numbers: the index of the first.

    Equal signatures cost nothing, however many. Nor are pairs compared that others have linked already: a placeholder
    saved ten thousand times is one group after ten thousand comparisons, not after their square. See `near_image_pairs`
    for what looks alike and for the errors.
    """
    from input_pipeline.duplicates.groups import first_rows

    _check(signatures, distance)
    _, first, inverse = np.unique(_opaque(signatures), return_index=True, return_inverse=True)
    alike = _Comparison(signatures[first], distance)
    labels = np.arange(len(first))
    for keys in _block_keys(leading_bits(signatures[first]), distance=HASH_NEAR):
        order = np.argsort(keys, kind="stable")
        labels = _joined(labels, alike, order, _pairs_in_line(keys[order], labels[order]))
        order = np.lexsort((labels, keys))
        labels = _joined(labels, alike, order, _equal_pairs(keys[order], labels[order]))
    return first_rows(labels[inverse])


def _joined(
    labels: np.ndarray, alike: _Comparison, order: np.ndarray, pairs: Iterator[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """The labels with those of pictures made one that look alike; `pairs` are of positions in `order`."""
    from input_pipeline.duplicates.groups import connected

    nothing = np.empty((2, 0), np.int64)
    edges, waiting = [nothing], 0
    for left, right in pairs:
        a, b = alike(order[left], order[right])
        edges.append(np.stack([labels[a], labels[b]]))
        waiting += len(a)
        if waiting > _PAIRS_AT_ONCE:  # joined now and then, so that memory stays flat
            labels, edges, waiting = connected(np.concatenate(edges, axis=1), len(labels))[labels], [nothing], 0
    return connected(np.concatenate(edges, axis=1), len(labels))[labels] if waiting else labels


def near_matches(queries: np.ndarray, signatures: np.ndarray, *, distance: int = NEAR) -> np.ndarray:
    """int64 [q]: the index of the first of `signatures` that looks like each query; -1 where none does.

    Args:
      queries: uint8 [q, 64]; signatures: uint8 [n, 64].
      distance: see `near_image_pairs`, also for the errors.
    """
    count = len(signatures)
    together = np.concatenate([signatures, queries])
    _, first, inverse = np.unique(_opaque(together), return_index=True, return_inverse=True)
    asked = np.zeros(len(first), bool)
    asked[inverse[count:]] = True
    best = np.where(first < count, first, len(together))  # an equal one is at least as early as itself
    known = best.copy()
    for pair in near_image_pairs(together[first], distance=distance):
        for a, b in (pair, pair[::-1]):
            use = asked[a] & (known[b] < count)
            np.minimum.at(best, a[use], known[b[use]])
    found = best[inverse[count:]]
    return np.where(found < count, found, -1)


def near_hashes(hashes: np.ndarray, *, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ in at most `distance` bits, each once, in pieces.

    The bits are cut into `distance` + 2 blocks. A pair that differs in so few bits agrees in two whole blocks at least,
    so for every two blocks the hashes are sorted by these and compared within runs of equal ones: exact, and for a
    million hashes a small part of all pairs. (Norouzi, Punjani and Fleet, "Fast Exact Search in Hamming Space with
    Multi-Index Hashing", 2014, with two blocks for one, since pictures of a catalogue fill few of the buckets.)

    Args:
      hashes: uint64 [n], distinct.
      distance: bits, 0 to 8.

    Yields:
      int64 [m] and int64 [m], indices, and uint8 [m], the bits in which they differ.
    """
    if not 0 <= distance <= 8:
        raise ValueError(f"distance={distance}; expected 0 to 8 bits")
    if not distance or len(hashes) < 2:
        return
    blocks = _blocks(distance)
    for one, two in itertools.combinations(range(len(blocks)), 2):
        keys = hashes & (blocks[one] | blocks[two])
        order = np.argsort(keys, kind="stable")
        for left, right in _equal_pairs(keys[order]):
            a, b = order[left], order[right]
            differing = hashes[a] ^ hashes[b]
            bits = np.bitwise_count(differing)
            near = bits <= distance
            a, b, differing, bits = a[near], b[near], differing[near], bits[near]
            # A pair is met at every two blocks in which it agrees; it is told at the first two.
            new = np.ones(len(a), bool)
            for block in range(two):
                if block != one:
                    new &= (differing & blocks[block]) != 0
            yield a[new], b[new], bits[new]


def _blocks(distance: int) -> list[np.uint64]:
    """Masks of `distance` + 2 blocks of 64 bits, of which two hashes that differ in so few bits share two."""
    ends = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    return [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(ends)]


def _block_keys(hashes: np.ndarray, *, distance: int) -> Iterator[np.ndarray]:
    """uint64 [n] for every two blocks: hashes that differ in at most `distance` bits are equal in one of them."""
    for one, two in itertools.combinations(_blocks(distance), 2):
        yield hashes & (one | two)


@functools.cache
def _transform() -> tuple[np.ndarray, np.ndarray]:
    """Rows of the DCT, float32 [16, 64], for frequencies 1 to 16, and the order of the 256 products, low to high."""
    k, x = np.arange(1, _FREQUENCIES + 1)[:, None], np.arange(_SIZE)[None]
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * _SIZE)) / _SIZE
    pairs = itertools.product(range(_FREQUENCIES), repeat=2)
    order = sorted(pairs, key=lambda pair: (max(pair), sum(pair), pair))
    return cosines.astype(np.float32), np.array([row * _FREQUENCIES + column for row, column in order])


def _check(signatures: np.ndarray, distance: int) -> None:
    if signatures.ndim != 2 or signatures.shape[1] != SIGNATURE_BYTES or signatures.dtype != np.uint8:
        raise ValueError(f"signatures {signatures.dtype} {signatures.shape}; expected uint8 [n, {SIGNATURE_BYTES}]")
    if not 0 <= distance <= MAX_NEAR:
        raise ValueError(f"distance={distance}; expected 0 to {MAX_NEAR} bits")


def _opaque(signatures: np.ndarray) -> np.ndarray:
    """One value of 64 bytes a row, for sorting."""
    return np.ascontiguousarray(signatures).view(f"V{SIGNATURE_BYTES}").ravel()


def _equal_pairs(keys: np.ndarray, labels: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of positions left < right of equal keys and different labels, in pieces; sorted by key and label."""
    ends = _run_ends(keys)
    starts = np.arange(1, len(keys) + 1) if labels is None else np.minimum(_run_ends(labels), ends)
    rows = np.flatnonzero(ends > starts)
    counts = (ends - starts)[rows]
    for some in _pieces(counts):
        left, count = rows[some], counts[some]
        offset = np.repeat(starts[left] - np.cumsum(count) + count, count)
        yield np.repeat(left, count), offset + np.arange(len(offset))


def _pairs_in_line(keys: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of sorted keys, each position with the one before it and with the first of its key, of different labels."""
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]][: len(keys)])
    firsts = np.repeat(first, np.diff(np.r_[first, len(keys)]))
    right = np.flatnonzero(firsts < np.arange(len(keys)))
    for start in range(0, len(right), _PAIRS_AT_ONCE):
        some = right[start : start + _PAIRS_AT_ONCE]
        for left in (some - 1, firsts[some]):
            apart = labels[left] != labels[some]
            yield left[apart], some[apart]


def _run_ends(values: np.ndarray) -> np.ndarray:
    """int64 [n]: of each position, that after the last of the run of equal values it is in."""
    ends = np.flatnonzero(np.r_[values[1:] != values[:-1], True][: len(values)]) + 1
    return np.repeat(ends, np.diff(np.r_[0, ends]))


def _products(
    a: np.ndarray, a_sizes: np.ndarray, b: np.ndarray, b_sizes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of a position in the run from a[i], a_sizes[i] long, and one in that from b[i]; in pieces."""
    counts = a_sizes * b_sizes
    for some in _pieces(counts):
        count = counts[some]
        run = np.repeat(np.arange(some.start, some.stop), count)
        offset = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
        yield a[run] + offset // b_sizes[run], b[run] + offset % b_sizes[run]


def _pieces(counts: np.ndarray) -> Iterator[slice]:
    """Stretches whose counts add up to no more than can be compared at once, or of a single one."""
    totals = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, done + _PAIRS_AT_ONCE, side="right")))
        yield slice(start, stop)
        start = stop
