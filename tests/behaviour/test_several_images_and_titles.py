"""The choice among several pictures and titles of an item, on a dataset that was built from a catalogue of such items.

Red says which item a picture shows, green which of its pictures it is; both survive resizes and crops. Blue rises from
left to right, so that a crop shows.
"""

import collections
import dataclasses

import numpy as np
import PIL.Image
import pytest

from input_pipeline.augment import Augmentation
from input_pipeline.augment.row_random import Purpose, draws, unit
from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import open_split
from input_pipeline.loader import DataShare, Speed, make_loader
from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import SCALED_DECODE, Preprocessing

ITEMS, EPOCHS = 24, 40
# How many pictures and titles an item has: all pairs of 1 to 3 and 1 to 4, twice.
COUNTS = [(1 + k % 3, 1 + k // 3 % 4) for k in range(ITEMS)]
BROKEN = 5  # of this item a further picture more, which is none
SIZES = [(24, 32), (40, 20), (30, 30)]  # height and width of the first, the second, the third picture
TITLES = [[f"item{k} called name{j}" for j in range(titles)] for k, (_, titles) in enumerate(COUNTS)]
PREPROCESSING = Preprocessing(
    image_size=(8, 8), tokenizer=train_tokenizer([t for ts in TITLES for t in ts], vocab_size=300), text_length=24
)
NAFLEX = PREPROCESSING.replace(image_size=(8, 8), resize="naflex", patch_size=2, max_patches=16)
CHOICE = Augmentation(flip=False, choose_image=True, choose_title=True)
CROPPED = Augmentation(flip=False, choose_image=True, choose_title=True, crop_area=(0.2, 0.5), crop_aspect=(0.8, 1.25))


def colour(item, number):
    return 10 * item, 40 + 60 * number


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    lines = [["id", "image", "image_2", "image_3", "image_4", "title", "title_2", "title_3", "title_4"]]
    for item, (pictures, _) in enumerate(COUNTS):
        names = [f"{item}-{number}.png" for number in range(pictures)]
        for number, name in enumerate(names):
            height, width = SIZES[number]
            pixels = np.empty((height, width, 3), np.uint8)
            pixels[..., :2] = colour(item, number)
            pixels[..., 2] = np.linspace(0, 255, width)
            PIL.Image.fromarray(pixels).save(folder / name)
        if item == BROKEN:
            names.append("broken.png")
        titles = TITLES[item]
        lines.append([f"id{item}", *names, *[""] * (4 - len(names)), *titles, *[""] * (4 - len(titles))])
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "items.csv").write_text("\n".join(",".join(line) for line in lines) + "\n")
    audit = build_dataset(read_catalogue(folder), folder / "built", fractions={"train": 1.0}, progress=False)
    assert (audit["kept"], sum(audit["more_image_problems"].values())) == (ITEMS, 1)
    return folder / "built"


def bundled(options):
    """Arguments of `make_loader`, from the fields of its bundles and its other arguments alike."""
    fields = {bundle: {field.name for field in dataclasses.fields(bundle)} for bundle in (DataShare, Speed)}
    share, speed = (
        bundle(**{name: options[name] for name in names & options.keys()}) for bundle, names in fields.items()
    )
    return {"share": share, "speed": speed} | {
        name: value for name, value in options.items() if name not in set().union(*fields.values())
    }


def loader(dataset, **options):
    arguments = {
        "split": "train",
        "preprocessing": PREPROCESSING,
        "batch_size": 8,
        "seed": 3,
        "augmentation": CHOICE,
        "epochs": EPOCHS,
        "show_progress": False,
    }
    return make_loader(dataset, **(arguments | bundled({"cache": False} | options)))


def identified(batches, *, preprocessing=PREPROCESSING):
    """{(epoch, row): (picture, title)} as the pixels and the ids of the batches tell."""
    known = {
        preprocessing.text([title])[0].tobytes(): (item, number)
        for item, titles in enumerate(TITLES)
        for number, title in enumerate(titles)
    }
    assert len(known) == sum(map(len, TITLES))
    epochs = collections.Counter()
    found = {}
    for batch in batches:
        for place, row in enumerate(batch["index"].tolist()):
            red, green = first_pixel(batch["image"], place)
            item, title = known[batch["text"][place].tobytes()]
            assert red == colour(item, 0)[0]
            assert row == item  # the build keeps the catalogue's order
            picture = (green - 40) // 60
            assert green == colour(item, picture)[1]
            found[epochs[row], row] = (picture, title)
            epochs[row] += 1
    return found


def first_pixel(images, place):
    pixels = images[place] if isinstance(images, np.ndarray) else images.pixels[place]
    return pixels.reshape(-1, 3)[0, :2].tolist()


@pytest.fixture(scope="module")
def chosen(dataset):
    return identified(loader(dataset))


def test_the_dataset_has_them(dataset):
    for row, (record, (pictures, _)) in enumerate(zip(open_split(dataset, "train"), COUNTS, strict=True)):
        assert 1 + len(record["more_images"]) == pictures  # without the broken one
        assert [record["title"], *record["more_titles"]] == TITLES[row]


def test_every_picture_and_every_title_occurs_as_often_as_the_others_and_in_every_pair(chosen):
    assert len(chosen) == EPOCHS * ITEMS
    pairs = collections.Counter()
    for row, (pictures, titles) in enumerate(COUNTS):
        seen = [chosen[epoch, row] for epoch in range(EPOCHS)]
        assert {picture for picture, _ in seen} == set(range(pictures))
        assert {title for _, title in seen} == set(range(titles))
        pairs.update((pictures, titles, *pair) for pair in seen)
    for pictures, titles in set(COUNTS):
        times = [pairs[pictures, titles, i, j] for i in range(pictures) for j in range(titles)]
        total, cells = sum(times), pictures * titles
        assert total == 2 * EPOCHS
        # Each within four standard deviations of an even share.
        spread = 4 * np.sqrt(total * (1 / cells) * (1 - 1 / cells))
        assert np.abs(np.array(times) - total / cells).max() <= spread


def test_the_choice_is_the_one_drawn_for_seed_epoch_and_row(chosen):
    for (epoch, row), found in chosen.items():
        expected = [
            int(unit(draws(np.array([row]), seed=3, epoch=epoch, purpose=purpose))[0] * count)
            for purpose, count in zip((Purpose.IMAGE, Purpose.TITLE), COUNTS[row], strict=True)
        ]
        assert list(found) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"num_threads": 1},
        {"num_workers": 1},
        {"batch_size": 3},
        {"augmentation": CROPPED},
        {"augmentation": CROPPED, "num_workers": 2},
        {"shuffle": False},
    ],
    ids=["one thread", "one worker", "batches of 3", "crops", "crops, two workers", "in order"],
)
@pytest.mark.slow
def test_the_same_choice_whoever_makes_it(dataset, chosen, options):
    with loader(dataset, epochs=6, **options) as batches:
        found = identified(batches)
    assert found == {key: pair for key, pair in chosen.items() if key[0] < 6}


