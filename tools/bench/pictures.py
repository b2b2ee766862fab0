"""siglip-jax bench pictures: the JPEG decoders and resizers that are installed, beside PIL: time and difference.

siglip-jax bench pictures
pip install opencv-python-headless imagecodecs kornia-rs cykooz.resizer pyvips[binary]; siglip-jax bench pictures

This is how simplejpeg and `siglip_jax.preprocessing.resize` were chosen. What is not installed is left out. One thread;
times are of the processor, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from tools.bench.measuring import Timed

Function = Callable[[Any], Any]


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("dataset", "", "Dataset to take pictures from; synthetic when empty.", flag_values=values)
    flags.DEFINE_string("split", "train", "Split of it.", flag_values=values)
    flags.DEFINE_integer("count", 128, "Files.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("size", 256, "Side to resize to.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("shortest", 224, "Longer side of the smallest file.", lower_bound=16, flag_values=values)
    flags.DEFINE_integer("longest", 640, "Longer side of the largest file.", lower_bound=16, flag_values=values)
    flags.DEFINE_integer("repetitions", 7, "Timed passes of each.", lower_bound=1, flag_values=values)


def main(values: flags.FlagValues) -> None:
    from input_pipeline.dataset import open_split
    from siglip_jax.preprocessing import decode_image
    from tools.bench import measuring
    from tools.bench.inputs import sample_images

    sides = (values.shortest, max(values.shortest, values.longest))
    with tempfile.TemporaryDirectory() as temporary:
        dataset = sample_images.build(
            pathlib.Path(temporary), dataset=values.dataset, split=values.split, count=values.count, sides=sides
        )
        rows = open_split(dataset, "train")
        files = [rows[k]["image"] for k in range(len(rows))]
    arrays = [decode_image(file) for file in files]
    print(f"{measuring.machine()}; {len(files)} files of {sides[0]}-{sides[1]} px; median of {values.repetitions}")
    header = ["", "ms", "x PIL", "largest difference", "mean difference"]
    size = (values.size, values.size)
    for title, functions, inputs in (
        ("decoding", decoders(), files),
        ("bilinear, antialiased", resizers(size, "bilinear"), arrays),
        ("bicubic, antialiased", resizers(size, "bicubic"), arrays),
    ):
        print(f"\n{title}")
        print(measuring.table(header, compare(functions, inputs, repetitions=values.repetitions)))


def compare(functions: dict[str, Function], inputs: list[Any], *, repetitions: int) -> list[list[str]]:
    """A row of the table each; the first is PIL."""
    import numpy as np

    from tools.bench import measuring

    reference = next(iter(functions.values()))
    expected = [np.asarray(reference(one)).astype(int) for one in inputs]
    rows = []
    differences = {}
    for name, function in functions.items():
        found = [np.abs(np.asarray(function(one)) - e) for one, e in zip(inputs, expected, strict=True)]
        differences[name] = max(int(d.max()) for d in found), statistics.fmean(float(d.mean()) for d in found)
    runs = {name: functools.partial(_timed_pass, function, inputs) for name, function in functions.items()}
    times = measuring.timings(runs, repetitions=repetitions)
    seconds = {name: [one.processor for one in times[name]] for name in runs}
    first = next(iter(seconds.values()))
    for name, each_pass in seconds.items():
        share = measuring.ratio(each_pass, first)
        largest, mean = differences[name]
        each = statistics.median(each_pass) / len(inputs)
        rows.append([name, f"{each * 1e3:.3f}", f"{share:.2f}", f"{largest}", f"{mean:.3f}"])
    return rows


def _timed_pass(function: Function, inputs: list[Any]) -> Timed:
    begin, processor = time.perf_counter(), time.process_time()
    for one in inputs:
        function(one)
    return Timed(seconds=time.perf_counter() - begin, processor=time.process_time() - processor)


def decoders() -> dict[str, Function]:
    """bytes -> uint8 [H, W, 3]."""
    import numpy as np
    import PIL.Image
    import simplejpeg

    found: dict[str, Function] = {
        "PIL": lambda file: np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB")),
        "simplejpeg (ours)": simplejpeg.decode_jpeg,
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        found["opencv"] = lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), how)
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        found["imagecodecs"] = imagecodecs.jpeg8_decode
    if importlib.util.find_spec("kornia_rs"):
        from kornia_rs import io as kornia

        found["kornia-rs"] = lambda file: kornia.decode_image_jpegturbo(file, "rgb")
    return found


def resizers(size: tuple[int, int], kind: str) -> dict[str, Function]:
    """uint8 [H, W, 3] -> uint8 [h, w, 3]."""
    import numpy as np
    import PIL.Image

    from siglip_jax.preprocessing import resize_image

    height, width = size
    how = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}[kind]
    found: dict[str, Function] = {
        "PIL": lambda image: np.asarray(PIL.Image.fromarray(image).resize((width, height), how)),
        "numba (ours)": functools.partial(resize_image, size=size, method=kind),
    }
    if importlib.util.find_spec("cykooz_resizer"):
        import cykooz_resizer as fast

        filters = {"bilinear": fast.FilterType.bilinear, "bicubic": fast.FilterType.catmull_rom}
        options = fast.ResizeOptions(fast.ResizeAlg.convolution(filters[kind]), use_alpha=False)
        resizer = fast.Resizer()

        def fast_image_resize(image: np.ndarray) -> np.ndarray:
            rgb = fast.PixelType.U8x3
            source = fast.ImageData(image.shape[1], image.shape[0], rgb, image.tobytes())
            target = fast.ImageData(width, height, rgb)
            resizer.resize(source, target, options)
            return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)

        found["fast_image_resize"] = fast_image_resize
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        for name in ("INTER_LINEAR", "INTER_CUBIC") if kind == "bicubic" else ("INTER_LINEAR", "INTER_AREA"):
            found[f"opencv {name}"] = functools.partial(
                cv2.resize, dsize=(width, height), interpolation=getattr(cv2, name)
            )
    if importlib.util.find_spec("kornia_rs"):
        from kornia_rs import imgproc

        found["kornia-rs"] = lambda image: imgproc.resize(image, size, kind, antialias=True)
    if importlib.util.find_spec("pyvips"):
        import pyvips

        kernel = {"bilinear": "linear", "bicubic": "cubic"}[kind]

        def vips(image: np.ndarray) -> np.ndarray:
            rows, columns = image.shape[:2]
            source = pyvips.Image.new_from_memory(image, columns, rows, 3, "uchar")
            resized = source.resize(width / columns, vscale=height / rows, kernel=kernel, gap=0)
            return np.frombuffer(resized.write_to_memory(), np.uint8).reshape(resized.height, resized.width, 3)

        found["libvips"] = vips
    return found
