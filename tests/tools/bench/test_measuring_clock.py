"""What a bench prints as a time is one: work that takes 50 ms is read as 50 ms, through the bench's own path."""

import importlib
import pathlib
import tempfile
import time
import types

import numpy as np
import pytest

import tools.bench
from siglip_jax import cli
from tools.bench import build, duplicates, input, loss, measuring, peer_transformers, pictures, rank, step

SLEEP = 0.05


def nap(*_, **__):
    time.sleep(SLEEP)


def printed_row(capsys, title):
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith(title))[len(title) :].split()


def loss_seconds(monkeypatch, capsys):
    import jax

    def sleeping(x, y, t, b):
        nothing = jax.ShapeDtypeStruct((), np.float32)
        return jax.pure_callback(lambda t: nap() or np.float32(0.7), nothing, t)

    monkeypatch.setattr(loss, "functions", lambda values, mesh: {"ours": sleeping})
    assert cli.main(["bench", "loss", "--batch=16", "--dim=4", "--repetitions=3", "--only=ours"]) == 0
    return float(printed_row(capsys, loss.TITLES["ours"])[0]) / 1e3


class SleepingStep:
    """A compiled step, and a peer, whose run sleeps and gives a loss that is no time."""

    title = "transformers"

    def __init__(self, *_, **__):
        self.input_shardings = [(None, None)]

    def __call__(self, state, batch):
        nap()
        return state, {"loss": np.float32(0.7)}

    def run(self, batch):
        nap()
        return 0.7

    def peak_gib(self):
        return "-"


def step_seconds(monkeypatch, capsys, title="siglip-jax"):
    report = types.SimpleNamespace(model_flops=1e9, needed=2**30)
    monkeypatch.setattr(step, "compiled_step", lambda *_, **__: (None, report, SleepingStep()))
    monkeypatch.setattr(peer_transformers, "missing", lambda architecture: "")
    monkeypatch.setattr(peer_transformers, "TransformersStep", SleepingStep)
    assert cli.main(["bench", "step", "--preset=small", "--dtype=float32", "--batch=8", "--repetitions=3"]) == 0
    row = printed_row(capsys, title)
    milliseconds, images_per_second = float(row[0]), float(row[1])
    assert images_per_second == pytest.approx(8e3 / milliseconds, rel=0.01)
    assert row[-1] == "0.7000"  # the loss, where the loss stands
    return milliseconds / 1e3


def peer_seconds(monkeypatch, capsys):
    return step_seconds(monkeypatch, capsys, title="transformers")


def encode_seconds(monkeypatch, capsys):
    from siglip_jax.model import Model

    monkeypatch.setattr(Model, "encode_image", lambda *_, **__: nap() or np.zeros((1, 4), np.float32))
    assert cli.main(["bench", "encode", "--count=1", "--repetitions=3"]) == 0
    return float(printed_row(capsys, "Model.encode_image")[0]) / 1e3


def duplicates_seconds(monkeypatch, capsys):
    from input_pipeline.duplicates import near_images
    from siglip_jax import preprocessing

    monkeypatch.setattr(near_images, "image_signature", nap)
    monkeypatch.setattr(preprocessing, "decode_image", lambda data: data)
    rows = {row[0]: row[1] for row in duplicates._cost([b"one"])[1]}
    return float(rows["signature"]) / 1e3


def input_seconds(monkeypatch, capsys):
    times = measuring.timings({"pass": input.timed(nap)}, repetitions=3)["pass"]
    assert max(one.processor for one in times) < SLEEP / 2
    return min(one.each for one in times)


def loader_seconds(monkeypatch, capsys):
    """A pass of 5 batches that take 10 ms each; what fills the queue before is no part of it."""

    def batches():
        while True:
            time.sleep(SLEEP / 5)
            yield "batch"

    run = input.Steady(batches(), 5, ahead=4)
    return min(one.each for one in measuring.timings({"loader": run}, repetitions=2)["loader"])


def pictures_seconds(monkeypatch, capsys):
    """Of the processor, so a run that sleeps would take none: this one computes."""

    def busy(file):
        end = time.process_time() + SLEEP
        while time.process_time() < end:
            pass
        return np.zeros((2, 2, 3), np.uint8)

    rows = pictures.compare({"PIL": busy}, [b"one"], repetitions=3)
    return float(rows[0][1]) / 1e3


def rank_seconds(monkeypatch, capsys):
    import eval.metrics

    def rank_metrics(scores, labels, *, metrics, **_):
        nap()
        return {name: np.arange(len(scores), dtype=np.float64) for name in metrics}

    monkeypatch.setattr(eval.metrics, "rank_metrics", rank_metrics)
    monkeypatch.setattr(rank.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "rank", "--queries=40"]) == 0
    return float(printed_row(capsys, "rank_metrics")[0])


def filters_seconds(monkeypatch, capsys):
    from eval.search.answers import Answers

    answer = Answers.of_vector
    monkeypatch.setattr(Answers, "of_vector", lambda *given, **named: nap() or answer(*given, **named))
    assert cli.main(["bench", "filters", "--items=20", "--dim=4", "--queries=2"]) == 0
    return 1 / float(printed_row(capsys, "no filter")[3])


