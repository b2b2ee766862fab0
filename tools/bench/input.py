"""siglip-jax bench input: images/s from JPEG files of many sizes to a batch, beside the decoder alone and its peers.

siglip-jax bench input                             pictures of the synthetic catalogue, re-encoded at 224-640 pixels
siglip-jax bench input --dataset=data/fashion      pictures of a dataset, re-encoded
siglip-jax bench input --resize=bicubic --size=384

The ceiling is libjpeg-turbo decoding into one buffer, without any resize. "decode + resize" is the least that a batch
of that preprocessing takes. The loader reads, decodes, resizes, tokenises and batches. tf.data is big_vision's way
(decode_jpeg and tf.image.resize, bilinear without antialias), in a process of its own, where TensorFlow is installed.

"a core" is images per second of processor time, of all threads and workers; the ratios are of that. So a loader that
looks fast because other threads help it shows what it takes, and one that waits for itself shows it in "cores".
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import multiprocessing
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
from tools.bench.measuring import Timed

COPIES = 16  # of each file in the dataset that the loader reads, so that it has the rows of a small shop
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
    threads, start = int(line), time.perf_counter()
    data = tf.data.Dataset.from_tensor_slices(pictures)
    data = data.map(decode, num_parallel_calls=threads).batch(batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    begin, processor = time.perf_counter(), time.process_time()
    for images in data.with_options(options).as_numpy_iterator():
        pass
    print(begin - start, time.perf_counter() - begin, time.process_time() - processor, flush=True)
"""


