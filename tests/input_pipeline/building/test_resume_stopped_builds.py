"""A build that is killed anywhere and started again ends in the bytes of an unbroken one."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import dataset_fingerprint
from siglip_jax.errors import UserError

ROWS = 60
SMALL_PARTS = """
from input_pipeline.building import records

from input_pipeline.building import stage as staging
staging.PART_ROWS, records.SHARD_BYTES = 8, 6000
"""
# Forks before any thread runs; a child counts what Python calls in its main thread and kills itself at one of them.
KILLED = (
    SMALL_PARTS
    + """
import os, random, shutil, signal, sys
from input_pipeline.catalogue import read_catalogue
from input_pipeline.building import build_dataset
import scipy.sparse.csgraph, input_pipeline.duplicates.near_images

shop, folder, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
report, finish = os.pipe()

def build(out, overwrite=False):
    build_dataset(read_catalogue(shop), out, max_left_out=1, progress=False, overwrite=overwrite, num_threads=2)

def child(out, overwrite, at):
    pid = os.fork()
    if pid == 0:
        calls = 0
        def count(*_):
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(count)
        build(out, overwrite)
        sys.setprofile(None)
        os.write(finish, calls.to_bytes(8, "little"))
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert child(f"{folder}/whole", False, None) == 0
calls = int.from_bytes(os.read(report, 8), "little")
chance = random.Random(int(sys.argv[4]))
for number in range(kills):
    out = f"{folder}/{number}"
    overwrite = number % 2 == 1
    if overwrite:
        shutil.copytree(f"{folder}/whole", out)
    # Every second one near the end, where files are moved.
    at = [chance.randrange(1, calls) for _ in range(2)] if number % 4 < 2 else [int(calls * chance.uniform(0.9, 1))]
    for some in at:
        child(out, overwrite, some)
    last = child(out, overwrite, None)
    assert os.path.exists(f"{out}/audit.json"), (number, at, last)
    assert last == 0 or not overwrite, (number, at, last)
"""
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    lines = ["id,title,image,colour"]
    for k in range(ROWS):
        file = io.BytesIO()
        PIL.Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
        (folder / f"{k}.png").write_bytes(file.getvalue())
        lines.append(f"{k % 57},title {k % 50},{k if k % 13 else 'none'}.png,red")  # a few problems and duplicates
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def check_kills(shop, folder, kills, seed):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(shop), str(folder), str(kills), str(seed)], capture_output=True, text=True
    )
    # A build killed in the last moment, after everything was in place, may be told so when it is started again.
    told = [line for line in done.stderr.splitlines() if "Error" in line and "holds a dataset already" not in line]
    assert done.returncode == 0, done.stderr[-3000:]
    assert not told
    whole = files_of(folder / "whole")
    assert len(whole) > 8
    for number in range(kills):
        assert files_of(folder / str(number)) == whole
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not hidden


def test_killed_anywhere(shop, tmp_path):
    check_kills(shop, tmp_path, 6, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_anywhere_many_times(shop, tmp_path, seed):
    check_kills(shop, tmp_path, 60, seed)


def stop_at_row(monkeypatch, row, error=KeyboardInterrupt):
    from input_pipeline.building import stage

    def check_item(catalogue, item, **options):
        if item.row == row:
            raise error
        seen.append(item.row)
        return original(catalogue, item, **options)

    seen: list[int] = []
    original = stage.check_item
    monkeypatch.setattr(stage, "check_item", check_item)
    monkeypatch.setattr(stage, "PART_ROWS", 8)
    monkeypatch.setattr(stage, "TASK_ROWS", 4)
    return seen


def test_finished_rows_are_not_looked_at_again(shop, tmp_path, monkeypatch, capsys):
    stop_at_row(monkeypatch, 45)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False)
    assert "out.partial: 40 rows are done and kept; the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    seen = stop_at_row(monkeypatch, None)
    audit = build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False)
    assert sorted(seen) == list(range(40, ROWS))
    assert audit == build_dataset(read_catalogue(shop), tmp_path / "whole", max_left_out=1, progress=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "options.seed was 0, is 4"),
        ({"min_image_size": 3}, "options.min_image_size was 1, is 3"),
        ({"fractions": {"train": 0.5, "test": 0.5}}, "options.fractions.train was 0.8, is 0.5"),
        ({"only": {"colour": ["red"]}}, r"options.only.colour was None, is \['red'\]"),
        ({"table": True}, "source.sha256 was .*, is "),
    ],
)
def test_other_options_or_another_source_are_refused(shop, tmp_path, monkeypatch, change, message):
    import shutil

    source = tmp_path / "shop"
    shutil.copytree(shop, source)
    stop_at_row(monkeypatch, 20)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(read_catalogue(source), tmp_path / "out", max_left_out=1, progress=False)
    monkeypatch.undo()
    if change.pop("table", False):
        with open(source / "items.csv", "a") as file:
            file.write("new,new,1.png,red\n")
    with pytest.raises(UserError, match=rf"out\.partial: an unfinished build of another kind \({message}.*delete the"):
        build_dataset(read_catalogue(source), tmp_path / "out", max_left_out=1, progress=False, **change)
    assert (tmp_path / "out.partial/part-00001.parquet").exists()  # nothing is lost by it


def test_a_zip_with_another_picture_is_another_source(shop, tmp_path, monkeypatch):
    import zipfile

    def pack(picture):
        with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
            for path in sorted(shop.iterdir()):
                archive.writestr(path.name, picture if path.name == "59.png" else path.read_bytes())

    pack(b"one")
    stop_at_row(monkeypatch, 20)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(read_catalogue(tmp_path / "shop.zip"), tmp_path / "out", max_left_out=1, progress=False)
    pack(b"two")
    with pytest.raises(UserError, match=r"source\.zip_directory was"):
        build_dataset(read_catalogue(tmp_path / "shop.zip"), tmp_path / "out", max_left_out=1, progress=False)


def test_one_process_at_a_time(shop, tmp_path, monkeypatch):
    from input_pipeline.building import stage

    def check_item(*_, **__):
        with pytest.raises(UserError, match="another process builds this dataset"):
            build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "check_item", check_item)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False, num_threads=1)


def test_what_stands_at_the_place_meanwhile_is_not_deleted(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "input_pipeline.building.dataset_builder._replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False)
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part of a dataset"):
        build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False, overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    (tmp_path / "out/notes.txt").unlink()
    build_dataset(read_catalogue(shop), tmp_path / "out", max_left_out=1, progress=False)
    assert dataset_fingerprint(tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


SLOW = (
    SMALL_PARTS
    + """
import sys, time
from siglip_jax.cli import main
check = staging.check_item
def slow(*arguments, **options):
    time.sleep(0.02)
    return check(*arguments, **options)
staging.check_item = slow
sys.exit(main(["data", f"--catalog={sys.argv[1]}", f"--output={sys.argv[2]}"]))
"""
)


@pytest.mark.parametrize("after", ["part-00001.parquet", "plan.json"])
def test_sigterm(shop, tmp_path, after):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(shop), str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    waited = time.monotonic() + 60
    while not (tmp_path / "out.partial" / after).exists() and time.monotonic() < waited:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    lines = [line for line in told.splitlines() if "checking" not in line]
    assert lines[-1] == "siglip-jax data: stopped by SIGTERM"
    left = sorted(path.name for path in tmp_path.iterdir())
    if after == "plan.json" and not left:
        assert len(lines) == 1
    else:
        assert left == ["out.partial"]
        assert "rows are done and kept; the same command goes on from there" in lines[-2]
