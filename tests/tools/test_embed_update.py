"""Stores that follow their dataset: what is embedded, what is kept, and that embedding anew would give the same."""

import csv
import hashlib
import json

import numpy as np
import PIL.Image
import pytest

from eval.comparison.choose_rankers import read_vectors
from eval.comparison.items import read_items
from eval.embeddings import read_store, write_store
from eval.embeddings.store import read_manifest
from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import open_split
from siglip_jax.cli import main
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from tools.workflow.embedding import ImageEncoder, embed, embed_split, load_encoder
from tools.workflow.item_vectors import Features

ENCODER = "pixels:4x4"
BEFORE = {item: (item, "p1" if item in "aeh" else "p2" if item in "cd" else "") for item in "abcdefghij"}
# b is dropped, c has another picture, k and l are new; l comes first.
AFTER = {"l": ("l", ""), **{k: v for k, v in BEFORE.items() if k != "b"}, "c": ("another c", "p2"), "k": ("k", "p1")}


def build(folder, items):
    """A dataset of {id: (seeds of its pictures, product)} with one split, test; "c|another c" are two pictures."""
    (folder / "shop").mkdir(parents=True)
    with open(folder / "shop" / "items.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "image", "product"])
        for item, (seed, product) in items.items():
            names = []
            for number, one in enumerate(seed.split("|")):
                pixels = np.random.default_rng(list(one.encode())).integers(0, 256, (9, 9, 3), np.uint8)
                names.append(f"{item}.{number}.png")
                PIL.Image.fromarray(pixels).save(folder / "shop" / names[-1])
            writer.writerow([item, f"title {seed}", "|".join(names), product])
    build_dataset(read_catalogue(folder / "shop"), folder / "data", fractions={"test": 1.0}, progress=False)
    return folder / "data"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return build(tmp_path_factory.mktemp("before"), BEFORE)


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    return build(tmp_path_factory.mktemp("after"), AFTER)


def watched(encoder):
    """(the encoder, a list to which it adds how many pictures it was given)."""
    counts = []

    def encode(images):
        counts.append(len(next(iter(images.values())) if isinstance(images, dict) else images))
        return encoder.encode(images)

    return ImageEncoder(encode, encoder.preprocessing, encoder.description, encoder.features), counts


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def embedded_by(counts, encoder, **options):
    counts.clear()
    changes = embed_split(encoder, **options)
    return str(changes), sum(counts)


@pytest.mark.parametrize(
    ("dtype", "pool_by", "said", "embedded"),
    [
        ("float32", None, "2 new, 1 changed, 8 kept, 1 dropped", 3),
        # The products are a e h (now with k) and c d; all pictures of a product are embedded again.
        ("float32", "product", "1 new, 2 changed, 4 kept, 1 dropped", 7),
        ("float16", None, "2 new, 1 changed, 8 kept, 1 dropped", 3),
        ("int8", "product", "1 new, 2 changed, 4 kept, 1 dropped", 7),
    ],
)
def test_an_update_gives_what_embedding_anew_does(before, after, tmp_path, dtype, pool_by, said, embedded):
    options = dict(split="test", rows_per_shard=4, pool_by=pool_by)
    encoder, counts = watched(load_encoder(ENCODER))
    store = dict(output=tmp_path / "store", update=True, **options)  # the first makes it
    first = f"{10 - 3 * bool(pool_by)} new, 0 changed, 0 kept, 0 dropped"
    assert embedded_by(counts, encoder, dataset=before, dtype=dtype, **store) == (first, len(BEFORE))
    old = read_store(tmp_path / "store")
    assert embedded_by(counts, encoder, dataset=after, **store) == (said, embedded)
    fresh = embed(encoder, dataset=after, output=tmp_path / "fresh", dtype=dtype, **options)
    found = read_store(tmp_path / "store")
    assert found.ids == fresh.ids
    assert found.vectors.tobytes() == fresh.vectors.tobytes()
    assert {k: v for k, v in found.manifest.items() if k != "shards"} == {
        k: v for k, v in fresh.manifest.items() if k != "shards"
    }
    assert found.generation == fresh.generation != old.generation
    assert embedded_by(counts, encoder, dataset=after, **store)[1] == 0
    assert read_store(tmp_path / "store").generation == fresh.generation


def test_files_stay_for_one_generation(before, after, tmp_path):
    encoder, store = load_encoder(ENCODER), tmp_path / "store"
    options = dict(split="test", output=store, rows_per_shard=4, update=True)
    embed_split(encoder, dataset=before, **options)
    generations = [(read_manifest(store), read_store(store))]
    for dataset in (after, before):
        embed_split(encoder, dataset=dataset, **options)
        held = {
            shard["file"] for manifest in (generations[-1][0], read_manifest(store)) for shard in manifest["shards"]
        }
        assert {path.name for path in store.iterdir()} == held | {"manifest.json"}
        for shard in generations[-1][0]["shards"]:  # a reader that has the manifest of before
            assert hashlib.sha256((store / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        generations.append((read_manifest(store), read_store(store)))
    assert generations[0][1].generation == generations[2][1].generation != generations[1][1].generation


def test_a_stopped_update_goes_on(before, after, tmp_path):
    encoder, counts = watched(load_encoder(ENCODER))
    options = dict(split="test", output=tmp_path / "store", rows_per_shard=2, update=True)
    embed_split(encoder, dataset=before, **options)
    old = read_store(tmp_path / "store")

    def dies(images, seen=[]):  # noqa: B006
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return encoder.encode(images)

    with pytest.raises(KeyboardInterrupt):
        embed_split(ImageEncoder(dies, encoder.preprocessing, encoder.description), dataset=after, **options)
    assert read_store(tmp_path / "store").vectors.tobytes() == old.vectors.tobytes()
    said, embedded = embedded_by(counts, encoder, dataset=after, **options)
    assert said == "2 new, 1 changed, 8 kept, 1 dropped"
    assert embedded < 3  # what was finished before the stop is not embedded again
    fresh = embed(encoder, dataset=after, split="test", output=tmp_path / "fresh", rows_per_shard=2)
    assert read_store(tmp_path / "store").generation == fresh.generation


def test_a_store_that_does_not_say_what_it_was_made_of_is_embedded_once(before, tmp_path, capsys):
    encoder, counts = watched(load_encoder(ENCODER))
    options = dict(dataset=before, split="test", output=tmp_path / "store")
    store = embed(encoder, **options)
    about = {key: store.manifest[key] for key in ("model", "preprocessing", "dataset")}
    write_store(tmp_path / "store", [(store.ids, store.vectors)], manifest=about)  # as early versions did
    for said, embedded, noted in (
        ("0 new, 10 changed, 0 kept, 0 dropped", 10, True),
        ("0 new, 0 changed, 10 kept, 0 dropped", 0, False),
    ):
        capsys.readouterr()
        assert embedded_by(counts, encoder, update=True, **options) == (said, embedded)
        assert ("does not say what its vectors were made of" in capsys.readouterr().out) == noted


def test_another_way_of_embedding_is_refused(before, tmp_path):
    options = dict(dataset=before, split="test", output=tmp_path / "store")
    embed_split(load_encoder(ENCODER), **options)
    held = files_of(tmp_path / "store")
    for encoder, change, said in (
        ("pixels:5x4", {}, "preprocessing"),
        ("colours:2x2x2", {}, "model.name: 'colours:2x2x2' here, 'pixels:4x4' there"),
        (ENCODER, {"dtype": "int8"}, "dtype: 'int8' here, 'float32' there"),
        (ENCODER, {"pool_by": "product"}, "pool: "),
    ):
        with pytest.raises(UserError, match="every item would be embedded anew: give a new --output") as error:
            embed_split(load_encoder(encoder), **options, **change, update=True)
        assert said in str(error.value)
        assert files_of(tmp_path / "store") == held


def test_features_of_an_adapter_are_compared_by_their_numbers(before, after, tmp_path):
    """The store of features has moved and holds other items too; only those with other vectors are embedded again."""
    random = np.random.default_rng(0)
    vectors = {item: random.normal(size=6) for item in [*AFTER, "b"]}

    def encoder(name, **changed):
        ids = sorted(vectors | changed, reverse="z" in changed)
        about = {"model": {"name": name, "tower_sha256": "f00d"}}
        write_store(tmp_path / name, [(ids, np.stack([(vectors | changed)[item] for item in ids]))], manifest=about)
        features = Features.open({"cnn": [tmp_path / name]})
        described = {"name": name, "head_sha256": "feed", "features": {"cnn": features.stores["cnn"].description}}
        return watched(ImageEncoder(lambda read: read["cnn"], Preprocessing(image_size=(4, 4)), described, features))

    options = dict(split="test", output=tmp_path / "store", update=True)
    first, counts = encoder("first")
    assert embedded_by(counts, first, dataset=before, **options)[1] == 10
    second, counts = encoder("second", z=random.normal(size=6), d=random.normal(size=6))
    # c has another picture, which an adapter does not see.
    assert embedded_by(counts, second, dataset=after, **options) == ("2 new, 1 changed, 8 kept, 1 dropped", 3)
    store = read_store(tmp_path / "store")
    assert store.ids == list(AFTER)
    np.testing.assert_array_equal(store.vectors[store.ids.index("a")], np.float32(vectors["a"]))


def test_a_product_is_the_mean_of_its_unit_vectors(before, tmp_path):
    options = dict(dataset=before, split="test")
    single = embed(load_encoder(ENCODER), output=tmp_path / "single", **options)
    pooled = embed(load_encoder(ENCODER), output=tmp_path / "pooled", pool_by="product", **options)
    assert pooled.ids == list("abcfgij")
    assert pooled.manifest["pool"] == {"how": "mean", "by": "product"}
    of = dict(zip(single.ids, single.vectors.astype(np.float64), strict=True))
    for item, vector in zip(pooled.ids, pooled.vectors, strict=True):
        members = [of[each] / np.linalg.norm(of[each]) for each in {"a": "aeh", "c": "cd"}.get(item, item)]
        mean = np.mean(members, axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-7)


def test_all_pictures_of_an_item_are_one_vector(tmp_path):
    """Alone, and with those of the product's other items; an update sees a change of any of them."""
    seeds = {"a": ("a|x|y", "p"), "b": ("b", "p"), "c": ("c|z", ""), "d": ("d", "")}
    old, new = build(tmp_path / "old", seeds), build(tmp_path / "new", seeds | {"a": ("a|x|w", "p")})
    flat = {seed: (seed, "") for seed in "axyzbcdw"}
    single = embed(load_encoder(ENCODER), dataset=build(tmp_path / "flat", flat), split="test", output=tmp_path / "one")
    of = dict(zip(single.ids, single.vectors.astype(np.float64), strict=True))
    encoder, counts = watched(load_encoder(ENCODER))
    for name, pool_by, expected, embedded in (
        ("item", None, {"a": "axy", "b": "b", "c": "cz", "d": "d"}, 3),
        ("product", "product", {"a": "axyb", "c": "cz", "d": "d"}, 4),
    ):
        options = dict(
            split="test", output=tmp_path / name, pool="mean", pool_by=pool_by, rows_per_shard=2, update=True
        )
        embed_split(encoder, dataset=old, **options)
        for dataset, letters in ((old, expected), (new, expected | {"a": expected["a"].replace("y", "w")})):
            said, count = embedded_by(counts, encoder, dataset=dataset, **options)
            assert (said.split(", ")[:2], count) == (
                (["0 new", "0 changed"], 0) if dataset == old else (["0 new", "1 changed"], embedded)
            )
            store = read_store(tmp_path / name)
            assert store.ids == list(letters)
            means = np.array(
                [np.mean([of[k] / np.linalg.norm(of[k]) for k in some], axis=0) for some in letters.values()]
            )
            np.testing.assert_allclose(store.vectors, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-7)
    plain = embed(encoder, dataset=old, split="test", output=tmp_path / "plain")  # the first picture alone
    np.testing.assert_array_equal(plain.vectors[0], np.float32(of["a"]))


def test_each_picture_is_a_row_of_its_item(tmp_path, capsys):
    """Updates see a picture changed, added or gone; `rank` takes the first ones."""
    seeds = {"a": ("a|x|y", ""), "b": ("b", ""), "c": ("c|z", ""), "d": ("d|v", ""), "e#2": ("e", "")}
    changed = {"d": ("d", ""), "b": ("b|u", ""), "a": ("a|x|w", ""), "c": ("c|z", ""), "e#2": ("e", "")}
    single = embed(
        load_encoder(ENCODER),
        dataset=build(tmp_path / "flat", {seed: (seed, "") for seed in "axyzbcdwvue"}),
        split="test",
        output=tmp_path / "one",
    )
    of = dict(zip(single.ids, single.vectors, strict=True))
    encoder, counts = watched(load_encoder(ENCODER))
    options = dict(split="test", output=tmp_path / "store", pool="each", rows_per_shard=2, update=True)
    for name, items, said, embedded in (
        ("old", seeds, "5 new, 0 changed, 0 kept, 0 dropped", 9),
        ("old", seeds, "0 new, 0 changed, 5 kept, 0 dropped", 0),
        ("new", changed, "0 new, 3 changed, 2 kept, 0 dropped", 6),
        ("less", {"c": ("c|z", "")}, "0 new, 0 changed, 1 kept, 4 dropped", 0),
    ):
        dataset = tmp_path / name / "data"
        dataset = dataset if dataset.exists() else build(tmp_path / name, items)
        assert embedded_by(counts, encoder, dataset=dataset, **options) == (said, embedded)
        expected = [
            (item if number == 0 else f"{item}#{number + 1}", seed)
            for item, (some, _) in items.items()
            for number, seed in enumerate(some.split("|"))
        ]
        found = read_store(tmp_path / "store")
        assert found.ids == [row_id for row_id, _ in expected]
        np.testing.assert_array_equal(found.vectors, np.stack([of[seed] for _, seed in expected]))
        items_of = read_items(dataset, "test", {"x": str(tmp_path / "store")})
        vectors, _ = read_vectors("x", str(tmp_path / "store"), items=items_of, dataset=dataset)
        np.testing.assert_array_equal(vectors, np.stack([of[some.split("|")[0]] for some, _ in items.values()]))
    assert "1 rows of further pictures left out" in capsys.readouterr().out
    clash = build(tmp_path / "clash", {"a": ("a|x", ""), "a#2": ("b", "")})
    with pytest.raises(UserError, match="item 'a#2' cannot be told from picture 2 of item 'a'"):
        embed_split(encoder, dataset=clash, split="test", output=tmp_path / "clash" / "store", pool="each")


def test_products_are_ranked_beside_single_items(before, tmp_path):
    """Where a store has one row a product, all rankers rank these rows."""
    options = dict(dataset=before, split="test")
    stores = {"single": str(tmp_path / "single"), "pooled": str(tmp_path / "pooled")}
    single = embed(load_encoder(ENCODER), output=stores["single"], **options)
    pooled = embed(load_encoder(ENCODER), output=stores["pooled"], pool_by="product", **options)
    items = read_items(before, "test", stores)
    assert items.ids == pooled.ids
    for name, whole in (("single", single), ("pooled", pooled)):
        vectors, _ = read_vectors(name, stores[name], items=items, dataset=before)
        np.testing.assert_array_equal(vectors, whole.vectors[[whole.ids.index(item) for item in items.ids]])
    (warning,) = items.warnings()
    assert warning.startswith("3 items are missing from every row, as queries and as candidates: they are in the mean")
    assert warning.endswith("in store 'pooled' (d, e, h).")


def test_the_command(before, after, tmp_path, capsys):
    flags = ["embed", f"--model={ENCODER}", f"--output={tmp_path / 'store'}", "--split=test"]
    assert main([*flags, f"--dataset={before}", "--dtype=float16"]) == 0
    assert main([*flags, f"--dataset={after}"]) == 2
    assert "give --overwrite, or --update to keep what is unchanged" in capsys.readouterr().err
    assert main([*flags, f"--dataset={after}", "--update"]) == 0
    assert "2 new, 1 changed, 8 kept, 1 dropped\n11 embeddings of 48 numbers" in capsys.readouterr().out
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["dtype"] == "float16"
    for more, said in (
        (["--pool_by=product"], "say how they become one, --pool=mean"),
        (["--pool_by=product", "--pool=each"], "leave --pool_by out"),
        (["--update", "--overwrite"], "give one of them"),
        (["--pool=mean", "--pool_by=colour", "--overwrite"], "no attribute 'colour'; it has product"),
    ):
        assert main([*flags, f"--dataset={after}", *more]) == 2
        assert said in capsys.readouterr().err
    assert len(open_split(after, "test")) == 11
