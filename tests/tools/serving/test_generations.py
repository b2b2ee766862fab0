"""Which generation answers, and that a change is seen whole."""

import json
import shutil
import threading

import numpy as np
import pytest

from eval.search import build_index
from eval.search.selection import Selection
from eval.search.updates import deleted, upserted
from siglip_jax.errors import UserError
from tools.serving import served
from tools.serving.generations import Generations
from tools.serving.served import GenerationSource, ServedItems


def test_a_new_generation_is_taken_up_and_rolled_back(tmp_path, save_index):
    first = save_index(tmp_path / "index", 0)
    generations = Generations(GenerationSource("index", tmp_path / "index"))
    generations.poll()
    assert generations.standing.previous is None
    second = save_index(tmp_path / "index", 1)
    generations.poll()
    assert generations.standing.active.name == second.generation != first.generation
    assert generations.standing.previous.name == first.generation
    generations.rollback()
    assert generations.standing.active.name == first.generation
    generations.poll()  # what was left is not taken up again by itself
    assert generations.standing.active.name == first.generation
    generations.rollback()
    assert generations.standing.active.name == second.generation
    generations.rollback()
    generations.reload()  # asked for, it is
    assert generations.standing.active.name == second.generation


def flip(folder):
    (vectors,) = folder.glob("vectors*.npy")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder, save: flip(folder), "not what was written"),
        (lambda folder, save: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder, save: (folder / "manifest.json").write_text("{"), "not of format"),
        (lambda folder, save: save(folder, 2, encoder="pixels:4x1"), "is not what made the vectors"),
    ],
)
def test_a_broken_generation_is_told_and_the_older_one_goes_on(tmp_path, save_index, break_it, said):
    first = save_index(tmp_path / "index", 0)
    generations = Generations(GenerationSource("index", tmp_path / "index", model="pixels:2x2"))
    save_index(tmp_path / "index", 1)
    break_it(tmp_path / "index", save_index)
    generations.poll()
    assert generations.standing.active.name == first.generation
    assert said in generations.broken["index"]
    with pytest.raises(UserError, match=said):
        generations.reload()
    generations.broken.clear()
    generations.poll()  # tried once: it did not change
    assert generations.broken == {}
    shutil.rmtree(tmp_path / "index")
    third = save_index(tmp_path / "index", 3)
    generations.poll()
    assert (generations.standing.active.name, generations.broken) == (third.generation, {})


def test_another_folder_takes_the_place(tmp_path, save_index):
    first, other = save_index(tmp_path / "a", 0), save_index(tmp_path / "b", 1)
    generations = Generations(GenerationSource("index", tmp_path / "a"))
    for wrong in ("none", "../a", "/etc", "", ".."):
        with pytest.raises(UserError):
            generations.reload(folder=wrong)
        assert (generations.standing.active.name, generations.broken) == (first.generation, {})
    generations.reload(folder="b")
    assert generations.standing.active.name == other.generation
    newer = save_index(tmp_path / "b", 2)
    save_index(tmp_path / "a", 3)
    generations.poll()  # of the folder that is served now
    assert generations.standing.active.name == newer.generation


def test_the_candidate_takes_over_and_gives_back(tmp_path, save_index):
    first, other = save_index(tmp_path / "a", 0), save_index(tmp_path / "b", 1, dimension=6, encoder="pixels:2x1")
    generations = Generations(
        GenerationSource("index", tmp_path / "a", model="pixels:2x2"),
        GenerationSource("candidate", tmp_path / "b", model="pixels:2x1"),
    )

    def names():
        standing = generations.standing
        return standing.active.name, standing.candidate.name

    assert names() == (first.generation, other.generation)
    generations.switch()
    assert names() == (other.generation, first.generation)
    newer = save_index(tmp_path / "a", 2)
    generations.poll()  # a source is taken up wherever it stands
    assert names() == (other.generation, newer.generation)
    generations.rollback()
    assert names() == (first.generation, other.generation)
    alone = Generations(GenerationSource("index", tmp_path / "a"))
    for change in (alone.switch, alone.rollback):
        with pytest.raises(UserError):
            change()


