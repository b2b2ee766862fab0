"""siglip-jax bench input: images/s from JPEG files of many sizes to a batch, beside the decoder alone and its peers.

siglip-jax bench input                             pictures of the synthetic catalogue, re-encoded at 224-640 pixels
siglip-jax bench input --dataset=data/fashion      pictures of a dataset, re-encoded
siglip-jax bench input --resize=bicubic --size=384

The ceiling is libjpeg-turbo decoding into one buffer, without any resize. "decode + resize" is the least that a batch
of that preprocessing takes. The loader reads, decodes, resizes, tokenises and batches. tf.data is big_vision's way
(decode_jpeg and tf.image.resize, bilinear without antialias), in a process of its own, where TensorFlow is installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from siglip_jax.errors import UserError

KINDS = ("bilinear", "bicubic", "bilinear_no_antialias", "bilinear_scaled_decode", "bilinear_pad")
SLACK = 1.25  # of the steps whose waiting is measured: they take so many times as long as the loader's batches

TF_DATA = """
import os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"], os.environ["CUDA_VISIBLE_DEVICES"] = "3", ""
import numpy as np, tensorflow as tf

folder, batch, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pictures = [open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))]

def decode(encoded):
    image = tf.io.decode_jpeg(encoded, channels=3)
    return tf.cast(tf.image.resize(image, (size, size), "bilinear"), tf.uint8)

