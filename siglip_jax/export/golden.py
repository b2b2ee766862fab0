"""Golden inputs and answers, which travel beside every export; `verify_export` replays them anywhere.

Preprocessing that differs between training and serving is a failure that nothing else finds: the model runs, and its
embeddings are slightly or wholly other ones. So the inputs are pictures and titles as they come, odd ones among them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.export import verify_export

VERIFY = "verify.py"  # what `verify_export` is called beside an export
ODD_TITLES = (
    "", " ", "!!!", " Red shirt", "RED, SHIRT!", "naïve café – 50 % off", "Ağaç İĞNE ΟΔΥΣΣΕΥΣ", "赤いシャツ",
    "👟👟 shoes", "tab\tand\nline", "x" * 12_000, "red shirt " * 2_000,
)  # fmt: skip

# In a process without this library, and without JAX unless that runs the export, as a consumer's is.
_ALONE = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(','))); sys.argv = sys.argv[2:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One question to an export, with its answer.

    Attributes:
      signature: which; of ONNX a name for the report only.
      inputs: {name: array [n, ...], or n bytes}.
      expected: what the model gave, float32 [n, ...].
      of: what the rows are, in words.
      max_error: of a number of the answer; None for no limit.
      min_cosine: of a row; None where cosines mean nothing.
      output: its name.
    """

    signature: str
    inputs: Mapping[str, np.ndarray | Sequence[bytes]]
    expected: np.ndarray
    of: str
    max_error: float | None = None
    min_cosine: float | None = None
    output: str = "embedding"


def write_golden(
    folder: pathlib.Path, calls: Sequence[Call], *, model: str, runtime: str, compress: bool = True
) -> None:
    """Writes golden.json, golden.npz and verify.py.

    Args:
      model: of the export, relative to the folder.
      runtime: "savedmodel", "onnx" or "jax".
      compress: what does not travel needs not be small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    described = []
    for number, call in enumerate(calls):
        arrays[f"{number}/expected"] = call.expected
        rows: dict[str, int | None] = {}
        for name, values in call.inputs.items():
            key = f"{number}/{name}"
            if isinstance(values, np.ndarray):
                rows[name], arrays[key] = None, values
            else:
                rows[name] = len(values)
                arrays |= {f"{key}/{row}": np.frombuffer(value, np.uint8) for row, value in enumerate(values)}
        limits = {"max_error": call.max_error, "min_cosine": call.min_cosine}
        described.append(
            {
                "signature": call.signature,
                "of": call.of,
                "inputs": rows,
                "output": call.output,
                "limits": {name: limit for name, limit in limits.items() if limit is not None},
            }
        )
    save = np.savez_compressed if compress else np.savez
    save(folder / verify_export.ARRAYS, **arrays)  # type: ignore[arg-type]
    golden = {"format": verify_export.FORMAT, "runtime": runtime, "model": model, "calls": described}
    (folder / verify_export.GOLDEN).write_text(json.dumps(golden, indent=1) + "\n")
    shutil.copyfile(verify_export.__file__, folder / VERIFY)


def check_golden(folder: pathlib.Path, *, sample: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """What `verify_export.verify` finds, in a process of its own, in which neither JAX nor this library is there.

    Args:
      sample: a folder of `write_golden`, whose questions are answered as well, see `read_answers`.

    Raises:
      UserError: the export cannot be run there.
    """
    golden = files.read_json(epath.Path(folder) / verify_export.GOLDEN)
    without = "siglip_jax" if golden.get("runtime") == "jax" else "siglip_jax,jax"
    command = [sys.executable, "-c", _ALONE, without, verify_export.__file__, str(folder), "--json"]
    command += [f"--sample={sample}"] if sample is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        reason = (done.stderr.strip() or "?").splitlines()[-1]
        raise UserError(f"the export cannot be checked, by itself without {without.replace(',', ' and ')}: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])["calls"]


def read_answers(sample: pathlib.Path, calls: Sequence[Call]) -> list[np.ndarray]:
    """What `check_golden` was answered to the calls of its sample."""
    with np.load(sample / verify_export.ANSWERS, allow_pickle=False) as arrays:
        return [arrays[str(number)] for number in range(len(calls))]


def golden_folder(export: pathlib.Path) -> pathlib.Path:
    """Where the golden files of an export are: inside a folder, beside an ONNX file."""
    return export / "assets.extra" if export.is_dir() else export.with_name(export.name + ".golden")


def odd_pictures() -> dict[str, bytes]:
    """Pictures as shops have them now and then, {what: encoded}; all are served."""
    rng = np.random.default_rng(0)
    # Smooth, as what cameras make: decoders agree on it to the last bit or nearly so.
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8))
    colour = coarse.resize((61, 43), PIL.Image.Resampling.BICUBIC)
    grey = colour.convert("L")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    levels = PIL.Image.fromarray((np.asarray(grey, np.uint16) * 257).astype(np.uint16))
    alpha = colour.convert("RGBA")
    alpha.putalpha(grey)

    def encoded(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return {
        "PNG with alpha": encoded(alpha, "PNG"),
        "grey PNG": encoded(grey, "PNG"),
        "PNG with a palette": encoded(colour.quantize(32), "PNG"),
        "PNG of 16 bits": encoded(levels, "PNG"),
        "PNG of one pixel": encoded(colour.crop((0, 0, 1, 1)), "PNG"),
        "grey JPEG": encoded(grey, "JPEG", quality=95),
        "progressive JPEG": encoded(colour, "JPEG", quality=95, progressive=True),
        "JPEG with an orientation": encoded(colour, "JPEG", quality=95, exif=turned),
        "very wide JPEG": encoded(colour.resize((700, 20), PIL.Image.Resampling.BICUBIC), "JPEG", quality=95),
        "BMP": encoded(colour, "BMP"),
        "animated GIF": encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(90)]),
    }
