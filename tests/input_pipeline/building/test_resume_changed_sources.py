"""A build that goes on after its source was changed ends in the bytes of a new one, and checks no more than it must."""

import io
import os
import pathlib
import random
import shutil
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest

from input_pipeline.building import build_dataset, stage
from input_pipeline.catalogue import read_catalogue
from siglip_jax.errors import UserError

ROWS, PART = 60, 8


def picture(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "BMP")  # all of one size
    return file.getvalue()


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["id\ttitle\timage\tcolour"]
    for k in range(ROWS):
        (folder / f"{k}.png").write_bytes(picture(k))
        lines.append(f"i{k}\ttitle {k % 50}\t{k if k != 21 else 'none'}.png\t{'red' if k % 2 else 'blue'}")
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    return folder


def edit(shop, change):
    path = shop / "items.tsv"
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


class Checked:
    """Small parts, and the rows that were checked; stops at one of them."""

    def __init__(self, monkeypatch):
        self.rows, self.stop, self.error = [], None, KeyboardInterrupt
        original = stage.check_item

        def check_item(catalogue, item, **options):
            if item.row == self.stop:
                raise self.error
            self.rows.append(item.row)
            return original(catalogue, item, **options)

        monkeypatch.setattr(stage, "check_item", check_item)
        monkeypatch.setattr(stage, "PART_ROWS", PART)
        monkeypatch.setattr(stage, "TASK_ROWS", 4)

    def build(self, source, out, *, stop=None, error=KeyboardInterrupt, **options):
        self.rows, self.stop, self.error = [], stop, error
        build_dataset(read_catalogue(source), out, max_left_out=1, progress=False, **options)
        return sorted(self.rows)


@pytest.fixture
def checked(monkeypatch):
    return Checked(monkeypatch)


