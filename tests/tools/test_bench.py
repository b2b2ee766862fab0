"""The benches run and say what their parts do; how fast they are is no matter for a test."""

import pytest

from siglip_jax import cli
from tools import measuring, peer_transformers

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


@pytest.mark.parametrize("limit", [1, 17, 100, 999])
def test_the_largest_that_fits(limit):
    found = measuring.largest(lambda size: size <= limit * 8, step=8)
    assert found % 8 == 0
    assert limit * 8 * 15 / 16 <= found <= limit * 8
    assert measuring.largest(lambda size: False, step=8) == 0


STEP = ["bench", "step", "--preset=small", "--dtype=float32"]


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