NAPPING = """
import sys, time, numpy
for number, line in enumerate(sys.stdin):
    if number == 0:
        numpy.save(__import__("json").loads(line)["save"], numpy.eye(4, dtype=numpy.float32))
    else:
        time.sleep(0.05)
    print('{"peak_mib": 7}', flush=True)
"""


def export_seconds(monkeypatch, capsys):
    """Of consumers that sleep, each in its process."""
    from tools.bench import export
    from tools.bench.export_parts import consumer_process, export_rows

    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "napping.py"
        program.write_text(NAPPING)
        monkeypatch.setattr(consumer_process, "PROGRAM", program)
        monkeypatch.setattr(export, "_model", lambda values: (None, "no model"))
        monkeypatch.setattr(export, "_pictures", lambda folder, count: [b"one"] * count)
        monkeypatch.setattr(export_rows, "write_exports", lambda model, folder, names: {n: folder / n for n in names})
        assert cli.main(["bench", "export", "--count=4", "--repetitions=3", "--singles=3", "--rows=stablehlo"]) == 0
    mebibytes, pictures, times_jax, milliseconds, _, peak, cosine = printed_row(capsys, "stablehlo")
    assert (mebibytes, peak, cosine) == ("0", "7", "1.000000")
    assert SLEEP * 0.9 <= 4 / float(pictures) < 2 * SLEEP
    assert float(times_jax) == pytest.approx(1, abs=0.5)
    return float(milliseconds) / 1e3


def build_seconds(monkeypatch, capsys):
    from input_pipeline import building

    def build_dataset(catalogue, output, **_):
        list(catalogue.items())
        nap()
        pathlib.Path(output).mkdir()
        return {"kept": 1000}

    monkeypatch.setattr(building, "build_dataset", build_dataset)
    assert cli.main(["bench", "build", "--rows=1000"]) == 0
    return 1000 / float(printed_row(capsys, "split and written")[0])


def audit_seconds(monkeypatch, capsys):
    from input_pipeline import audit
    from input_pipeline.audit import audit_page

    page = "/dev/null"
    monkeypatch.setattr(audit, "audit_dataset", nap)
    monkeypatch.setattr(audit_page, "headline", lambda audit: "")
    return build._audited("dataset", page)[0]


READ = {
    "loss": loss_seconds,
    "step": step_seconds,
    "step, peer": peer_seconds,
    "encode": encode_seconds,
    "duplicates": duplicates_seconds,
    "input": input_seconds,
    "input, loader": loader_seconds,
    "pictures": pictures_seconds,
    "rank": rank_seconds,
    "build": build_seconds,
    "filters": filters_seconds,
    "build, audit": audit_seconds,
    "export": export_seconds,
}


@pytest.mark.parametrize("bench", READ)
def test_a_run_of_50_ms_is_read_as_50_ms(bench, monkeypatch, capsys):
    assert SLEEP * 0.9 <= READ[bench](monkeypatch, capsys) < 2 * SLEEP


def test_every_bench_that_prints_times_is_read_above():
    """finetune, formats, resize and verdicts compare, and print no time; recipes has a clock around whole trainings,
    compiling included; search and serve measure other processes. The parts of gpu are below."""
    read = {name.partition(",")[0] for name in READ}
    others = {"finetune", "formats", "resize", "verdicts", "gpu", "recipes", "search", "serve"}
    assert set(tools.bench.COMMANDS) - read == others


@pytest.mark.parametrize("part", ["loss", "encode", "search"])
def test_a_part_of_the_gpu_bench_reads_50_ms(part, monkeypatch, tmp_path):
    """Its rows' ms, with the wait for the device asleep."""
    import jax

    from tools.bench.gpu_parts.budget import PartBudget

    monkeypatch.setattr(jax, "block_until_ready", nap)
    module = importlib.import_module(f"tools.bench.gpu_parts.{part}")
    rows = module.rows(PartBudget(tiny=True, folder=tmp_path, deadline=time.monotonic() + 600))
    row = next(row for row in rows if "ms" in row)
    assert SLEEP <= row["ms"] / 1e3 < 2 * SLEEP


@pytest.mark.parametrize("result", [0.7, np.float64(0.7), 3, None, (0.1, 0.2)])
def test_what_a_run_returns_is_no_time(result):
    runs = {"run": lambda: nap() or result}
    assert measuring.interleaved(runs, repetitions=2)["run"] == pytest.approx([SLEEP] * 2, rel=0.9)


def test_a_run_may_time_itself():
    def run():
        nap()
        nap()
        return measuring.Timed(seconds=SLEEP, passes=2, outside=SLEEP)

    assert measuring.interleaved({"run": run}, repetitions=3) == {"run": [SLEEP / 2] * 3}


@pytest.mark.parametrize("claim", [0.7, 1e-6, 2 * SLEEP])
def test_times_that_contradict_the_wall_clock_are_refused(claim):
    """Too long, as a loss was, or too short for what the calls took."""
    runs = {"run": lambda: nap() or measuring.Timed(seconds=claim), "other": nap}
    with pytest.raises(measuring.ClockError, match=r"run: times of .* but the wall clock says"):
        measuring.interleaved(runs, repetitions=4)
