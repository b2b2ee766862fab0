"""Memory of batches comes back when no view of it is left, and never before."""

import gc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.loader.buffers import ALIGNMENT, KEPT, SIZES, Recycler


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[3:5],
        lambda array: array[1].T,
        lambda array: array.reshape(-1)[8:].view(np.uint16)[:3],
        lambda array: memoryview(array)[2:],
        lambda array: np.asarray(memoryview(array[2:])),
        lambda array: np.broadcast_to(array[:1], (9, 5, 7)),
        lambda array: iter(array),
    ],
)
def test_every_view_holds_the_memory(view):
    recycler = Recycler()
    first = recycler.empty((6, 5, 7), np.uint8)
    place = address(first)
    held = view(first)
    del first
    gc.collect()
    other = recycler.empty((6, 5, 7), np.uint8)
    assert address(other) != place
    del held, other
    gc.collect()
    assert place in {address(array) for array in [recycler.empty((6, 5, 7), np.uint8) for _ in range(2)]}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 6), min_size=1, max_size=4), st.sampled_from([np.uint8, np.int32, np.float64])
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_arrays_that_live_at_once_share_nothing(asked, random):
    recycler, alive = Recycler(), []
    for number, (shape, dtype) in enumerate(asked):
        array = recycler.empty(tuple(shape), dtype)
        assert (array.shape, array.dtype) == (tuple(shape), dtype)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert address(array) % ALIGNMENT == 0 or not array.size
        array[...] = number
        alive.append((number, array))
        random.shuffle(alive)
        del alive[3:], array
        for value, other in alive:
            assert (other == value).all()


def test_an_array_of_jax_holds_the_memory_it_lies_in():
    recycler = Recycler()
    batch = recycler.empty((64, 1024), np.float32)
    batch[:] = 7
    place = address(batch)
    array = jax.device_put(batch)
    array.block_until_ready()
    if array.unsafe_buffer_pointer() != place:
        pytest.skip("JAX has copied the array")
    del batch
    gc.collect()
    other = recycler.empty((64, 1024), np.float32)
    other[:] = 0
    assert (np.asarray(array) == 7).all()


def test_what_somebody_collected_is_not_all_kept():
    recycler = Recycler()
    collected = [recycler.empty((100,), np.uint8) for _ in range(3 * KEPT)]
    del collected
    gc.collect()
    assert sum(map(len, recycler._free.values())) == KEPT
    for size in range(1, 3 * SIZES):
        recycler.empty((size,), np.uint8)
    assert len(recycler._free) <= SIZES


def test_arrays_of_a_batch_have_memory_each():
    recycler = Recycler()

    def batch():
        return [recycler.empty((4, size), np.int32) for size in (100, 3, 1)]

    places = {address(array) for array in batch()}
    gc.collect()
    assert {address(array) for array in batch()} == places
