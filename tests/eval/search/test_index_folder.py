"""A folder holds one whole index at every moment: writers that die anywhere, damage, several writers, many readers."""

import hashlib
import io
import json
import threading

import numpy as np
import pytest

from eval.search import build_index, load_index
from eval.search.index_folder import bytes_of, lock_index, read_generation
from eval.search.updates import compacted, deleted, upserted
from siglip_jax.errors import UserError


def vectors(n, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def names(n):
    return [f"item-{i}" for i in range(n)]


def write_format_1(folder, n=5):
    """As the version before wrote it, by hand."""
    unit = vectors(n) / np.linalg.norm(vectors(n), axis=1, keepdims=True)
    sink = io.BytesIO()
    np.save(sink, unit)
    contents = {"ids.json": json.dumps(names(n)).encode(), "vectors.npy": sink.getvalue()}
    manifest = {
        "format": "siglip-jax index 1",
        "library_version": "0.1.0",
        "backend": "exact",
        "count": n,
        "dimension": 4,
        "options": {},
        "measured": {},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))


KILLED = """
import json, os, pathlib, shutil, signal, sys
import numpy as np
from eval.search import build_index, index_folder, load_index
from eval.search.updates import compacted, deleted, upserted

folder, templates = (pathlib.Path(path) for path in sys.argv[1:3])
x = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)


def build(folder):
    build_index(x, [f"new-{i}" for i in range(9)]).save(folder)


def update(folder):
    found = upserted(load_index(folder), x[:3], ["item-0", "new-1", "new-2"])
    deleted(found.index, ["item-4"]).index.save(folder)


def compact(folder):
    compacted(load_index(folder)).save(folder)


class Halves:  # a file that is written in two steps
    def __init__(self, *arguments):
        self.file = io_open(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        step()
        self.file.write(content[len(content) // 2 :])


def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)


def hook(event, arguments):
    writes = event == "open" and (set(str(arguments[1])) & set("wax+"))
    if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
        step()


def killed_at(number, change):
    global left
    child = os.fork()
    if not child:
        left = number
        index_folder.open = Halves
        sys.addaudithook(hook)
        change(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


def read():
    try:
        index = load_index(folder)
    except ValueError:
        return None
    return [index.generation, index.ids]


def fresh():
    shutil.rmtree(folder, ignore_errors=True)
    if template.exists():
        shutil.copytree(template, folder)


io_open, result = open, {}
for name, change in (
    ("none", build), ("format_1", build), ("format_1", update), ("plain", build), ("plain", update), ("live", compact),
    ("live", update), ("live", build),
):
    template = templates / name
    fresh()
    old = read()
    change(folder)
    new, number, found = read(), 0, []
    while True:
        fresh()
        if not killed_at(number, change):
            break
        found.append(read())
        change(folder)
        assert read() == new
        files = index_folder.read_manifest(folder)["files"]
        kept = {index_folder._stored_name(*each) for each in files.items()} | {"manifest.json"}
        leftover = {path.name for path in folder.iterdir()} - kept
        assert not leftover - {"ids.json", "vectors.npy"}, leftover
        number += 1
    result[f"{name} {change.__name__}"] = [old, new, found]
print(json.dumps(result))
"""


def test_whoever_is_killed_anywhere_leaves_the_old_index_or_the_new_one(tmp_path, python):
    write_format_1(tmp_path / "templates" / "format_1")
    index = build_index(vectors(5), names(5))
    index.save(tmp_path / "templates" / "plain")
    upserted(index, vectors(3, seed=2), ["item-0", "a", "b"]).index.save(tmp_path / "templates" / "live")
    run = python(KILLED, tmp_path / "index", tmp_path / "templates")
    assert run.returncode == 0, run.stderr
    for name, (old, new, found) in json.loads(run.stdout).items():
        assert old != new, name
        assert len(found) >= 8, name
        # Killed after the rename there is the new one, and before it the old; where no file is in the way any more,
        # the rename is the last step.
        renamed = found.index(new) if name != "plain update" else len(found)
        assert found == [old] * renamed + [new] * (len(found) - renamed), name