def define_flags(values: flags.FlagValues) -> None:
    from siglip_jax.preprocessing.resize_table import RESIZES

    def integer(name: str, default: int, text: str, lower_bound: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=values)

    fixed = [name for name, resize in RESIZES.items() if not resize.uses_patches]

    flags.DEFINE_string("dataset", "", "Dataset to take pictures from; synthetic when empty.", flag_values=values)
    flags.DEFINE_string("split", "train", "Split of it.", flag_values=values)
    flags.DEFINE_multi_enum(
        "resize", ["bilinear_no_antialias", "bilinear"], fixed, "Preprocessing; repeatable.", flag_values=values
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
    from tools.bench.inputs import sample_images

    if values.count % values.batch:
        raise UserError(f"--count={values.count} is not a multiple of --batch={values.batch}")
    if values.longest < values.shortest:
        raise UserError(f"--shortest={values.shortest} exceeds --longest={values.longest}")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        dataset = sample_images.build(
            folder,
            dataset=values.dataset,
            split=values.split,
            count=values.count,
            sides=(values.shortest, values.longest),
            copies=COPIES,
        )
        records = open_split(dataset, "train")[: values.count]
        compare(values, folder, dataset, records, stack)


def compare(values: flags.FlagValues, folder: pathlib.Path, dataset: pathlib.Path, records: Any, stack: Any) -> None:
    from tools.bench import measuring

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pictures = [record["image"] for record in records]
    runs: dict[str, Callable[[], Timed]] = {
        "libjpeg-turbo, decoding alone": timed(decoding_alone(pictures, stack, threads=1)),
        "PIL loop, bilinear": timed(functools.partial(pil_loop, pictures, values.batch, values.size)),
    }
    if cores > 1:
        runs[f"libjpeg-turbo, {cores} threads"] = timed(decoding_alone(pictures, stack, threads=cores))
    if values.tf_data and importlib.util.find_spec("tensorflow"):
        tf_data = stack.enter_context(_tf_data(folder / "images", values.batch, values.size))
        runs |= {f"tf.data, {_threads(n)}": functools.partial(tf_data, n) for n in sorted({1, cores})}
    fills = {"bilinear_pad": "white"}
    loaders: dict[str, Steady] = {}
    for kind in dict.fromkeys(values.resize):
        preprocessing = _preprocessing(records, kind, values.size, fills.get(kind, ""))
        runs[f"decode + resize, {kind}"] = timed(functools.partial(decode_and_resize, pictures, preprocessing))
        open_loader = functools.partial(_loader, dataset, preprocessing, values, stack)
        for threads in sorted({1, cores}):
            title = f"loader, {kind}, {_threads(threads)}"
            runs[title] = loaders[title] = open_loader(num_threads=threads)
        if values.workers:
            title = f"loader, {kind}, {values.workers} workers"
            runs[title] = open_loader(num_threads=1, num_workers=values.workers)
    times = measuring.timings(runs, repetitions=values.repetitions)

    def processor(title: str) -> list[float]:
        return [one.processor / one.passes for one in times[title]]

    table = []
    for title in runs:
        clock, used = statistics.median(one.each for one in times[title]), statistics.median(processor(title))
        kind = next((kind for kind in values.resize if f", {kind}," in title), None)
        floors = ["libjpeg-turbo, decoding alone", *([f"decode + resize, {kind}"] if kind else [])]
        ratios = [f"{measuring.ratio(processor(floor), processor(title)):.2f}" for floor in floors]
        rate, cores_used = f"{len(pictures) / clock:.0f}", f"{used / clock:.1f}"
        table.append([title, rate, cores_used, f"{len(pictures) / used:.0f}", *ratios, *["-"] * (2 - len(ratios))])
    mean = sum(map(len, pictures)) / len(pictures) / 1024
    print(f"{measuring.machine()}; {len(pictures)} files of {values.shortest}-{values.longest} px, {mean:.0f} KiB each")
    print(f"to {values.size} px, batches of {values.batch}; median of {values.repetitions} interleaved repetitions")
    print(measuring.table(["", "images/s", "cores", "a core", "x decoding", "x decode + resize"], table))
    print(f"waiting for batches of {values.batch}, with steps that take {SLACK} times as long as the loader's median:")
    for title, loader in loaders.items():
        step = SLACK * statistics.median(one.each for one in times[title]) / loader.batches
        print(f"  {title}: {100 * loader.waiting(step):.1f} % of a step of {step * 1e3:.0f} ms")


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


# --- time -------------------------------------------------------------------------------------------------------------


def timed(run: Callable[[], Any]) -> Callable[[], Timed]:
    def timing() -> Timed:
        begin, processor = time.perf_counter(), processor_seconds()
        run()
        return Timed(seconds=time.perf_counter() - begin, processor=processor_seconds() - processor)

    return timing


def processor_seconds() -> float:
    """Of all threads of this process and, on Linux, of its living worker processes."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = pathlib.Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()  # from the third on
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


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
    from input_pipeline.train_tokenizer import train_tokenizer
    from siglip_jax.preprocessing import Preprocessing

    tokenizer = train_tokenizer([record["title"] for record in records], vocab_size=1000)
    return Preprocessing(image_size=(size, size), resize=kind, fill=fill, tokenizer=tokenizer)


def _loader(dataset: Any, preprocessing: Any, values: flags.FlagValues, stack: Any, **options: Any) -> Steady:
    from input_pipeline.loader import Speed, make_loader

    if not flags.FLAGS.is_parsed():  # Grain's workers look into absl's own flags
        flags.FLAGS.mark_as_parsed()
    speed = Speed(cache=False, **options)
    batches = make_loader(
        dataset,
        split="train",
        preprocessing=preprocessing,
        batch_size=values.batch,
        seed=0,
        speed=speed,
        show_progress=False,
    )
    stack.callback(batches.close)
    return Steady(batches, values.count // values.batch, ahead=6 + 8 * speed.num_workers)


class Steady:
    """Passes of a loader that prepares batches ahead: those made before a pass are not counted in it."""

    def __init__(self, iterator: Iterator[Any], batches: int, *, ahead: int):
        self.iterator, self.batches, self.ahead = iterator, batches, ahead

    def __call__(self) -> Timed:
        """Of `batches` batches a pass, from at least twice as many as may lie ready."""
        count, begin = max(self.batches, 2 * self.ahead), time.perf_counter()
        for _ in range(self.ahead):
            next(self.iterator)
        found = timed(lambda: [None for _ in range(count) if next(self.iterator) is None])()
        time.sleep(2 * self.ahead * found.seconds / count)  # it prepares the next ones: not at another's expense
        outside = time.perf_counter() - begin - found.seconds
        return dataclasses.replace(found, passes=count / self.batches, outside=outside)

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
def _tf_data(folder: pathlib.Path, batch: int, size: int) -> Iterator[Callable[[int], Timed]]:
    """threads -> the time of a pass in another process, where TensorFlow stays."""
    command = [sys.executable, "-c", TF_DATA, str(folder), str(batch), str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout
        if stdout.readline().strip() != "ready":
            raise UserError("tf.data: TensorFlow does not start; leave it out with --notf_data")

        def run(threads: int) -> Timed:
            print(threads, file=stdin, flush=True)
            setup, clock, processor = map(float, stdout.readline().split())
            return Timed(seconds=clock, processor=processor, outside=setup)

        try:
            yield run
        finally:
            stdin.close()
