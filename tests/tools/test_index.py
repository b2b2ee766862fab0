"""siglip-jax index: changes of an index by command, held against exact search in float64 over what should be there."""

import json
import re

import numpy as np
import pytest

from eval.embeddings.store import write_manifest, write_shard
from eval.search import load_index
from eval.search.index_folder import lock_index
from siglip_jax import cli

ENCODER = {"model": {"name": "m", "image_tower_sha256": "5" * 64}, "preprocessing": {"resize": "bilinear"}}
VECTORS = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
IDS = [f"item-{i}" for i in range(60)]


def write(folder, items, *, skipped=(), encoder=ENCODER):
    """A store of {id: vector}."""
    folder.mkdir()
    shard = write_shard(folder, 0, list(items), np.stack(list(items.values())))
    write_manifest(folder, [shard], manifest=encoder, skipped=skipped)
    return f"{folder}"


def items(rows):
    return {IDS[row]: VECTORS[row] for row in rows}


@pytest.fixture
def index(tmp_path, capsys):
    """index(*flags) -> (exit code, output, error) of the program on one index of items 0 to 39."""
    first = write(tmp_path / "first", items(range(40)), skipped=[{"row": 40, "id": "item-40", "reason": "no image"}])

    def run(*flags):
        code = cli.main(["index", *flags, f"--output={tmp_path / 'index'}"])
        return code, *capsys.readouterr()

    assert run(f"--store={first}")[0] == 0
    return run


def check(folder, expected):
    """The items of {id: vector} are there, and neighbours are theirs."""
    found = load_index(folder)
    unit = np.stack([expected[item] for item in found.ids]).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert sorted(found.ids) == sorted(expected)
    got = found.search(VECTORS[:5], k=4)
    cosines = VECTORS[:5].astype(np.float64) / np.linalg.norm(VECTORS[:5].astype(np.float64), axis=1)[:, None] @ unit.T
    np.testing.assert_allclose(got.scores, -np.sort(-cosines, axis=1)[:, :4], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, got.rows, axis=1), got.scores, atol=1e-6)
    assert found.encoder == ENCODER
    return found