print("ready", flush=True)
for line in sys.stdin:
    threads = int(line)
    data = tf.data.Dataset.from_tensor_slices(pictures)
    data = data.map(decode, num_parallel_calls=threads).batch(batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    begin = time.perf_counter()
    for images in data.with_options(options).as_numpy_iterator():
        pass
    print(time.perf_counter() - begin, flush=True)
"""


def define_flags(values: flags.FlagValues) -> None:
    def integer(name: str, default: int, text: str, lower_bound: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=values)

    flags.DEFINE_string("dataset", "", "Dataset to take pictures from; synthetic when empty.", flag_values=values)
    flags.DEFINE_string("split", "train", "Split of it.", flag_values=values)
    flags.DEFINE_multi_enum(
        "resize", ["bilinear_no_antialias", "bilinear"], list(KINDS), "Preprocessing; repeatable.", flag_values=values
    )
    integer("size", 256, "Side of the batch's pictures.")
    integer("shortest", 224, "Pixels of the longer side of the smallest file.", lower_bound=16)
    integer("longest", 640, "Pixels of the longer side of the largest file.", lower_bound=16)
    integer("count", 512, "Files; a multiple of --batch.")
    integer("batch", 32, "Pictures of a batch.")
    integer("workers", 2, "Processes of the loader with workers; 0 leaves it out.", lower_bound=0)
    integer("repetitions", 7, "Timed passes of each.")
    flags.DEFINE_bool("tf_data", True, "Also tf.data, where TensorFlow is installed.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from input_pipeline.dataset import open_split
    from tools import sample_pictures

    if values.count % values.batch:
        raise UserError(f"--count={values.count} is not a multiple of --batch={values.batch}")
    if values.longest < values.shortest:
        raise UserError(f"--shortest={values.shortest} exceeds --longest={values.longest}")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        dataset = sample_pictures.build(
            folder,
            dataset=values.dataset,
            split=values.split,
            count=values.count,
            sides=(values.shortest, values.longest),
        )
        rows = open_split(dataset, "train")
        records = [rows[k] for k in range(len(rows))]
        compare(values, folder, dataset, records, stack)


def compare(values: flags.FlagValues, folder: pathlib.Path, dataset: pathlib.Path, records: Any, stack: Any) -> None:
    from tools import measuring

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pictures = [record["image"] for record in records]
    runs: dict[str, tuple[Callable[[], Any], int]] = {  # title -> the run and the cores that it may use
        "libjpeg-turbo, decoding alone": (decoding_alone(pictures, stack, threads=1), 1),
        "PIL loop, bilinear": (functools.partial(pil_loop, pictures, values.batch, values.size), 1),
    }
    if cores > 1:
        runs[f"libjpeg-turbo, {cores} threads"] = decoding_alone(pictures, stack, threads=cores), cores
    if values.tf_data and importlib.util.find_spec("tensorflow"):
        tf_data = stack.enter_context(_tf_data(folder / "images", values.batch, values.size))
        runs |= {f"tf.data, {_threads(n)}": (functools.partial(tf_data, n), n) for n in sorted({1, cores})}
    fills = {"bilinear_pad": "white"}
    loaders: dict[str, Steady] = {}
    for kind in dict.fromkeys(values.resize):
        preprocessing = _preprocessing(records, kind, values.size, fills.get(kind, ""))
        runs[f"decode + resize, {kind}"] = functools.partial(decode_and_resize, pictures, preprocessing), 1
        open_loader = functools.partial(_loader, dataset, preprocessing, values, stack)
        for threads in sorted({1, cores}):
            title = f"loader, {kind}, {_threads(threads)}"
            loaders[title] = open_loader(num_threads=threads)
            runs[title] = loaders[title], threads
        if values.workers:
            title = f"loader, {kind}, {values.workers} workers"
            runs[title] = open_loader(num_threads=1, num_workers=values.workers), min(values.workers, cores)
    seconds = measuring.interleaved({title: run for title, (run, _) in runs.items()}, repetitions=values.repetitions)
    ceiling = seconds["libjpeg-turbo, decoding alone"]
    table = []
    for title, (_, used) in runs.items():
        rate = len(pictures) / statistics.median(seconds[title])
        kind = next((kind for kind in KINDS if f", {kind}," in title), None)
        floor = seconds[f"decode + resize, {kind}"] if kind else None
        table.append(
            [
                title,
                f"{rate:.0f}",
                f"{rate / used:.0f}",
                f"{measuring.ratio(ceiling, seconds[title]) / used:.2f}",
                f"{measuring.ratio(floor, seconds[title]) / used:.2f}" if floor else "-",
            ]
        )
    mean = sum(map(len, pictures)) / len(pictures) / 1024
    print(f"{measuring.machine()}; {len(pictures)} files of {values.shortest}-{values.longest} px, {mean:.0f} KiB each")
    print(f"to {values.size} px, batches of {values.batch}; median of {values.repetitions} interleaved repetitions")
    print(measuring.table(["", "images/s", "a core", "x decoding", "x decode + resize"], table))
    print(f"waiting for batches of {values.batch}, with steps that take {SLACK} times as long as the loader's median:")
    for title, loader in loaders.items():
        step = SLACK * statistics.median(seconds[title]) / loader.batches
        print(f"  {title}: {100 * loader.waiting(step):.1f} % of a step of {step * 1e3:.0f} ms")


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


# --- what is compared -------------------------------------------------------------------------------------------------


def decoding_alone(pictures: list[bytes], stack: Any, *, threads: int) -> Callable[[], Any]:
    import concurrent.futures

    import simplejpeg

    sizes = [simplejpeg.decode_jpeg_header(picture)[:2] for picture in pictures]
    largest = max(height * width * 3 for height, width in sizes)
    parts = [pictures[k::threads] for k in range(threads)]

    def decode(part: list[bytes]) -> None:
        buffer = bytearray(largest)
        for picture in part:
            simplejpeg.decode_jpeg(picture, "RGB", buffer=buffer)

    if threads == 1:
        return functools.partial(decode, pictures)
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(threads))
    return lambda: list(pool.map(decode, parts))


def pil_loop(pictures: list[bytes], batch: int, size: int) -> None:
    """As it is usually written."""
    import io

    import numpy as np
    import PIL.Image

    for start in range(0, len(pictures), batch):
        opened = (PIL.Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures[start : start + batch])
        np.stack([np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR)) for image in opened])


def decode_and_resize(pictures: list[bytes], preprocessing: Any) -> None:
    import numpy as np

    out = np.empty(preprocessing.row_shape, np.uint8)
    for picture in pictures:
        preprocessing.image(picture, out=out)


def _preprocessing(records: Any, kind: str, size: int, fill: str) -> Any:
    from input_pipeline.tokenizer import train_tokenizer
    from siglip_jax.preprocessing import Preprocessing

    tokenizer = train_tokenizer([record["title"] for record in records], vocab_size=1000)
    return Preprocessing(image_size=(size, size), resize=kind, fill=fill, tokenizer=tokenizer)


def _loader(dataset: Any, preprocessing: Any, values: flags.FlagValues, stack: Any, **options: Any) -> Steady:
    from input_pipeline.loader import make_loader

    if not flags.FLAGS.is_parsed():  # Grain's workers look into absl's own flags
        flags.FLAGS.mark_as_parsed()
    batches = make_loader(
        dataset,
        split="train",
        preprocessing=preprocessing,
        batch_size=values.batch,
        seed=0,
        cache=False,
        show_progress=False,
        **options,
    )
    stack.callback(batches.close)
    return Steady(batches, values.count // values.batch, ahead=4 + 8 * options.get("num_workers", 0))


class Steady:
    """Passes of a loader that prepares batches ahead: those made before a pass are not counted in it."""

    def __init__(self, iterator: Iterator[Any], batches: int, *, ahead: int):
        self.iterator, self.batches, self.ahead = iterator, batches, ahead

    def __call__(self) -> float:
        """Seconds of an epoch, from at least twice as many batches as may lie ready."""
        timed = max(self.batches, 2 * self.ahead)
        for _ in range(self.ahead):
            next(self.iterator)
        begin = time.perf_counter()
        for _ in range(timed):
            next(self.iterator)
        each = (time.perf_counter() - begin) / timed
        time.sleep(2 * self.ahead * each)  # it prepares the next ones: not at another's expense
        return each * self.batches

    def waiting(self, step: float) -> float:
        """The share of an epoch's time that steps of so many seconds wait for their batches."""
        waited, begin = 0.0, time.perf_counter()
        for _ in range(2 * self.batches):
            before = time.perf_counter()
            next(self.iterator)
            waited += time.perf_counter() - before
            time.sleep(step)
        return waited / (time.perf_counter() - begin)


@contextlib.contextmanager
def _tf_data(folder: pathlib.Path, batch: int, size: int) -> Iterator[Callable[[int], float]]:
    """threads -> seconds of a pass in another process, where TensorFlow stays."""
    command = [sys.executable, "-c", TF_DATA, str(folder), str(batch), str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout
        if stdout.readline().strip() != "ready":
            raise UserError("tf.data: TensorFlow does not start; leave it out with --notf_data")

        def run(threads: int) -> float:
            print(threads, file=stdin, flush=True)
            return float(stdout.readline())

        try:
            yield run
        finally:
            stdin.close()