def test_titles_and_attributes_are_read_again(tmp_path, save_index, monkeypatch):
    """When the dataset was built again, with the same index, and not otherwise."""
    first, built, read = save_index(tmp_path / "index", 0), ["1"], []

    def known(dataset):
        read.append(built[0])
        return {"i1": (f"build {built[0]}", {"price": built[0]})}

    monkeypatch.setattr(served, "dataset_fingerprint", lambda dataset: f"fingerprint of {built[0]}")
    monkeypatch.setattr(served, "read_known", known)
    monkeypatch.setattr(served.Pictures, "open", lambda dataset: None)
    generations = Generations(GenerationSource("index", tmp_path / "index", items=ServedItems("data")))

    def found():
        answers = generations.standing.active.answers
        return [each["title"] for each in answers.of_item("i0", Selection(where={"price": [built[0]]}))["items"]]

    assert found() == ["build 1"]
    index = generations.standing.active.answers.index
    built[0] = "2"
    generations.poll()
    assert found() == ["build 2"]
    save_index(tmp_path / "index", 1)
    generations.poll()
    assert read == ["1", "2"]
    assert generations.standing.previous.answers.index is index  # only titles were read again
    assert index.generation == first.generation != generations.standing.active.name


def test_readers_see_one_generation_or_the_other(tmp_path, save_index):
    """Answers of threads that ask while it is swapped are those of the generation that they name, to the bit."""
    made = [save_index(tmp_path / f"made {seed}", seed) for seed in (0, 1)]
    save_index(tmp_path / "index", 0)
    generations = Generations(GenerationSource("index", tmp_path / "index"))
    expected = {each.generation: each.search(each.vectors_of(["i3"]), k=5).ids[0][1:] for each in made}
    found, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            found.append(generations.standing.active.answers.of_item("i3"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for each in threads:
        each.start()
    for swap in range(6):
        save_index(tmp_path / "index", (swap + 1) % 2)
        generations.poll()
        for _ in range(200):
            if found and found[-1]["generation"] == made[(swap + 1) % 2].generation:
                break
            threading.Event().wait(0.01)
    stop.set()
    for each in threads:
        each.join()
    assert {each["generation"] for each in found} == set(expected)
    for each in found:
        assert [item["id"] for item in each["items"][:4]] == expected[each["generation"]]
    assert json.dumps(found[0])
    assert np.isfinite([item["score"] for each in found for item in each["items"]]).all()


def test_changes_of_an_index_are_taken_up(tmp_path, save_index):
    """Deletes and new items beside the built ones, to filters and groups as well."""
    index = save_index(tmp_path / "index", 0)
    known = {f"i{row}": ("", {"odd": str(row % 2), "pair": str(row // 2)}) for row in range(40)}
    source = GenerationSource("index", tmp_path / "index")
    source._items.read = lambda: (known, None)
    generations = Generations(source)
    gone = [f"i{row}" for row in range(0, 20, 3)]
    new = np.random.default_rng(9).normal(size=(5, index.dimension))
    changed = upserted(deleted(index, gone).index, new, [f"i{row}" for row in range(30, 35)]).index
    changed.save(tmp_path / "index")
    generations.poll()
    answers = generations.standing.active.answers
    assert (len(answers.index), generations.broken) == (30 - len(gone) + 5, {})
    for selection in (Selection(k=40), Selection(k=40, where={"odd": ["1"]}), Selection(k=40, group_by="pair")):
        items = [each["id"] for each in answers.of_item("i32", selection)["items"]]
        live = [item for item in answers.index.ids if item != "i32"]
        if selection.where:
            live = [item for item in live if known[item][1]["odd"] == "1"]
        if selection.group_by:
            assert {known[item][1]["pair"] for item in items} == {known[item][1]["pair"] for item in live} - {"16"}
        else:
            assert sorted(items) == sorted(live)
    deleted(changed, list(changed.ids)).index.save(tmp_path / "index")
    generations.poll()
    empty = generations.standing.active.answers
    assert len(empty.index) == 0
    assert empty.of_vector(new[:1])["items"] == []


def test_an_index_that_finds_too_little_is_refused(tmp_path, save_index):
    first = save_index(tmp_path / "index", 0)
    generations = Generations(GenerationSource("index", tmp_path / "index"))
    weak = build_index(np.eye(12, dtype=np.float32), [f"i{row}" for row in range(12)])
    weak.measured = {"recall": 0.5, "k": 10, "queries": 12, "seed": 0, "target": 0.98}
    weak.save(tmp_path / "index")
    generations.poll()
    assert generations.standing.active.name == first.generation
    assert "finds 0.5000" in generations.broken["index"]
    asked = GenerationSource("index", tmp_path / "index", allow_low_recall=True)
    assert Generations(asked).standing.active.name == weak.generation
