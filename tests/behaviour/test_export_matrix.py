"""Every format, tower and precision of an export beside the model, as a consumer runs it: in a process without JAX.

The whole matrix is slow; `make test-exports` runs it. The gate has a diagonal: a SavedModel in float32, and ONNX in all
precisions. A program for JAX (StableHLO) needs JAX, but not this library. ONNX and programs for JAX decode no pictures:
their consumer reads bytes with PIL, as the preprocessing that travels along says, so damaged ones are its own matter.
"""

import dataclasses
import functools
import io
import json
import pathlib
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import PIL.Image
import pytest

from siglip_jax.export.golden import ODD_TITLES, odd_pictures
from siglip_jax.export.limits import Limits, limits_of
from siglip_jax.export.onnx.onnx_towers import export_tower
from siglip_jax.export.savedmodel import export_saved_model
from siglip_jax.export.stablehlo_folder import export_programs

CONSUMER = pathlib.Path(__file__).with_name("export_consumer.py")
FORMATS = {
    "savedmodel": ("float32", "bfloat16"),
    "onnx": ("float32", "float16", "int8"),
    "jax": ("float32", "bfloat16"),
}
TAKES = {
    "bytes": ("serving_default", "image_bytes"),
    "pixels": ("pixels", "pixels"),
    "ids": ("text_ids", "ids"),
    "strings": ("text", "text"),
}
DTYPES = ("float32", "bfloat16")
BATCHES = (1, 64, 257)
ENORMOUS = "PNG of 8000x8000"
LONG = {("bytes", ENORMOUS), *((takes, f"batch {n}") for takes in ("bytes", "strings") for n in (64, 257))}
DIAGONAL = {"savedmodel": ("float32",), "onnx": FORMATS["onnx"]}
LEAST_COSINE = {"float16": 0.999, "int8": 0.98}  # of `siglip-jax export`
MOST_MIB = 200.0  # that a refused picture may take


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Of any header, also of what PIL does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def smooth(width: int = 40, height: int = 31, seed: int = 3) -> PIL.Image.Image:
    """Decoders agree on it to the last bit or nearly so."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def of_16_bits(image: PIL.Image.Image) -> bytes:
    """RGB, whose lower bytes are noise."""
    levels = np.asarray(image).astype(np.uint16) << 8 | np.random.default_rng(0).integers(0, 256, (31, 40, 3))
    return png(40, 31, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels))


@functools.cache
def pictures() -> dict[str, bytes]:
    colour = smooth()
    alpha = colour.convert("RGBA")
    alpha.putalpha(colour.convert("L").rotate(90, expand=False))
    more = {"save_all": True, "append_images": [colour.rotate(180)]}
    turns = {}
    for mark in (2, 3, 5, 8):
        exif = PIL.Image.Exif()
        exif[0x0112] = mark
        turns[f"JPEG with orientation {mark}"] = encoded(colour, "JPEG", quality=95, exif=exif)
    return odd_pictures() | turns | {
        "JPEG": encoded(colour, "JPEG", quality=95),
        "CMYK JPEG": encoded(colour.convert("CMYK"), "JPEG", quality=95),
        "JPEG of one pixel": encoded(colour.crop((0, 0, 1, 1)), "JPEG"),
        "PNG upside down": encoded(colour.rotate(180), "PNG"),
        "grey PNG with alpha": encoded(alpha.convert("LA"), "PNG"),
        "PNG of one bit": encoded(colour.convert("1"), "PNG"),
        "PNG of a palette with alpha": encoded(colour.quantize(16), "PNG", transparency=3),
        "RGB PNG of 16 bits": of_16_bits(colour),
        "animated PNG": encoded(colour, "PNG", **more),
        "WEBP": encoded(colour, "WEBP", quality=95),
        "lossless WEBP with alpha": encoded(alpha, "WEBP", lossless=True),
    }  # fmt: skip


@functools.cache
def refused() -> dict[str, tuple[bytes, str]]:
    """{what: (encoded, what the status says)}."""
    colour = smooth()
    jpeg, whole = encoded(colour, "JPEG", quality=95), encoded(colour, "PNG")
    return {
        "no bytes": (b"", "another format"),
        "words": (b"no picture at all" * 9, "another format"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "damaged"),
        "the head of a JPEG": (jpeg[:20], "damaged"),
        "half a PNG": (whole[: len(whole) // 2], "damaged"),
        "a PNG with a wrong byte": (whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "damaged"),
        "TIFF": (encoded(colour, "TIFF"), "in TIFF"),
        "animated WEBP": (encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(180)]), "animated"),
        "BMP of a palette": (encoded(colour.quantize(16), "BMP"), "palette"),
        "PNG of 144 megapixels": (png(12_000, 12_000, 8, 0, bytes(9)), "12000x12000 pixels; the limit is"),
    }


@functools.cache
def titles() -> dict[str, str]:
    odd = {f"title {number}": title for number, title in enumerate(ODD_TITLES)}
    more = {
        "emoji": "👗👟 🇯🇵 👩\u200d👩\u200d👧",
        "10,000 characters": "Red shirt, " * 1000,
        "one long word": "x" * 10_000,
    }
    return odd | {"empty": ""} | more


@functools.cache
def enormous() -> bytes:
    """As many pixels as a picture may have."""
    return encoded(smooth(8000, 8000), "PNG")


@dataclasses.dataclass(frozen=True)
class Cell:
    """`what` of `takes` is asked of a `format` in a `precision`."""

    format: str
    precision: str
    takes: str
    what: str

    def __str__(self) -> str:
        return "-".join(dataclasses.astuple(self))

    @property
    def tower(self) -> str:
        return "image" if self.takes in ("bytes", "pixels") else "text"


def cells_of(format: str, precisions: tuple[str, ...]) -> list[Cell]:
    batches = [f"batch {count}" for count in BATCHES]
    asked = {"bytes": [*pictures(), *batches, ENORMOUS], "pixels": ["black", "white", *batches]}
    asked["ids"] = asked["strings"] = [*titles(), *batches]
    if format == "savedmodel":
        asked["bytes"] += refused()
    else:
        del asked["strings"]
    return [Cell(format, each, takes, what) for each in precisions for takes in asked for what in asked[takes]]


class Exports:
    """Exports of a model, and what it gives itself; each is made once."""

    def __init__(self, model, folder: pathlib.Path):
        self.folder = folder
        self.models = {dtype: model.replace(module=model.module.clone(dtype=dtype)) for dtype in DTYPES}
        self.preprocessing = model.preprocessing
        noise = np.random.default_rng(0).uniform(-1, 1, (BATCHES[-1] - 2, *model.architecture.image_size, 3))
        self.pixels = {f"noise {row}": each.astype(np.float32) for row, each in enumerate(noise)}
        self.pixels |= {"black": np.full_like(noise[0], -1, np.float32), "white": np.full_like(noise[0], 1, np.float32)}
        self._expected: dict = {}

    def of(self, cell: Cell) -> pathlib.Path:
        """The export that answers."""
        model, path = self.models[dtype_of(cell)], self.folder / f"{cell.format} {cell.precision}"
        if cell.format == "onnx":
            path = path.with_name(f"{path.name} {cell.tower}.onnx")
        if path.exists():
            return path
        if cell.format == "savedmodel":
            export_saved_model(model, path, text="strings")
        elif cell.format == "jax":
            export_programs(model, path)
        else:
            export_tower(model, path, tower=cell.tower, precision=cell.precision)
        return path

    def rows(self, cell: Cell) -> list[str]:
        """Names of what is asked."""
        if not cell.what.startswith("batch "):
            return ["JPEG", cell.what] if cell.takes == "bytes" and cell.what in refused() else [cell.what]
        names = list({"bytes": pictures(), "pixels": self.pixels}.get(cell.takes, titles()))
        return [names[row % len(names)] for row in range(int(cell.what.split()[1]))]

    def values(self, takes: str, names: list[str]) -> list[bytes] | np.ndarray:
        if takes == "pixels":
            return np.stack([self.pixels[name] for name in names])
        if takes == "ids":
            return self.preprocessing.text([titles()[name] for name in names])
        if takes == "strings":
            return [titles()[name].encode() for name in names]
        bad = {name: data for name, (data, _) in refused().items()}
        return [enormous() if name == ENORMOUS else (pictures() | bad)[name] for name in names]

    def expected(self, dtype: str, takes: str, what: str) -> tuple[dict[str, np.ndarray], Limits]:
        """Of a model in `dtype`: {name: embedding}, and how far an export may be from them."""
        key = dtype, takes, what == ENORMOUS
        if key not in self._expected:
            model, tower = self.models[dtype], "image" if takes in ("bytes", "pixels") else "text"
            names = list({"bytes": pictures(), "pixels": self.pixels}.get(takes, titles()))
            names = [ENORMOUS] if what == ENORMOUS else names
            given = self.values("ids" if takes == "strings" else takes, names)
            given = self.preprocessing.images(given) if takes == "bytes" else given
            vectors = model.encode_image(given) if tower == "image" else model.encode_text(given)
            self._expected[key] = dict(zip(names, vectors, strict=True)), limits_of(model, given, tower=tower)
        return self._expected[key]

    def ask(self, cells: list[Cell]) -> dict[Cell, str]:
        """{cell: what is wrong with its answer}, "" for nothing; all in one process."""
        job = self.folder / f"job {cells[0].format} {len(cells)}"
        job.mkdir()
        calls, inputs = [], {}
        for cell in cells:
            values, (signature, name) = self.values(cell.takes, self.rows(cell)), TAKES[cell.takes]
            call = {"key": str(cell), "export": str(self.of(cell)), "signature": signature, "name": name, "rows": None}
            if isinstance(values, np.ndarray):
                inputs[str(cell)] = values
            else:
                inputs |= {f"{cell}/{row}": np.frombuffer(one, np.uint8) for row, one in enumerate(values)}
                call["rows"] = len(values)
            calls.append(call)
        np.savez(job / "inputs.npz", **inputs)
        (job / "job.json").write_text(json.dumps({"runtime": cells[0].format, "calls": calls}))
        done = subprocess.run([sys.executable, CONSUMER, job], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        answers = json.loads((job / "answers.json").read_text())
        with np.load(job / "answers.npz") as found:
            return {cell: self.wrong(cell, found.get(str(cell)), **answers[str(cell)]) for cell in cells}

    def wrong(self, cell: Cell, found: np.ndarray | None, *, status: str, grew_mib: float | None) -> str:
        if cell.takes == "bytes" and cell.what in refused():
            words = refused()[cell.what][1]
            if "picture 1: " not in status or words not in status or "picture 0" in status:
                return f"status {status!r}; expected picture 1 and {words!r}"
            return "" if grew_mib is None or grew_mib < MOST_MIB else f"refused, but took {grew_mib:.0f} MiB"
        if found is None:
            return status
        vectors, limits = self.expected(dtype_of(cell), cell.takes, cell.what)
        expected = np.stack([vectors[name] for name in self.rows(cell)])
        if found.shape != expected.shape or found.dtype != np.float32:
            return f"{found.dtype} {found.shape}; expected float32 {expected.shape}"
        if cell.precision in LEAST_COSINE or cell.takes == "bytes":
            least = LEAST_COSINE.get(cell.precision, limits.min_cosine)
            cosine = np.sum(np.float64(found) * expected, axis=1) / np.linalg.norm(found, axis=1)
            row = int(np.argmin(cosine))
            said = f"{self.rows(cell)[row]}: cosine {cosine[row]:.6f}; expected {least:.6f}"
            return "" if cosine[row] >= least else said
        error = float(np.abs(found - expected).max())
        return "" if error <= limits.max_error else f"error {error:.1e}; expected {limits.max_error:.1e}"


def dtype_of(cell: Cell) -> str:
    """In which the model computes; float16 and int8 are of its export alone."""
    return "bfloat16" if cell.precision == "bfloat16" else "float32"


@pytest.fixture(scope="module")
def exports(tiny_model, tmp_path_factory) -> Exports:
    """Of a model whose embeddings of different pictures differ, which those of fresh weights hardly do."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.2 * rng.normal(size=x.shape), np.float32), tiny_model.params)
    params = {**params, "t": tiny_model.params["t"], "b": tiny_model.params["b"]}
    return Exports(tiny_model.replace(params=params), tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize("format", DIAGONAL)
def test_the_diagonal(format, exports):
    cells = [cell for cell in cells_of(format, DIAGONAL[format]) if (cell.takes, cell.what) not in LONG]
    wrong = {str(cell): said for cell, said in exports.ask(cells).items() if said}
    assert not wrong, json.dumps(wrong, indent=1)


def test_other_pictures_and_titles_are_told_apart(exports):
    """So that a picture that is turned or a title that is cut elsewhere would be seen."""
    for takes, pairs in {
        "bytes": [("JPEG", "PNG upside down"), ("PNG with alpha", "grey PNG")],
        "ids": [("title 3", "emoji"), ("empty", "one long word")],
    }.items():
        vectors, _ = exports.expected("float32", takes, "")
        for one, other in pairs:
            assert vectors[one] @ vectors[other] < 0.99, (one, other)


@pytest.fixture(scope="module")
def answered(exports) -> dict[str, dict[Cell, str]]:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for format in FORMATS for cell in cells_of(format, FORMATS[format])], ids=str)
def test_cell(cell, exports, answered):
    if cell.format not in answered:
        answered[cell.format] = exports.ask(cells_of(cell.format, FORMATS[cell.format]))
    assert not answered[cell.format][cell]