def test_any_flipped_bit_is_an_error(tmp_path):
    index = build_index(vectors(4), names(4))
    index.encoder, index.missing = {"model": {"name": "m"}}, [{"row": 9, "id": "", "reason": "no image"}]
    index = upserted(index, vectors(1, seed=3), ["item-1"]).index
    index.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    load_index(tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        for place in range(len(content)):
            bit = 1 << place % 8
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            with pytest.raises(UserError):
                load_index(tmp_path)
        path.write_bytes(content)
    load_index(tmp_path)


def test_a_save_writes_a_damaged_file_again(tmp_path):
    index = build_index(vectors(4), names(4))
    index.save(tmp_path)
    next(tmp_path.glob("vectors-*.npy")).write_bytes(b"")
    index.save(tmp_path)
    assert load_index(tmp_path).ids == names(4)


def test_a_change_writes_no_file_that_is_there(tmp_path):
    build_index(vectors(50), names(50)).save(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    live = deleted(load_index(tmp_path), ["item-3"]).index
    live.base._files = None  # is not asked for
    live.save(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert all(after[name] == time for name, time in before.items() if name != "manifest.json")
    assert bytes_of(tmp_path) == sum(p.stat().st_size for p in tmp_path.iterdir() if p.name != "manifest.json")
    compacted(live).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_moved_index_and_one_of_the_format_before(tmp_path):
    write_format_1(tmp_path / "old")
    old = load_index(tmp_path / "old")
    assert read_generation(tmp_path / "old") == old.generation
    assert old.search(vectors(5), k=1).rows[:, 0].tolist() == list(range(5))
    upserted(old, vectors(1, seed=5), ["more"]).index.save(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "moved")
    moved = load_index(tmp_path / "moved")
    assert moved.ids == [*names(5), "more"]
    assert len(list((tmp_path / "moved").iterdir())) == 6  # the plain names are gone
    fresh = build_index(vectors(5), names(5))
    fresh.save(tmp_path / "fresh")
    assert fresh.search(vectors(5), k=3).scores == pytest.approx(old.search(vectors(5), k=3).scores, abs=1e-6)


def test_the_second_writer_is_refused(tmp_path):
    index = build_index(vectors(3), names(3))
    index.save(tmp_path)
    with lock_index(tmp_path):
        with pytest.raises(UserError, match="another program is changing it") as error:
            deleted(index, ["item-0"]).index.save(tmp_path)
        assert "\n" not in str(error.value)
        assert len(load_index(tmp_path)) == 3  # readers need no lock
        index.save(tmp_path, locked=True)
    deleted(index, ["item-0"]).index.save(tmp_path)
    assert len(load_index(tmp_path)) == 2


def test_a_reader_finds_a_whole_index_while_it_is_replaced(tmp_path):
    index = build_index(vectors(15), names(15))
    saved = [deleted(index, [f"item-{i}"]).index for i in range(15)]
    saved[0].save(tmp_path)
    done, found, errors = threading.Event(), [], []

    def read():
        try:
            while not done.is_set():
                found.append(load_index(tmp_path))
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for each in saved * 2:
        each.save(tmp_path)
    done.set()
    reader.join()
    assert errors == []
    assert found
    ids = {each.generation: each.ids for each in saved}
    assert all(each.ids == ids[each.generation] for each in found)


def test_foreign_files_in_the_folder_of_an_index_stay(tmp_path):
    build_index(vectors(3), names(3)).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    build_index(vectors(2), names(2)).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_is_not_an_index_s_stays(tmp_path):
    index = build_index(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    index.save(tmp_path)
    (tmp_path / "notes-0123456789abcdef.json").write_text("mine")
    (tmp_path / "ids-0123456789abcdef.json").mkdir()
    build_index(np.eye(3, dtype=np.float32), ["a", "b", "d"]).save(tmp_path)
    assert (tmp_path / "notes-0123456789abcdef.json").read_text() == "mine"
    assert (tmp_path / "ids-0123456789abcdef.json").is_dir()
    assert load_index(tmp_path).ids == ["a", "b", "d"]


NONSENSE = {
    "a number": ("ids.json", b"5"),
    "numbers": ("ids.json", b"[1, 2, 3]"),
    "one twice": ("ids.json", b'["a", "a", "b"]'),
    "no UTF-8": ("ids.json", b"\xff"),
    "cut off": ("ids.json", b"["),
    "half a header": ("vectors.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', "),
    "a backend of another type": ("manifest.json", {"measured": None, "backend": 5}),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_sealed_nonsense_is_one_line(case, tmp_path):
    """Of format 1, which has no seal of its manifest: whoever wrote it, sums are right."""
    name, content = NONSENSE[case]
    vectors = io.BytesIO()
    np.save(vectors, np.eye(3, dtype=np.float32))
    files = {"ids.json": b'["a", "b", "c"]', "vectors.npy": vectors.getvalue()}
    manifest = {
        "format": "siglip-jax index 1",
        "backend": "exact",
        "count": 3,
        "dimension": 3,
        "options": {},
        "measured": {},
    }
    if isinstance(content, dict):
        manifest |= content
    else:
        files[name] = content
    manifest["files"] = {each: hashlib.sha256(x).hexdigest() for each, x in files.items()}
    for each, x in files.items():
        (tmp_path / each).write_bytes(x)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"search index {tmp_path}: "):
        load_index(tmp_path)


def test_half_a_character_is_no_id():
    with pytest.raises(UserError, match="half a character"):
        build_index(np.eye(2, dtype=np.float32), ["a", "\ud800"])
