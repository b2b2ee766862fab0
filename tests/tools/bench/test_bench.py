"""The benches run and say what their parts do; how fast they are is no matter for a test."""

import os
import pathlib
import re
import shutil

import pytest

import tools.bench
from siglip_jax import cli
from tools.bench import measuring, peer_transformers

ADDED = '''"""siglip-jax bench added: how long nothing takes.

More about it.
"""

import numpy as np


def define_flags(values):
    pass


def main(values):
    print(f"{np.zeros(1).sum()} s")
'''


def test_a_bench_is_one_file(python, tmp_path):
    """A file put into the folder is listed and runs; the list is made without what benches import."""
    shutil.copytree(pathlib.Path(tools.bench.__file__).parents[1], tmp_path / "tools")
    (tmp_path / "tools" / "bench" / "added.py").write_text(ADDED)
    code = (
        "import sys; from siglip_jax.cli import main; assert main(['bench', '--help']) == 0;"
        "print(sorted({'jax', 'numpy', 'tensorflow', 'tools.bench.loss'} & set(sys.modules)));"
        "sys.exit(main(['bench', 'added']))"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = python(code, cwd=tmp_path, environment={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    *listed, loaded, printed = done.stdout.splitlines()
    assert re.search("^  added +how long nothing takes.$", "\n".join(listed), re.M)
    assert loaded == "[]"
    assert printed == "0.0 s"


def test_every_bench_is_listed():
    """Those files that have flags, and no others."""
    folder = pathlib.Path(tools.bench.__file__).parent
    benches = {path.stem for path in folder.glob("*.py") if "\ndef define_flags(" in path.read_text()}
    assert {"loss", "step", "rank"} < benches
    assert set(tools.bench.COMMANDS) == benches


FLOPS = {
    "sigmoid_loss": "1.000",
    "dense formula under jit": "1.000",
    "scan of checkpointed tiles": "1.333",  # the logits twice
    "floor: three plain matmuls": "1.000",
}


def flops_of(lines):
    return {name: line.split()[-1] for line in lines for name in FLOPS if line.startswith(name)}


def test_loss(capsys):
    assert cli.main(["bench", "loss", "--batch=96", "--dim=8", "--repetitions=2", "--dtype=bfloat16", "--tile=40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert flops_of(lines) == FLOPS
    ours = next(line for line in lines if line.startswith("sigmoid_loss")).split()
    assert ours[3] == "1.00"  # x ours
    assert all(float(figure) > 0 for figure in ours[1:3])
    for line in lines:
        if line.startswith(tuple(FLOPS)):
            *parts, total = map(float, line.split()[-5:-1])
            assert total == pytest.approx(sum(parts), abs=0.2)
    assert "which only a CPU makes for a product of bfloat16" in lines[-1]


def test_memory_of_the_loss(capsys):
    """65,536 rows in bfloat16: 384 MiB of embeddings and gradients, 384 of copies that only a CPU makes, 212 more."""
    options = ["--batch=65536", "--dtype=bfloat16", "--only=ours", "--repetitions=0"]
    assert cli.main(["bench", "loss", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    arguments, results, _, total = map(float, lines[-2].split()[-5:-1])
    assert arguments == results == 192
    copies, without = (float(lines[-1].split(" MiB")[k].split()[-1]) for k in (0, 1))
    assert copies == 384
    assert without == pytest.approx(total - copies, abs=0.2)
    assert without < 640


def test_loss_on_eight_devices(python):
    code = "import sys; from siglip_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "bench", "loss", "--batch=96", "--dim=8", "--devices=8", "--repetitions=1", devices=8)
    assert done.returncode == 0, done.stderr
    assert flops_of(done.stdout.splitlines()) == FLOPS


@pytest.mark.slow
def test_largest_batch(capsys):
    options = ["--dim=8", "--memory_gib=0.25", "--only=ours", "--only=dense"]
    assert cli.main(["bench", "loss", "--largest_batch", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {name: int(lines[-k].split()[-1].replace(",", "")) for k, name in ((2, "ours"), (1, "dense"))}
    # One float32 matrix of logits is 64 MiB at 4,096 rows, 256 at 8,192.
    assert 4096 <= rows["dense"] < 8192
    assert rows["ours"] > 20 * rows["dense"]


def test_accuracy(capsys):
    assert cli.main(["bench", "loss", "--accuracy", "--batch=64", "--dim=16"]) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0].startswith("the exact one, rounded")
    for line in lines:
        assert all(float(error) < 1e-5 for error in line.split()[-5:]), line


def test_accuracy_beside_rounded_logits(capsys):
    """At exp(t) = 112.3 rounding a similarity to bfloat16 moves its logit by up to 0.2 % of up to 112: a gradient error
    far above that of our bfloat16."""
    options = ["--batch=1024", "--dim=768", "--dtype=bfloat16", "--only=ours"]
    assert cli.main(["bench", "loss", "--accuracy", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    ours, in_bfloat16 = (
        next([float(error) for error in line.split()[-5:]] for line in lines if line.startswith(title))
        for title in ("sigmoid_loss", "<x, y> in bfloat16")
    )
    assert max(ours[1:3]) < 8e-3
    assert min(in_bfloat16[1:3]) > 2 * max(ours[1:3])


@pytest.mark.parametrize(("seconds", "others", "expected"), [([2, 9, 4], [1, 3, 4], 2), ([1], [4], 0.25)])
def test_ratio_is_the_median_over_pairs(seconds, others, expected):
    assert measuring.ratio(seconds, others) == expected


def test_all_run_in_turn():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    assert {name: len(times) for name, times in measuring.interleaved(runs, repetitions=3).items()} == {"a": 3, "b": 3}
    assert called == ["a", "b"] * 4


@pytest.mark.parametrize("limit", [1, 17, 100, 999])
def test_the_largest_that_fits(limit):
    found = measuring.largest(lambda size: size <= limit * 8, step=8)
    assert found % 8 == 0
    assert limit * 8 * 15 / 16 <= found <= limit * 8
    assert measuring.largest(lambda size: False, step=8) == 0


STEP = ["bench", "step", "--preset=small", "--dtype=float32"]


@pytest.mark.slow
def test_step(capsys, monkeypatch):
    """Micro-batches give the loss of the whole batch; without PyTorch there is a line that says so."""
    monkeypatch.setattr(peer_transformers.importlib.util, "find_spec", lambda name: None)
    assert cli.main([*STEP, "--batch=8", "--microbatch=2", "--repetitions=1"]) == 0
    out = capsys.readouterr().out
    assert "transformers left out: torch and transformers not installed\n" in out
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    ours, micro = rows["siglip-jax"], rows["siglip-jax, micro-batches of 2"]
    assert ours[-1] == micro[-1]  # loss
    assert ours[-5] == "1.00"  # x ours
    assert float(micro[-2]) <= float(ours[-2])  # GiB
    assert cli.main([*STEP, "--batch=8", "--microbatch=3"]) == 2
    assert "--microbatch=3 does not divide --batch=8" in capsys.readouterr().err


def test_step_beside_transformers(capsys):
    """Where both are installed: the same loss from the same weights and batch."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    assert cli.main([*STEP, "--batch=8", "--repetitions=1", "--only=ours", "--only=torch"]) == 0
    ours, theirs = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert (ours[0], theirs[0]) == ("siglip-jax", "transformers")
    assert float(theirs[-1]) == pytest.approx(float(ours[-1]), abs=2e-3)


@pytest.mark.slow
def test_step_largest_batch(capsys):
    options = ["--largest_batch", "--memory_gib=0.2", "--only=ours", "--only=microbatched", "--microbatch=16"]
    assert cli.main([*STEP, *options]) == 0
    whole, cut = (int(line.split()[-1].replace(",", "")) for line in capsys.readouterr().out.splitlines()[-2:])
    assert 8 <= whole < cut / 4


def test_encode(capsys):
    assert cli.main(["bench", "encode", "--count=5", "--repetitions=2"]) == 0
    rows = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["bare jitted function"][-2] == "1.00"
    assert float(rows["Model.encode_image"][-1]) > 0
    for preset, message in (
        ("google/siglip9", "siglip-jax models lists"),
        ("google/siglip2-base-patch16-naflex", "one"),
    ):
        assert cli.main(["bench", "encode", f"--preset={preset}"]) == 2
        assert message in capsys.readouterr().err


def test_rank(capsys):
    assert cli.main(["bench", "rank", "--queries=300", "--chunk=200", "--levels=9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ties; rule docid" in lines[1]
    difference = next(line for line in lines if line.startswith("largest difference"))
    assert "over the first 200 queries" in difference
    assert float(difference.split()[-1]) < 1e-9
    names = ("rank_metrics", "pytrec_eval with its dicts", "  without")
    assert all(any(line.startswith(name) for line in lines) for name in names)
    assert cli.main(["bench", "rank", "--metrics=ERR@5"]) == 2
    assert "trec_eval has no such metric" in capsys.readouterr().err


def test_abtest(capsys):
    flags = ["--runs=2", "--users=400", "--days=5", "--ratio_users=200000"]
    assert cli.main(["bench", "abtest", *flags]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^CTR +\d+\.0 % +\d+\.0 % +\d+\.0 %$", printed)
    assert re.search(r"(?m)^51\.0 to 49\.0 +100\.00 %$", printed)
    assert re.search(r"(?m)^correlation 0\.9   0\.8[01]\d\d   theory 0\.8100$", printed)


def test_input(capsys, shop_dataset):
    options = ["--count=8", "--batch=4", "--repetitions=1", "--shortest=40", "--longest=90", "--size=32", "--notf_data"]
    kinds = ["--resize=bilinear_no_antialias", "--resize=bilinear_pad"]
    assert cli.main(["bench", "input", f"--dataset={shop_dataset}", "--workers=0", *options, *kinds]) == 0
    out = capsys.readouterr().out
    rows = {title: line.split() for line in out.splitlines() for title in [line.split("  ")[0]]}
    assert rows["libjpeg-turbo, decoding alone"][-2] == "1.00"
    for kind in ("bilinear_no_antialias", "bilinear_pad"):
        assert rows[f"decode + resize, {kind}"][-1] == "-"
        for title in (f"loader, {kind}, 1 thread", "PIL loop, bilinear"):
            assert float(rows[title][-2]) > 0
        assert f"loader, {kind}, 1 thread: " in out  # the waiting
    for wrong, message in (
        ("--batch=5", "--count=8 is not a multiple of --batch=5"),
        ("--longest=20", "--shortest=40 exceeds --longest=20"),
        ("--count=4000", r"--count=4000: split train"),
    ):
        assert cli.main(["bench", "input", f"--dataset={shop_dataset}", *options, wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_input_beside_tf_data_and_with_workers(capsys):
    pytest.importorskip("tensorflow")
    options = ["--count=16", "--batch=4", "--repetitions=1", "--size=32", "--workers=1", "--resize=bilinear"]
    assert cli.main(["bench", "input", *options]) == 0
    out = capsys.readouterr().out
    assert "tf.data, 1 thread" in out
    assert "loader, bilinear, 1 workers" in out


def test_pictures(capsys, shop_dataset):
    assert cli.main(["bench", "pictures", f"--dataset={shop_dataset}", "--count=3", "--repetitions=1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ours = [row for row in rows if "(ours)" in row]
    assert [row[0] for row in ours] == ["simplejpeg", "numba", "numba"]
    assert all(row[-2:] == ["0", "0.000"] for row in ours)  # equal to PIL


def test_resize(capsys, shop_dataset, trained_workdir, config_file):
    options = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--model={trained_workdir}", "--enlarge=3"]
    kinds = ["--resize=bilinear", "--resize=bilinear_scaled_decode", "--resize=bilinear_pad:edge"]
    assert cli.main(["bench", "resize", *options, *kinds]) == 0
    out = capsys.readouterr().out
    assert all(kind.removeprefix("--resize=") in out for kind in kinds)
    for wrong, message in (
        ("nearest", "resize='nearest'; expected one of"),
        ("bilinear_pad", "fill=''; expected one of white, grey, edge"),
        ("naflex", "one fixed size"),
    ):
        assert cli.main(["bench", "resize", *options, f"--resize={wrong}"]) == 2
        assert message in capsys.readouterr().err


def test_build(capsys, tmp_path):
    assert cli.main(["bench", "build", "--rows=900", f"--workdir={tmp_path / 'work'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "of 900 rows kept" in lines[0]
    assert [line.split()[1] for line in lines if line.startswith("checked")] == [str(90 * k) for k in range(1, 11)]
    assert float(lines[-2].split()[-1]) > 50  # MiB
    assert list((tmp_path / "work").iterdir()) == []


def test_build_and_audit(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert cli.main(["bench", "build", "--rows=450", f"--audit={page}", f"--workdir={tmp_path / 'work'}"]) == 0
    told = capsys.readouterr().out
    assert "445 of 450 rows kept" in told
    assert re.search(r"^audit: [\d.]+ s, \d+ MiB at most, \d+ before it began; 445 of 450 rows kept; ", told, re.M)
    assert "445 of 450 rows kept" in page.read_text(encoding="utf-8")
    assert not list((tmp_path / "work").iterdir())
    assert cli.main(["bench", "build", "--rows=450", "--audit=page"]) == 2
    assert "expected a file name ending in .html" in capsys.readouterr().err