def files_of(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def check_equal_to_a_new_build(checked, source, out, **options):
    fresh = out.with_name("fresh")
    checked.build(source, fresh, **options)
    assert files_of(out) == files_of(fresh)
    assert not out.with_name("out.partial").exists()
    shutil.rmtree(fresh)


def part_rows(*parts):
    return [row for part in parts for row in range(PART * part, min(PART * part + PART, ROWS))]


def exchange(path, data):
    """Another content of the same size, as a shop's new photo may have; its time is another."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 1, before + 1))


def test_pictures_exchanged_after_a_stop_are_looked_at_again(shop, tmp_path, checked, capsys):
    with pytest.raises(KeyboardInterrupt):
        checked.build(shop, tmp_path / "out", stop=50)
    exchange(shop / "17.png", picture(1000))
    (shop / "41.png").unlink()
    assert checked.build(shop, tmp_path / "out") == part_rows(2, 5) + list(range(48, ROWS))
    assert "16 of the 48 rows checked before are near one that has changed" in capsys.readouterr().err
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def test_a_picture_that_could_not_be_read_is_tried_again(shop, tmp_path, checked):
    """A link out of the catalogue, then a copy of what it led to with its time: the stamp is the same."""
    outside = tmp_path / "outside.png"
    shutil.move(shop / "17.png", outside)
    (shop / "17.png").symlink_to(outside)
    with pytest.raises(KeyboardInterrupt):
        checked.build(shop, tmp_path / "out", stop=50)
    (shop / "17.png").unlink()
    shutil.copy2(outside, shop / "17.png")
    assert checked.build(shop, tmp_path / "out") == part_rows(2) + list(range(48, ROWS))
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def test_a_zip_copied_anew_after_damage(shop, tmp_path, checked):
    """Its directory, where sizes and sums are, is as before."""
    sound, source = tmp_path / "sound.zip", tmp_path / "shop.zip"
    with zipfile.ZipFile(sound, "w") as file:
        for path in sorted(shop.iterdir()):
            file.write(path, path.name)
    content = bytearray(sound.read_bytes())
    place = content.index(picture(33)[60:])
    content[place : place + 8] = bytes(8)
    source.write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        checked.build(source, tmp_path / "out", stop=50)
    shutil.copy(sound, source)
    assert checked.build(source, tmp_path / "out") == part_rows(4) + list(range(48, ROWS))
    check_equal_to_a_new_build(checked, source, tmp_path / "out")


def test_a_picture_that_was_missing_and_came(shop, tmp_path, checked):
    with pytest.raises(KeyboardInterrupt):
        checked.build(shop, tmp_path / "out", stop=50)
    (shop / "none.png").write_bytes(picture(7))
    assert checked.build(shop, tmp_path / "out") == part_rows(2) + list(range(48, ROWS))
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def test_pictures_named_by_ids(tmp_path, checked):
    shop = tmp_path / "shop"
    (shop / "images").mkdir(parents=True)
    (shop / "items.csv").write_text("id,title\n" + "".join(f"{k},title {k}\n" for k in range(ROWS)))
    for k in range(1, ROWS):
        (shop / "images" / f"{k}.png").write_bytes(picture(k))
    with pytest.raises(KeyboardInterrupt):
        checked.build(shop, tmp_path / "out", stop=50)
    (shop / "images" / "0.png").write_bytes(picture(0))
    (shop / "images" / "33.jpg").write_bytes(picture(2))  # which comes before 33.png
    assert checked.build(shop, tmp_path / "out") == part_rows(0, 4) + list(range(48, ROWS))
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def test_stopped_again_while_changed_parts_are_checked(shop, tmp_path, checked):
    with pytest.raises(KeyboardInterrupt):
        checked.build(shop, tmp_path / "out", stop=58)
    for row in (10, 20, 30, 36, 44):
        exchange(shop / f"{row}.png", picture(row + 500))
    with pytest.raises(KeyboardInterrupt):
        checked.build(shop, tmp_path / "out", stop=30)
    exchange(shop / "0.png", picture(900))
    assert checked.build(shop, tmp_path / "out") == part_rows(0, 3, 4, 5, 7)
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def test_changed_pictures_after_shards_were_written(shop, tmp_path, checked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "input_pipeline.building.dataset_builder.write_info", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            checked.build(shop, tmp_path / "out")
    exchange(shop / "3.png", picture(901))
    assert checked.build(shop, tmp_path / "out") == part_rows(0)
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def refused(checked, source, out, **options):
    with pytest.raises(UserError, match=r"1 missing image.*checked of 60 rows is kept in .*\.partial") as error:
        checked.build(source, out, on_error="error", **options)
    assert "\n" not in str(error.value)


def test_after_a_refusal_nothing_is_checked_again(shop, tmp_path, checked):
    refused(checked, shop, tmp_path / "out")
    assert checked.build(shop, tmp_path / "out", seed=3, fractions={"train": 0.5, "test": 0.5}) == []
    check_equal_to_a_new_build(checked, shop, tmp_path / "out", seed=3, fractions={"train": 0.5, "test": 0.5})
    refused(checked, shop, tmp_path / "again")
    assert checked.build(shop, tmp_path / "again") == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda lines: lines.__setitem__(22, "i21\ttitle 21\t21.png\tred"), part_rows(2)),
        (lambda lines: lines.__setitem__(60, "i59\tanother\t59.png\tred"), part_rows(7)),
        (lambda lines: lines.insert(31, "new\tnew\t1.png\tred"), list(range(24, ROWS + 1))),
        (lambda lines: lines.pop(31), list(range(24, ROWS - 1))),
        (lambda lines: lines.append("new\tnew\t1.png\tred"), [60]),
        (lambda lines: lines.__delitem__(slice(30, None)), list(range(24, 29))),
        (lambda lines: lines.__setitem__(0, "id\ttitle\timage\tcolor"), list(range(ROWS))),
    ],
    ids=["fixed", "last", "inserted", "removed", "appended", "cut", "renamed"],
)
def test_a_table_mended_after_a_refusal(shop, tmp_path, checked, change, again):
    refused(checked, shop, tmp_path / "out")
    edit(shop, change)
    assert checked.build(shop, tmp_path / "out") == again
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")


def test_rows_chosen_by_other_values_begin_anew(shop, tmp_path, checked, capsys):
    only = {"colour": ["red"]}
    with pytest.raises(UserError, match="1 missing image among 30 rows"):
        checked.build(shop, tmp_path / "out", on_error="error", only=only)
    edit(shop, lambda lines: lines.__setitem__(slice(9, 13), [line.replace("blue", "red") for line in lines[9:13]]))
    rows = checked.build(shop, tmp_path / "out", only=only)
    assert {8, 9, 10, 11} <= set(rows)
    assert 40 not in rows
    check_equal_to_a_new_build(checked, shop, tmp_path / "out", only=only)
    refused(checked, shop, tmp_path / "two")
    capsys.readouterr()
    assert len(checked.build(shop, tmp_path / "two", only=only)) == 32
    assert "only.colour was None, is ['red'], so that checking starts again" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(6))
def test_changes_at_random(shop, tmp_path, checked, seed):
    chance = random.Random(seed)
    only = {"colour": ["red"]} if seed % 2 else {}
    with pytest.raises(UserError):
        checked.build(shop, tmp_path / "out", on_error="error", only=only)
    for _ in range(3):
        for _ in range(chance.randrange(4)):
            row = chance.randrange(ROWS)
            if (shop / f"{row}.png").exists():
                exchange(shop / f"{row}.png", picture(chance.randrange(10**6)))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(1, 50)
            line = f"n{place}\tnew\t{place}.png\t{chance.choice(['red', 'blue'])}"
            how = chance.choice(
                [
                    lambda lines, place=place, line=line: lines.__setitem__(place, line),
                    lambda lines, place=place, line=line: lines.insert(place, line),
                    lambda lines, place=place: lines.pop(place),
                ]
            )
            edit(shop, how)
        with pytest.raises(UserError):  # fails again, or where no picture is missing, for want of rows
            checked.build(shop, tmp_path / "out", on_error="error", only=only, split_by=["title"],
                          fractions={"train": 1 - 1e-9, "test": 1e-9})  # fmt: skip
    checked.build(shop, tmp_path / "out", only=only)
    check_equal_to_a_new_build(checked, shop, tmp_path / "out", only=only)


def test_a_zip_packed_again(shop, tmp_path, checked):
    def pack():
        with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
            for path in sorted(shop.iterdir()):
                archive.write(path, path.name)

    pack()
    refused(checked, tmp_path / "shop.zip", tmp_path / "out")
    edit(shop, lambda lines: lines.__setitem__(22, "i21\ttitle 21\t21.png\tred"))
    (shop / "5.png").write_bytes(picture(1001))
    pack()
    assert checked.build(tmp_path / "shop.zip", tmp_path / "out") == part_rows(0, 2)
    check_equal_to_a_new_build(checked, tmp_path / "shop.zip", tmp_path / "out")


def test_a_tar_packed_again_is_read_again(tmp_path, checked, capsys):
    def pack(bad):
        with tarfile.open(tmp_path / "shop.tar", "w") as archive:
            for k in range(ROWS):
                for name, data in ((f"{k}.png", b"bad" if k == bad else picture(k)), (f"{k}.txt", b"title %d" % k)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

    pack(40)
    with pytest.raises(UserError, match=r"1 corrupt image among 60 rows.*is kept in"):
        checked.build(tmp_path / "shop.tar", tmp_path / "out", on_error="error")
    os.utime(tmp_path / "shop.tar", (1, 1))
    pack(None)
    assert checked.build(tmp_path / "shop.tar", tmp_path / "out", on_error="error") == list(range(ROWS))
    assert "so that checking starts again" in capsys.readouterr().err
    check_equal_to_a_new_build(checked, tmp_path / "shop.tar", tmp_path / "out")


def test_an_error_in_the_middle_keeps_what_was_checked(shop, tmp_path, checked):
    with pytest.raises(UserError, match=r"a bad disk; what was checked of 40 rows is kept in .*out\.partial"):
        checked.build(shop, tmp_path / "out", stop=45, error=UserError("a bad disk"))
    assert checked.build(shop, tmp_path / "out") == list(range(40, ROWS))
    check_equal_to_a_new_build(checked, shop, tmp_path / "out")
    with pytest.raises(UserError, match=r"a bad disk$"):
        checked.build(shop, tmp_path / "other", stop=5, error=UserError("a bad disk"))
    assert not (tmp_path / "other.partial").exists()


def test_damaged_work_is_given_up(shop, tmp_path, checked):
    refused(checked, shop, tmp_path / "out")
    path = tmp_path / "out.partial" / "part-00002.records"
    data = bytearray(path.read_bytes())
    place = data.index(picture(17)[60:])
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"part-00002\.records: damaged"):
        checked.build(shop, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    assert checked.build(shop, tmp_path / "out") == list(range(ROWS))
