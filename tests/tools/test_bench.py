"""The benches run and say what their parts do; how fast they are is no matter for a test."""

import pytest

from siglip_jax import cli
from tools import measuring

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


def test_loss_on_eight_devices(python):
    code = "import sys; from siglip_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "bench", "loss", "--batch=96", "--dim=8", "--devices=8", "--repetitions=1", devices=8)
    assert done.returncode == 0, done.stderr
    assert flops_of(done.stdout.splitlines()) == FLOPS


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


@pytest.mark.parametrize(("seconds", "others", "expected"), [([2, 9, 4], [1, 3, 4], 2), ([1], [4], 0.25)])
def test_ratio_is_the_median_over_pairs(seconds, others, expected):
    assert measuring.ratio(seconds, others) == expected


def test_all_run_in_turn():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    assert {name: len(times) for name, times in measuring.interleaved(runs, repetitions=3).items()} == {"a": 3, "b": 3}
    assert called == ["a", "b"] * 4


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


def test_build(capsys, tmp_path):
    assert cli.main(["bench", "build", "--rows=900", f"--workdir={tmp_path / 'work'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "of 900 rows kept" in lines[0]
    assert [line.split()[1] for line in lines if line.startswith("checked")] == [str(90 * k) for k in range(1, 11)]
    assert float(lines[-2].split()[-1]) > 50  # MiB
    assert list((tmp_path / "work").iterdir()) == []