def test_items_come_and_go(index, tmp_path, capsys):
    changed = {**items(range(3, 42)), "item-5": VECTORS[50]}
    update = write(tmp_path / "update", changed, skipped=[{"row": 9, "id": "gone", "reason": "no image"}])
    code, out, _ = index(f"--update={update}", "--compact_at=1")
    assert code == 0
    assert out.startswith("2 new, 1 changed, 36 equal, 3 kept that the store does not have\n42 items (3 beside")
    live = {**items(range(42)), "item-5": VECTORS[50]}
    found = check(tmp_path / "index", live)
    assert [each["id"] for each in found.missing] == ["gone"]  # item 40 is there now
    assert found.generation in out

    code, out, _ = index(f"--update={update}", "--compact_at=1")  # once more
    assert code == 0
    assert out.startswith("0 new, 0 changed, 39 equal, 3 kept")
    assert out.endswith(f"\nnothing to change: 42 items, generation {found.generation}, in {tmp_path / 'index'}\n")

    (tmp_path / "ids.txt").write_bytes("\ufeffitem-7\r\n\nitem-41\nnever\nitem-7\ngone".encode())
    code, out, _ = index(f"--delete={tmp_path / 'ids.txt'}", "--compact_at=1")
    assert code == 0
    assert out.startswith("2 deleted\n1 missing before, as not readable: 'gone'\n1 unknown to the index: 'never'\n")
    live = {item: vector for item, vector in live.items() if item not in ("item-7", "item-41")}
    assert check(tmp_path / "index", live).missing == []
    assert cli.main(["search", f"--index={tmp_path / 'index'}", "--item=item-40", "--k=2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 2

    code, out, _ = index("--health")
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert (rows["items"], rows["base"], rows["delta"], rows["dead"]) == (
        "40", "40, exact", "2 beside the base", "2 of the base",
    )  # fmt: skip
    assert rows["recall@10"] == "1.0000 when built, 1.0000 now over 40 of the items (+0.0000)"
    assert rows["changed"] == "5.0% of the items; compacted above 10.0%"
    assert rows["encoder"] == "m, image_tower_sha256 5555555555555555"
    assert rows["to do"] == "nothing"
    _, out, _ = index("--health", "--compact_at=0.01")
    assert "more than 1% of the items came or went since the base was built: --compact" in out

    code, out, _ = index("--compact")
    assert code == 0
    assert out.startswith("compacted, since 5.0% of the items had come or gone, recall@10 1.0000\n40 items, generation")
    check(tmp_path / "index", live)
    assert len(list((tmp_path / "index").iterdir())) == 3
    assert index("--compact")[1].startswith("nothing to change: 40 items")


def test_a_rebuild_says_where_it_misses_its_target(index, tmp_path):
    found = load_index(tmp_path / "index")
    found.measured["target"] = 1.5  # which nothing reaches
    found.save(tmp_path / "index")
    update = write(tmp_path / "update", items(range(50)))
    _, out, _ = index(f"--update={update}")
    assert "recall@10 1.0000, less than its target of 1.5: build it again with --store\n50 items" in out


def test_many_changes_are_compacted_and_a_store_may_be_all_there_is(index, tmp_path):
    whole = write(tmp_path / "whole", items(range(20, 60)), skipped=[{"row": 0, "id": "item-0", "reason": "no image"}])
    code, out, _ = index(f"--update={whole}", "--prune")
    assert code == 0
    assert out.startswith(
        "20 new, 0 changed, 20 equal, 20 taken out that the store does not have\ncompacted, since 50.0% of the items"
    )
    assert [each["id"] for each in check(tmp_path / "index", items(range(20, 60))).missing] == ["item-0"]


def test_an_index_of_which_nothing_is_left(index, tmp_path):
    (tmp_path / "ids.txt").write_text("\n".join(IDS[:40]))
    code, out, _ = index(f"--delete={tmp_path / 'ids.txt'}")
    assert code == 0
    assert "0 items (0 beside the base, 40 of it dead)" in out
    code, out, _ = index("--health")
    assert code == 0
    assert "every item is deleted" in out
    assert index("--compact")[0] == 0
    assert index(f"--update={tmp_path / 'first'}", "--compact_at=9")[0] == 0
    check(tmp_path / "index", items(range(40)))


def test_misuse_is_one_line_and_changes_nothing(index, tmp_path):
    other = write(tmp_path / "other", items(range(3)), encoder={**ENCODER, "model": {"name": "other"}})
    (tmp_path / "none.txt").write_text("never\nnor this\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    generation = load_index(tmp_path / "index").generation
    for flags, message in (
        ([], "0 of --store, --update, --delete, --compact, --health given; expected exactly one"),
        (["--health", "--compact"], "2 of --store"),
        (["--health", "--prune"], "--prune has no effect with --health; leave it out, or give --update"),
        (["--compact", "--mode=ah"], "--mode has no effect with --compact"),
        ([f"--store={tmp_path / 'first'}", "--compact_at=0.5"], "--compact_at has no effect with --store"),
        ([f"--update={other}"], "vectors of two encoders cannot be compared"),
        ([f"--update={tmp_path / 'nothing'}"], "no such folder"),
        ([f"--delete={tmp_path / 'nothing'}"], "no such file"),
        ([f"--delete={tmp_path / 'none.txt'}"], "none of its 2 ids is in the index, 'never', 'nor this'"),
        ([f"--delete={tmp_path / 'empty.txt'}"], "empty; expected one id a line"),
        ([f"--delete={tmp_path / 'bytes.txt'}"], "not UTF-8"),
    ):
        code, out, err = index(*flags)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
    with lock_index(tmp_path / "index"):
        code, _, err = index(f"--update={tmp_path / 'first'}")
    assert (code, "another program is changing it" in err) == (2, True)
    assert load_index(tmp_path / "index").generation == generation
    for job in ("--health", "--compact", f"--update={tmp_path / 'first'}"):
        assert cli.main(["index", job, f"--output={tmp_path / 'no index'}"]) == 2
    assert not (tmp_path / "no index").exists()


def test_pictures_come_and_go_with_their_items(tmp_path, capsys):
    encoder = ENCODER | {"pool": {"how": "each", "by": None}}
    rows = ["a", "a#2", "a#3", "b", "b#2", "c", "z#2"]  # "z#2" is an item: there is no z
    store = dict(zip(rows, VECTORS, strict=False))
    output = f"--output={tmp_path / 'index'}"
    assert cli.main(["index", f"--store={write(tmp_path / 'first', store, encoder=encoder)}", output]) == 0
    fewer = {row: store[row] for row in ("a", "a#2", "b", "b#2")}
    assert cli.main(["index", f"--update={write(tmp_path / 'second', fewer, encoder=encoder)}", output]) == 0
    assert "1 pictures taken out of items that no longer have them" in capsys.readouterr().out
    assert sorted(load_index(tmp_path / "index").ids) == ["a", "a#2", "b", "b#2", "c", "z#2"]
    (tmp_path / "sold.txt").write_text("a\nb#2\nz\n")
    assert cli.main(["index", f"--delete={tmp_path / 'sold.txt'}", output]) == 0
    said = capsys.readouterr().out
    assert "3 deleted" in said
    assert "1 unknown to the index: 'z'" in said
    assert sorted(load_index(tmp_path / "index").ids) == ["b", "c", "z#2"]
    code = cli.main(["index", f"--update={write(tmp_path / 'single', items(range(3)))}", output])
    assert code == 2
    assert "the index a row of each picture" in capsys.readouterr().err


def test_an_index_that_finds_too_little_is_told_when_it_is_built(tmp_path, capsys):
    store = write(tmp_path / "store", items(range(60)))
    flags = ["index", f"--store={store}", f"--output={tmp_path / 'index'}", "--backend=reduced"]
    for more, told in (("--reduce=truncate:1", True), ("--reduce=int8", False)):
        assert cli.main([*flags, more, "--candidates=1"]) == 0
        said = capsys.readouterr().out
        assert ("rank and serve refuse this index" in said) == told
        assert ("build it with --candidates above 1 or a wider --reduce" in said) == told
        code = cli.main(["search", f"--index={tmp_path / 'index'}", "--item=item-1"])
        assert (code == 2) == ("--candidates above 1" in capsys.readouterr().err) == told


def test_pooled_and_single_vectors_do_not_mix(index, tmp_path):
    pooled = write(tmp_path / "pooled", items(range(5)), encoder={**ENCODER, "pool": {"how": "mean", "by": "product"}})
    code, _, said = index(f"--update={pooled}")
    assert code == 2
    assert "has vectors pooled by product, the index a vector of each item" in said
