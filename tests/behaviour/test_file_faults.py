"""What files from strangers may hold: one clear error or a counted row, and nothing gets out or blows up."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue, tar_samples
from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError


def picture(seed=0, kind="PNG", size=(9, 8)):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_bomb():
    """60,000 x 60,000 black pixels in a few megabytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def make(folder, pictures, *, titles=None, suffix="tsv"):
    """A catalogue with a row for each picture, named by it, and one more that is fine."""
    folder.mkdir(exist_ok=True)
    (folder / "fine.png").write_bytes(picture(99))
    lines = ["id\ttitle\timage", "0\tfine\tfine.png"]
    for k, (name, data) in enumerate(pictures.items(), 1):
        if data is not None:
            (folder / name).write_bytes(data)
        lines.append(f"{k}\ttitle {k}\t{name}")
    (folder / f"items.{suffix}").write_text("\n".join(lines) + "\n")
    return folder


def build(source, out, **options):
    options = {"fractions": {"all_": 1.0}, "max_left_out": 1, "progress": False} | options
    return build_dataset(read_catalogue(source), out, **options)


def problems(audit):
    return {row["id"]: row["kind"] for row in audit["problem_rows"]}


def zip_of(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_are_none(tmp_path, packed):
    page = b"<!DOCTYPE html><title>404</title>"
    faults = {"bomb.png": png_bomb(), "empty.jpg": b"", "page.jpg": page, "zeros.png": bytes(100)}
    good = {"png.jpg": picture(1), "jpeg.png": picture(2, "JPEG")}  # decoded by what they are
    folder = make(tmp_path / "shop", faults | good)
    audit = build(zip_of(folder) if packed else folder, tmp_path / "out")
    assert problems(audit) == {"1": "corrupt image", "2": "empty file", "3": "corrupt image", "4": "corrupt image"}
    details = [row["detail"] for row in audit["problem_rows"]]
    assert "limit" in details[0]
    assert details[2].endswith("it is an HTML page")
    formats = pq.read_table(tmp_path / "out/rows.parquet")["format"].to_pylist()
    assert formats == ["PNG", "", "", "", "", "PNG", "JPEG"]
    assert [row["id"] for row in open_split(tmp_path / "out", "all_")] == ["0", "5", "6"]


def test_a_zip_that_unpacks_to_more_than_it_says(tmp_path, monkeypatch):
    folder = make(tmp_path / "shop", {"big.png": bytes(5 * 10**6)})
    path = zip_of(folder)
    data = path.read_bytes()
    told, true = struct.pack("<I", 1000), struct.pack("<I", 5 * 10**6)
    assert data.count(true) >= 2
    path.write_bytes(data.replace(true, told))
    audit = build(path, tmp_path / "out")
    assert problems(audit) == {"1": "unreadable image"}


def test_zip_paths_and_links(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(7))
    path = tmp_path / "shop.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    names = ["fine.png", "../secret.png", str(tmp_path / "secret.png"), "link.png"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("items.csv", "id,title,image\n" + "".join(f"{k},t{k},{n}\n" for k, n in enumerate(names)))
        archive.writestr("fine.png", picture())
        archive.writestr("../secret.png", picture())
        archive.writestr(link, str(tmp_path / "secret.png"))
    audit = build(path, tmp_path / "out")
    assert problems(audit) == {"1": "unsafe path", "2": "unsafe path", "3": "unsafe path"}
    assert "is a symbolic link" in audit["problem_rows"][2]["detail"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"secret.png", "shop.zip", "out"}  # nothing was unpacked


def test_links_in_folders(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(7))
    folder = make(tmp_path / "shop", {"in.png": None, "out.png": None, "folder/x.png": None, "nowhere.png": None})
    (folder / "in.png").symlink_to("fine.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "nowhere.png").symlink_to(folder / "none")
    (tmp_path / "x.png").write_bytes(picture(8))
    audit = build(folder, tmp_path / "out")
    assert problems(audit) == {"2": "unsafe path", "3": "unsafe path", "4": "missing image"}


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_zip_cut_short(tmp_path, cut):
    path = zip_of(make(tmp_path / "shop", {f"{k}.png": picture(k) for k in range(9)}))
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(UserError, match=r"shop\.zip: cannot be opened as a zip"):
        build(path, tmp_path / "out")


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_titles_that_are_not_utf8(tmp_path, suffix):
    folder = make(tmp_path / "shop", {})
    (folder / "items.tsv").unlink()
    lines = {
        "tsv": [b"id\ttitle\timage", b"1\tcaf\xe9\tfine.png", "2\tcafé\tfine.png".encode(), b"3\ta\0b\tfine.png"],
        "csv": [b"id,title,image", b'1,"caf\xe9, b",fine.png', '2,"café",fine.png'.encode(), b"3,a\0b,fine.png"],
        "jsonl": [
            b'{"id": 1, "title": "caf\xe9", "image": "fine.png"}',
            '{"id": 2, "title": "café", "image": "fine.png"}'.encode(),
            b'{"id": 3, "title": "a\\u0000b", "image": "fine.png"}',
        ],
    }[suffix]
    (folder / f"items.{suffix}").write_bytes(b"\n".join(lines) + b"\n")
    audit = build(folder, tmp_path / "out")
    assert problems(audit) == {"1": "not UTF-8", "3": "NUL byte"}
    line = 1 if suffix == "jsonl" else 2
    assert audit["problem_rows"][0]["detail"] == (
        f"items.{suffix} line {line}: not UTF-8; save the table as UTF-8, or name its encoding, as in --encoding=cp1252"
    )
    assert open_split(tmp_path / "out", "all_")[0]["title"] == "café"
    titles = pq.read_table(tmp_path / "out/rows.parquet")["title"].to_pylist()
    assert titles[0].startswith("caf\ufffd")
    with pytest.raises(UserError, match="1 NUL byte, 1 not UTF-8 among 3 rows"):
        build(folder, tmp_path / "no", on_error="error")


def test_parquet_text_that_is_not_utf8(tmp_path):
    titles = pa.array([b"good", b"caf\xe9", None], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"id": ["1", "2", "3"], "title": titles, "image": [picture(k) for k in range(3)]})
    pq.write_table(table, tmp_path / "items.parquet")
    audit = build(tmp_path / "items.parquet", tmp_path / "out")
    assert problems(audit) == {"2": "not UTF-8", "3": "empty title"}


@pytest.mark.parametrize("cut", [10, 200, 3000, -4])
def test_a_parquet_cut_short(tmp_path, cut):
    path = tmp_path / "items.parquet"
    images = [picture(k) for k in range(20)]
    pq.write_table(pa.table({"id": list(map(str, range(20))), "title": ["a"] * 20, "image": images}), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"items\.parquet: not readable as Parquet"):
        build(path, tmp_path / "out")


def test_a_parquet_damaged_inside(tmp_path):
    path = tmp_path / "items.parquet"
    table = pa.table({"id": list(map(str, range(9))), "title": ["a"] * 9, "image": [picture(k) for k in range(9)]})
    pq.write_table(table, path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\xff" * 2996
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"items\.parquet: not readable as Parquet"):
        build(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["items.parquet"]


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_a_table_without_lines_is_not_held_in_memory(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("input_pipeline.catalogue.tables.text_table.MAX_LINE", 1000)
    (tmp_path / f"items.{suffix}").write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match=f"items.{suffix} line 1: longer than 1000 letters"):
        read_catalogue(tmp_path)


# --- tars -------------------------------------------------------------------------------------------------------------


def add(archive, name, data=b"", **changes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def write_tar(path, members):
    """members: (name, data, changes) triples; with a sample that is fine around them."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name in ("first", "last"):
            add(archive, f"{name}.png", picture(len(name)))
            add(archive, f"{name}.txt", name.encode())
            if name == "first":
                for member, data, changes in members:
                    add(archive, member, data, **changes)
    return path


LINK, HARD, DEVICE, FIFO = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
TAR_FAULTS = {
    "path": ([("../../x.png", picture(), {})], "unsafe path", "../../x"),
    "absolute": ([("/etc/x.png", picture(), {})], "unsafe path", "/etc/x"),
    "link": ([("x.png", b"", {"type": LINK, "linkname": "/etc/passwd"})], "unsafe path", "is a symbolic link"),
    "hard link": ([("x.png", b"", {"type": HARD, "linkname": "first.png"})], "unsafe path", "is a hard link"),
    "device": ([("x.png", b"", {"type": DEVICE})], "unsafe path", "is a device or pipe"),
    "pipe": ([("x.png", b"", {"type": FIFO})], "unsafe path", "is a device or pipe"),
    "twice": ([("x.png", picture(), {}), ("x.png", picture(1), {})], "duplicate member", "x.png is twice"),
    "empty": ([("x.png", b"", {})], "empty file", "0 bytes"),
    "page": ([("x.jpg", b"<html>no</html>", {})], "corrupt image", "it is an HTML page"),
    "bomb": ([("x.png", png_bomb(), {})], "corrupt image", "limit"),
    "not UTF-8": ([("x.txt", b"caf\xe9", {}), ("x.png", picture(), {})], "not UTF-8", "x.txt: not UTF-8"),
    "not JSON": ([("x.json", b"{", {}), ("x.png", picture(), {})], "damaged json", "x.json: not JSON"),
    "no object": ([("x.json", b"[1]", {}), ("x.png", picture(), {})], "damaged json", "expected a JSON object"),
    "deep": ([("x.json", b"[" * 10**5, {}), ("x.png", picture(), {})], "damaged json", "x.json"),
    "large": ([("x.json", b" " * (2**20 + 1), {}), ("x.png", picture(), {})], "too large", "limit is 1024 KiB"),
    "no picture": ([("x.txt", b"a", {})], "missing image", "has no picture"),
    "no title": ([("x.png", picture(), {})], "empty title", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("fault", TAR_FAULTS)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tar_members(tmp_path, fault, suffix):
    members, kind, detail = TAR_FAULTS[fault]
    if kind not in ("empty title", "not UTF-8", "missing image"):
        members = [*members, ("x.txt" if members[0][0][0] == "x" else members[0][0][:-4] + ".txt", b"title", {})]
    audit = build(write_tar(tmp_path / f"s{suffix}", members), tmp_path / "out")
    assert audit["kept"] == 2
    (row,) = audit["problem_rows"]
    assert (row["row"], row["kind"]) == (1, kind)
    assert detail in row["detail"]
    assert {entry.name for entry in tmp_path.iterdir()} == {f"s{suffix}", "out"}


def test_large_members_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_samples, "MAX_FILE_BYTES", 1000)
    path = write_tar(tmp_path / "s.tar", [("x.png", bytes(2000), {}), ("x.txt", b"title", {})])
    assert problems(build(path, tmp_path / "out")) == {"x": "too large"}


def test_a_name_that_is_not_utf8(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        add(archive, "caf\xe9.png", picture())
        add(archive, "good.png", picture(1))
        add(archive, "good.txt", b"good")
    audit = build(tmp_path / "s.tar", tmp_path / "out")
    assert problems(audit) == {"caf\ufffd": "not UTF-8"}
    assert audit["kept"] == 1


def test_a_key_that_comes_again_is_a_duplicate_id(tmp_path):
    members = [("x.png", picture(), {}), ("x.txt", b"a", {}), ("first.png", picture(5), {}), ("first.txt", b"b", {})]
    assert problems(build(write_tar(tmp_path / "s.tar", members), tmp_path / "out")) == {"first": "duplicate id"}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_tar_cut_short(tmp_path, suffix, cut):
    path = write_tar(tmp_path / f"s{suffix}", [(f"{k}.png", picture(k, size=(50, 50)), {}) for k in range(9)])
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(UserError, match=r"cut short.*copy it again"):
        build(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [f"s{suffix}"]


def test_a_tar_damaged_inside(tmp_path):
    path = write_tar(tmp_path / "s.tar", [("x.png", picture(), {})])
    data = bytearray(path.read_bytes())
    data[1024:1112] = b"\xff" * 88  # the header of the second member
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged or cut short after first"):
        build(path, tmp_path / "out")
    (tmp_path / "t.tar").write_bytes(os.urandom(2048) + bytes(1024))
    with pytest.raises(UserError, match="damaged or cut short at its beginning"):
        build(tmp_path / "t.tar", tmp_path / "out")


def test_a_gzipped_tar_that_unpacks_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_samples, "FREE_BYTES", 2**20)
    path = tmp_path / "s.tar.gz"
    zeros = tarfile.TarInfo("zeros.bin")
    zeros.size = 2**28
    with gzip.open(path, "wb") as file:
        file.write(zeros.tobuf())
        for _ in range(2**8):
            file.write(bytes(2**20))
    with pytest.raises(UserError, match=r"unpacks to more than .* MiB, as decompression bombs do"):
        build(path, tmp_path / "out")


def test_a_header_that_asks_for_the_memory(tmp_path):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**33
    with open(tmp_path / "s.tar", "wb") as file:
        file.write(name.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 2048)  # a hole: no disk is used
    with pytest.raises(UserError, match="a header asks for"):
        build(tmp_path / "s.tar", tmp_path / "out")
