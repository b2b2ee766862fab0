"""What a step would not compute as it is meant is one line, whatever a user's iterator gives."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.towers import TwoTowers
from siglip_jax.preprocessing import Patches, Preprocessing
from siglip_jax.training.start.expected_batch import ExpectedBatch, check_iterator

ROWS, VOCABULARY, LENGTH = 4, 11, 3
SIZE = TowerSize(width=8, depth=1, mlp_dim=8, heads=2)
FIXED = dict(image_size=(8, 4), patch_size=4, image=SIZE, text=SIZE, vocab_size=VOCABULARY, text_length=LENGTH)
KINDS = {
    "images": (Architecture(**FIXED), Preprocessing(image_size=(8, 4), text_length=LENGTH)),
    "naflex": (
        Architecture(**FIXED | {"image_size": (8, 8), "naflex": True}),
        Preprocessing(image_size=(8, 8), text_length=LENGTH, resize="naflex", patch_size=4, max_patches=6),
    ),
    "features": (
        Architecture(**FIXED | {
            "image_size": (1, 1), "patch_size": 1,
            "image": FeatureSize(inputs={"cnn": 3, "old": 2}, base=5, head=2, mlp_dim=4),
        }),
        Preprocessing(image_size=(1, 1), text_length=LENGTH),
    ),
}  # fmt: skip


def expected(kind="images", **options):
    architecture, preprocessing = KINDS[kind]
    model = Model(module=TwoTowers(architecture), params={}, preprocessing=preprocessing)
    return ExpectedBatch.of(model, rows=ROWS, **options)


def good(kind="images"):
    rng = np.random.default_rng(0)
    image = {
        "images": rng.integers(0, 256, (ROWS, 8, 4, 3), np.uint8),
        "naflex": Patches(rng.integers(0, 256, (ROWS, 6, 48), np.uint8), np.int32([[1, 1], [2, 3], [6, 1], [1, 5]])),
        "features": {"cnn": rng.normal(size=(ROWS, 3)).astype("f4"), "old": rng.normal(size=(ROWS, 2)).astype("f4")},
    }[kind]
    text = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    return {"image": image, "text": text, "group": np.arange(ROWS, dtype=np.int32)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_documented_is_taken(kind):
    batch = good(kind)
    expected(kind).check(batch | {"index": np.arange(ROWS), "anything": "else"})
    expected(kind).check(batch | {"text": jnp.asarray(batch["text"])})


PATCHES = np.zeros((ROWS, 6, 48), np.uint8)
UNIT = np.float32(np.eye(ROWS, 8))
WRONG = {
    "images": [
        ({"image": np.ones((ROWS, 8, 4, 3), np.float32)}, r"is float32 \[4, 8, 4, 3\]; expected uint8 .*0 to 255"),
        ({"image": np.ones((ROWS, 8, 4, 3), np.uint8)}, "pixels of a batch are 0 and 1, so its images are black"),
        ({"image": np.ones((ROWS, 4, 8, 3), np.uint8)}, r"is uint8 \[4, 4, 8, 3\]; expected uint8 \[4, 8, 4, 3\]"),
        ({"image": np.zeros((2, 8, 4, 3), np.uint8)}, r"uint8 \[2, .*; its rows are config.batch_size, divided by"),
        ({"image": [1, 2]}, "image of a batch is a list; expected uint8"),
        ({"image": {"cnn": np.zeros((ROWS, 3), np.float32)}}, r"is \{cnn: float32 \[4, 3\]\}; expected uint8"),
        ({"text": np.full((ROWS, LENGTH), VOCABULARY, np.int32)}, "has ids from 11 to 11; expected 0 to 10,"),
        ({"text": np.full((ROWS, LENGTH), -1, np.int32)}, "text of a batch has ids from -1 to -1"),
        ({"text": np.zeros((ROWS, LENGTH), np.int64)}, r"is int64 \[4, 3\]; expected int32 .*give .astype\(np.int32\)"),
        ({"text": np.zeros((ROWS, LENGTH + 1), np.int32)}, r"expected int32 \[4, 3\]$"),
        ({"group": np.zeros((ROWS, 1), np.int32)}, r"group of a batch is int32 \[4, 1\]; expected int32 \[4\]"),
        ({"group": None}, "group of a batch is a NoneType"),
    ],
    "naflex": [
        ({"image": PATCHES}, r"uint8 \[4, 6, 48\]; expected Patches\(uint8 \[4, 6, 48\], int32"),
        ({"image": Patches(PATCHES, np.int32([[2, 4]] * ROWS))}, "at most 6 patches together"),
        ({"image": Patches(PATCHES, np.int32([[0, 1]] * ROWS))}, r"grids .* at least 1"),
        ({"image": Patches(PATCHES, np.full((ROWS, 2), 2**17, np.int32))}, "at most 6"),
    ],
    "features": [
        ({"image": {"cnn": np.zeros((ROWS, 3), np.float32)}}, r"expected \{cnn: float32 \[4, 3\], old: float32 \[4, 2"),
        ({"image": good("features")["image"] | {"old": np.full((ROWS, 2), np.nan, np.float32)}}, "has NaN or infinite"),
        ({"image": good("images")["image"]}, r"is uint8 \[4, 8, 4, 3\]; expected \{cnn"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), [(kind, *each) for kind in WRONG for each in WRONG[kind]])
def test_what_is_not_is_one_line(kind, change, message):
    with pytest.raises(UserError, match=message) as error:
        expected(kind).check(good(kind) | change)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("train: ")


def test_what_is_missing_is_named():
    batch = good()
    del batch["group"]
    with pytest.raises(UserError, match=r"a batch of image, text has no group; expected image uint8 \[4, 8, 4, 3\], "):
        expected().check(batch)
    with pytest.raises(UserError, match="a batch is a tuple; expected a dict of image, text, group"):
        expected().check((batch["image"], batch["text"]))
    with pytest.raises(UserError, match=r"has no teacher; .*each batch needs unit vectors"):
        expected(more=("teacher",)).check(good())
    expected(more=("teacher",)).check(good() | {"teacher": UNIT})
    with pytest.raises(UserError, match="teacher of a batch has rows of norm 2 to 2; expected unit vectors"):
        expected(more=("teacher",)).check(good() | {"teacher": 2 * UNIT})
    stored = expected(stored=("image_embedding",))
    assert list(stored.shapes) == ["text", "group", "image_embedding"]
    with pytest.raises(UserError, match="has no image_embedding"):
        stored.check(good())


ARRAYS = st.builds(
    lambda shape, dtype, value: np.full(shape, value).astype(dtype),
    st.lists(st.sampled_from((0, 1, 2, 3, 4, 6, 8, 48)), max_size=4),
    st.sampled_from(["u1", "i1", "i4", "i8", "u4", "f2", "f4", "f8", "?", "c8", "U3", "O"]),
    st.sampled_from((0, 1, 7, 300, -1)),
)
ANYTHING = st.one_of(
    ARRAYS,
    st.builds(Patches, ARRAYS, ARRAYS),
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(("cnn", "old", "new")), ARRAYS, max_size=3),
)


def is_good(kind, key, value):
    """Independently of the code: the two that these values can be."""
    if key == "group":
        return isinstance(value, np.ndarray) and (value.dtype, value.shape) == (np.int32, (ROWS,))
    if key == "text":
        like = isinstance(value, np.ndarray) and (value.dtype, value.shape) == (np.int32, (ROWS, LENGTH))
        return like and value.flat[0] in range(VOCABULARY)
    if kind == "features":
        sizes = {"cnn": 3, "old": 2}
        names = isinstance(value, dict) and value.keys() == sizes.keys()
        return names and all(value[name].shape == (ROWS, k) and value[name].dtype == "f4" for name, k in sizes.items())
    return kind == "images" and isinstance(value, np.ndarray) and value.shape == (ROWS, 8, 4, 3) and value.dtype == "u1"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy's casts of what is drawn
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_anything_under_a_key_is_taken_as_documented_or_refused_in_a_line(kind, data):
    key = data.draw(st.sampled_from(("image", "text", "group")))
    value = data.draw(ANYTHING)
    if is_good(kind, key, value) and not (key == "image" and kind == "images" and value.max() == 1):
        expected(kind).check(good(kind) | {key: value})
        return
    with pytest.raises(UserError, match=r"^train: ") as error:
        expected(kind).check(good(kind) | {key: value})
    assert "\n" not in str(error.value)


class Iterator:
    def __init__(self, state):
        self.get_state, self.set_state = lambda: state, print

    def __next__(self):
        return {}


def test_an_iterator_is_one_that_a_run_can_continue():
    check_iterator(Iterator({"position": 3}))
    with pytest.raises(UserError, match="batches is a list without __next__, get_state, set_state; expected an iter"):
        check_iterator([good()])
    for state in ({"position": np.int64(3)}, None, {1, 2}, [("a", 1)]):
        with pytest.raises(UserError, match=r"get_state\(\) gives no dict that JSON can hold"):
            check_iterator(Iterator(state))
