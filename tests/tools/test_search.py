"""siglip-jax search, held against cosines in float64 of what the store and the model themselves give."""

import io
import json

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from eval.embeddings import read_store
from eval.search import load_index
from input_pipeline.dataset import open_split
from siglip_jax import cli


@pytest.fixture(scope="module")
def store(trained_workdir, shop_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "store"
    assert cli.main(["embed", f"--model={trained_workdir}", f"--dataset={shop_dataset}", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module", params=["exact", "scann"])
def index(request, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / request.param
    assert cli.main(["index", f"--store={store}", f"--backend={request.param}", f"--output={folder}"]) == 0
    return folder


@pytest.fixture
def search(capsys):
    def run(*flags):
        capsys.readouterr()
        code = cli.main(["search", *map(str, flags)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def nearest(vectors, query, k):
    """(rows, cosines) of the k best, in float64."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scores = unit @ (query.astype(np.float64) / np.linalg.norm(query.astype(np.float64)))
    rows = np.argsort(-scores, kind="stable")[:k]
    return rows, scores[rows]


def check(found, ids, vectors, query, *, k, without=None):
    items = found["items"]
    rows, scores = nearest(vectors, query, len(ids))
    expected = [score for row, score in zip(rows, scores, strict=True) if ids[row] != without][:k]
    np.testing.assert_allclose([item["score"] for item in items], expected, atol=2e-6)
    own = dict(zip(ids, vectors, strict=True))
    for item in items:  # equal scores may come in any order, so each item is asked for its own
        (score,) = nearest(own[item["id"]][None], query, 1)[1]
        assert item["score"] == pytest.approx(score, abs=2e-6)
    assert without not in [item["id"] for item in items]


def test_by_item(search, index, store, shop_dataset):
    held = read_store(store)
    item = held.ids[3]
    code, out, _ = search(f"--index={index}", f"--item={item}", "--k=4", "--json", f"--dataset={shop_dataset}")
    found = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    check(found, held.ids, held.vectors, held.vectors[3], k=4, without=item)
    assert found["query"] == {"item": item}
    assert found["generation"] == load_index(index).generation != ""
    rows = {row["id"]: row for row in open_split(shop_dataset, "test")[:]}
    for each in found["items"]:
        assert each["title"] == rows[each["id"]]["title"]
        assert each["attributes"] == rows[each["id"]]["attributes"]


def test_by_picture_and_by_text(search, index, store, trained_workdir, shop_dataset, tmp_path):
    held, model = read_store(store), siglip_jax.load(trained_workdir)
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(open_split(shop_dataset, "test")[5]["image"])
    flags = [f"--index={index}", f"--model={trained_workdir}", "--k=5", "--json"]
    for flag, query in (
        (f"--image={picture}", model.encode_image([picture.read_bytes()])[0]),
        ("--text=Red shirt", model.encode_text(["Red shirt"])[0]),
    ):
        code, out, _ = search(*flags, flag)
        assert code == 0
        check(json.loads(out), held.ids, held.vectors, query, k=5)


def test_the_table_has_the_same_items(search, index, shop_dataset, store):
    item = read_store(store).ids[0]
    flags = [f"--index={index}", f"--item={item}", "--k=3", f"--dataset={shop_dataset}"]
    found = json.loads(search(*flags, "--json")[1])["items"]
    lines = search(*flags)[1].splitlines()
    assert lines[0].split() == ["score", "id", "title", "attributes"]
    for place, (line, each) in enumerate(zip(lines[1:], found, strict=True), 1):
        assert line.split()[:3] == [str(place), f"{each['score']:.3f}", each["id"]]
        assert each["title"] in line
        assert all(f"{name}={value}" in line for name, value in each["attributes"].items())
    least = found[1]["score"] - 1e-4
    kept = json.loads(search(*flags, "--json", f"--min_score={least}")[1])["items"]
    assert kept == [each for each in found if each["score"] >= least]
    assert search(*flags, "--min_score=1.5")[1] == "no item found\n"


def test_filters(search, index, store, shop_dataset):
    held = read_store(store)
    rows = {row["id"]: row["attributes"] for row in open_split(shop_dataset, "test")[:]}
    colour = rows[held.ids[0]]["colour"]
    flags = [f"--index={index}", f"--item={held.ids[0]}", "--k=6", f"--dataset={shop_dataset}", "--json"]
    found = json.loads(search(*flags, f"--where=colour={colour}")[1])
    kept = [row for row, item in enumerate(held.ids) if rows[item]["colour"] == colour]
    check(found, [held.ids[row] for row in kept], held.vectors[kept], held.vectors[0], k=6, without=held.ids[0])
    code, _, err = search(*flags, "--where=taste=sour")
    assert code == 2
    assert "no item has this attribute" in err
    grouped = json.loads(search(*flags, "--group_by=colour", "--diversity=0.5")[1])["items"]
    colours = [each["attributes"]["colour"] for each in grouped]
    assert len(set(colours)) == len(colours) == min(6, len({each["colour"] for each in rows.values()}) - 1)
    collapsed = json.loads(search(*flags, "--collapse=0.9")[1])
    assert collapsed["collapsed"] == sum(each["collapsed"] for each in collapsed["items"])
    table = search(*flags[:-1], "--collapse=0.9")[1]
    assert ("near-duplicates of these left out" in table) == bool(collapsed["collapsed"])


def test_networks_search_by_picture_alone(search, shop_dataset, tmp_path):
    assert cli.main(["embed", "--model=pixels:4x4", f"--dataset={shop_dataset}", f"--output={tmp_path / 'store'}"]) == 0
    assert cli.main(["index", f"--store={tmp_path / 'store'}", f"--output={tmp_path / 'index'}"]) == 0
    row = open_split(shop_dataset, "test")[2]
    (tmp_path / "photo").write_bytes(row["image"])
    flags = [f"--index={tmp_path / 'index'}", "--model=pixels:4x4", "--json"]
    (first, *_) = json.loads(search(*flags, f"--image={tmp_path / 'photo'}")[1])["items"]
    assert first["score"] == pytest.approx(1, abs=1e-6)
    code, _, err = search(*flags, "--text=red")
    assert code == 2
    assert "encodes images only" in err


def test_control_characters_of_a_title_do_not_reach_the_terminal():
    from tools.search import _table

    item = {"id": "a", "score": 1.0, "title": "red\x1b[2Jshirt\nand more", "attributes": {}}
    assert _table({"items": [item]}).splitlines()[1].split() == ["1", "1.000", "a", "red", "[2Jshirt", "and", "more"]


@pytest.mark.parametrize("index", ["exact"], indirect=True)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "0 of --item, --image, --text given; expected exactly one"),
        (["--item=1", "--text=a"], "2 of --item"),
        (["--item=nothing like it"], "item 'nothing like it' is not in the index"),
        (["--text=red"], "--text needs --model"),
        (["--text= ", "--model={model}"], "the text is empty"),
        (["--text=red", "--model=pixels:4x4"], "is not what made the vectors of the index"),
        (["--item=1", "--where=colour=red"], "--where needs --dataset"),
        (["--item=1", "--group_by=colour"], "--group_by needs --dataset"),
        (["--item=1", "--collapse=2"], "collapse=2.0: expected a cosine"),
        (["--item=1", "--diversity=2"], "diversity=2.0: expected 0"),
        (["--item=1", "--where=colour"], "expected attribute=value"),
        (["--image=none.jpg", "--model={model}"], "no such file"),
        (["--image={text}", "--model={model}"], "not a readable picture"),
        (["--image={bomb}", "--model={model}"], "pixels"),
        (["--image={photo}", "--model=pixels:4x4"], "is not what made the vectors of the index"),
        (["--item=1", "--k=0"], "k"),
    ],
)
def test_bad_input_is_one_line(search, index, trained_workdir, tmp_path, flags, message):
    files = {name: tmp_path / name for name in ("text", "bomb", "photo")}
    files["text"].write_text("hello")
    PIL.Image.new("L", (9000, 9000)).save(files["bomb"], "PNG")
    PIL.Image.new("RGB", (20, 20)).save(files["photo"], "PNG")
    code, out, err = search(f"--index={index}", *(flag.format(model=trained_workdir, **files) for flag in flags))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_index_knows_its_encoder(index, store, search, tmp_path, trained_workdir):
    """Vectors that came as a file are of no model here, and a start with other parameters is another encoder."""
    made_by = read_store(store).manifest["model"]
    assert load_index(index).encoder["model"] == made_by
    other = tmp_path / "other"
    model = siglip_jax.load(trained_workdir)
    params = {
        **model.params,
        "img": {
            **model.params["img"],
            "embedding": {name: value * 1.001 for name, value in model.params["img"]["embedding"].items()},
        },
    }
    model.replace(params=params).save(other)
    picture = io.BytesIO()
    PIL.Image.new("RGB", (20, 20)).save(picture, "PNG")
    (tmp_path / "photo.png").write_bytes(picture.getvalue())
    code, _, err = search(f"--index={index}", f"--model={other}", f"--image={tmp_path / 'photo.png'}")
    assert code == 2
    assert "is not what made the vectors" in err