def test_the_same_again_from_the_middle_of_an_epoch(dataset, chosen):
    state = {"epoch": 2, "batch": 1, "batch_size": 8, "rows": ITEMS, "seed": 3, "replaced": 0}
    whole = [batch for _, batch in zip(range(9), loader(dataset), strict=False)]
    resumed = loader(dataset, epochs=3)
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == 2
    for one, other in zip(rest, whole[7:], strict=True):
        for key in ("index", "image", "text"):
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.slow
def test_another_seed_chooses_otherwise_and_without_the_choice_the_first_is_taken(dataset, chosen):
    other = identified(loader(dataset, seed=4, epochs=10))
    free = [key for key in other if COUNTS[key[1]] == (3, 4)]
    assert sum(other[key] == chosen[key] for key in free) < len(free) / 2
    plain = identified(loader(dataset, augmentation=Augmentation(flip=False), epochs=2))
    assert set(plain.values()) == {(0, 0)}
    titles = identified(loader(dataset, augmentation=Augmentation(flip=False, choose_title=True), epochs=10))
    assert titles == {key: (0, title) for key, (_, title) in chosen.items() if key[0] < 10}


def test_titles_are_chosen_from_memory_too_and_pictures_are_refused_there(dataset):
    titles = Augmentation(flip=False, choose_title=True)
    from_memory = identified(loader(dataset, augmentation=titles, epochs=5, cache=True))
    assert from_memory == identified(loader(dataset, augmentation=titles, epochs=5))
    with pytest.raises(UserError, match="cache with choose_image: these need the pictures as they came"):
        loader(dataset, cache=True)


def test_a_crop_is_one_of_the_chosen_picture(dataset, chosen):
    whole = {tuple(batch["index"]): batch["image"] for batch in loader(dataset, epochs=1)}
    for batch in loader(dataset, epochs=1, augmentation=CROPPED):
        blue, of_whole = (x[..., 2].astype(int) for x in (batch["image"], whole[tuple(batch["index"])]))
        np.testing.assert_array_equal(batch["image"][..., :2], whole[tuple(batch["index"])][..., :2])
        narrower = np.ptp(blue, axis=(1, 2)) < np.ptp(of_whole, axis=(1, 2))
        assert narrower.all()  # at most half of the area, no more than 5 : 4 out of shape


@pytest.mark.parametrize("augmentation", [CHOICE, CROPPED], ids=["whole", "cropped"])
def test_naflex_chooses_alike_and_keeps_each_pictures_shape(dataset, chosen, augmentation):
    batches = list(loader(dataset, preprocessing=NAFLEX, augmentation=augmentation, epochs=6))
    assert identified(batches) == {key: pair for key, pair in chosen.items() if key[0] < 6}
    epochs, ratios = collections.Counter(), collections.defaultdict(list)
    for batch in batches:
        for row, (height, width) in zip(batch["index"].tolist(), batch["image"].shape, strict=True):
            ratios[chosen[epochs[row], row][0]].append(np.log(width / height))
            epochs[row] += 1
    for picture, (height, width) in enumerate(SIZES):  # in patches of a budget of 16 that is coarse
        assert np.mean(ratios[picture]) == pytest.approx(np.log(width / height), abs=0.3)
    assert len({tuple(shape) for batch in batches for shape in batch["image"].shape.tolist()}) >= 3


@pytest.mark.parametrize(
    ("change", "preprocessing", "message"),
    [
        ({"shift": 1}, NAFLEX, "shift=1, zoom=0.0 with NaFlex pictures"),
        ({"zoom": 0.1}, NAFLEX, "zoom=0.1 with NaFlex pictures"),
        ({"crop_area": (0.5, 1)}, PREPROCESSING.replace(resize=SCALED_DECODE), "a crop with resize="),
    ],
    ids=["shift", "zoom", "scaled decode"],
)
def test_what_several_pictures_do_not_change_stays_refused(dataset, change, preprocessing, message):
    augmentation = Augmentation(flip=False, choose_image=True, **change)
    with pytest.raises(UserError, match=message):
        loader(dataset, preprocessing=preprocessing, augmentation=augmentation)


def test_scaled_decoding_chooses_alike(dataset, chosen):
    found = identified(loader(dataset, preprocessing=PREPROCESSING.replace(resize=SCALED_DECODE), epochs=4))
    assert found == {key: pair for key, pair in chosen.items() if key[0] < 4}
