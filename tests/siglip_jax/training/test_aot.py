"""Steps compiled before there is a run, against hand counts; where parameters live, against the mesh."""

import math
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

from siglip_jax.analysis import collectives
from siglip_jax.analysis.hardware import CHIPS, parse_topology
from siglip_jax.errors import UserError
from siglip_jax.models.presets import PRESETS
from siglip_jax.models.towers import parameter_shapes
from siglip_jax.training import aot
from siglip_jax.training.optimizer.adamw import make_optimizer
from siglip_jax.training.parallel.sharding import tree_shardings
from siglip_jax.training.parallel.sharding_table import bytes_per_device, sharding_table
from siglip_jax.training.param_rules import path_name
from siglip_jax.training.step import init_state


def abstract_mesh(data, fsdp, tensor):
    return jax.sharding.AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


def state_of(architecture, config):
    return jax.eval_shape(lambda params: init_state(params, make_optimizer(config)), parameter_shapes(architecture))


# --- where parameters live --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [  # without a text head, NaFlex, a width that 16 devices divide and heads they do not, the largest
        "google/siglip-base-patch16-256-multilingual",
        "google/siglip2-so400m-patch16-naflex",
        "google/siglip-base-patch16-512",
        "google/siglip2-giant-opt-patch16-384",
    ],
)
def test_every_kind_of_model_is_covered_and_falls_with_fsdp(name, tiny_config):
    """Bytes per device against the whole."""
    state = state_of(PRESETS[name].architecture, tiny_config)
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    for sizes, share in (((16, 1, 1), 1), ((1, 16, 1), 16), ((4, 4, 1), 4)):
        mesh = abstract_mesh(*sizes)
        here = bytes_per_device(state, tree_shardings(state, mesh))
        assert whole / share <= here < whole / share + 0.01 * whole  # norms, biases and positions are whole
    assert max_unsharded(state, abstract_mesh(1, 16, 1)) < 6 * 2**20


def max_unsharded(state, mesh):
    """Bytes of the largest array that is the same on every device."""
    shardings = tree_shardings(state, mesh)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    return max(x.size * x.dtype.itemsize for x, s in pairs if s.shard_shape(x.shape) == x.shape)


def test_a_parameter_without_a_rule_is_an_error():
    leaf = jax.ShapeDtypeStruct((4, 4), np.float32)
    with pytest.raises(ValueError, match="no rule covers img/adapter/kernel; add a rule"):
        tree_shardings({"img": {"adapter": {"kernel": leaf}}}, abstract_mesh(1, 2, 1))
    with pytest.raises(ValueError, match=r"txt/head/kernel \(4,\): its sharding rule, .* is for another rank"):
        tree_shardings({"txt": {"head": {"kernel": leaf.update(shape=(4,))}}}, abstract_mesh(1, 2, 1))


def test_the_table_lists_every_parameter_with_its_bytes(tiny_model, tiny_config):
    state = state_of(tiny_model.architecture, tiny_config)
    lines = sharding_table(state, abstract_mesh(1, 2, 2)).splitlines()
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state["params"])]
    assert [line.split()[0] for line in lines[1:-2]] == names
    kernel = next(line for line in lines if line.startswith("img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"))
    assert kernel.split() == [kernel.split()[0], "2x16x32", "-,", "fsdp,", "tensor", f"{2 * 8 * 16 * 4:,}"]
    sizes = [int(line.split()[-1].replace(",", "")) for line in lines[1:]]
    assert sum(sizes[:-2]) == sizes[-2]
    assert sizes[-1] == 2 * sizes[-2] + 8  # two moments and two counters


# --- bytes between devices --------------------------------------------------------------------------------------------

HLO = """HloModule by_hand

%body (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %start = (bf16[64]{0}, bf16[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=1
  %whole = f32[128]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (p: (s32[], bf16[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%unknown (p: s32[]) -> s32[] {
  %ends = s32[] add(%p, %p)
}

%start (x: f32[16]) -> f32[128] {
  %g0 = f32[128]{0} all-gather(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %c = f32[128]{0} custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (x: f32[16]) -> f32[128] {
  ROOT %g1 = f32[128]{0} all-gather(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%all-reduce-scatter.1 (x: f32[128]) -> f32[64] {
  %r = f32[128]{0} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%add
}

%hops (p: (bf16[64], u32[])) -> (bf16[64], u32[]) {
  %two = u32[]{:T(128)} constant(2), metadata={op_name="with%percent"}
  %seven = u32[]{:T(128)} constant(7)
  %count = u32[]{:T(128)} get-tuple-element(%p), index=1
  %next = u32[]{:T(128)} add(%count, %two), backend_config={"x":[]}
  %hop = bf16[32]{0} collective-permute(%y), channel_id=2
  ROOT %both = (bf16[64], /*index=5*/u32[]) tuple(%hop, /*index=5*/%next)
}

%hopping (p: (bf16[64], u32[])) -> pred[] {
  %end = u32[]{:T(128)} constant(7)
  %at = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %below = pred[] compare(%at, %end), direction=LT
}

ENTRY %main (x: f32[16]) -> f32[] {
  %loop3 = (bf16[64], u32[]) while(%t3), condition=%hopping, body=%hops
  %loop = (s32[], bf16[64]) while(%t0), condition=%condition, body=%body
  %loop2 = s32[] while(%t1), condition=%unknown, body=%unknown
  %f0 = f32[128]{0} fusion(%x), kind=kCustom, calls=%start
  %f1 = f32[128]{0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %f2 = f32[64]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %sum = (f32[], f32[3]) all-reduce(%s, %u), to_apply=%add
}
"""


def test_a_text_by_hand():
    assert collectives.sent(HLO, devices=8) == pytest.approx(
        {
            "all-gather": 5 * 512 * 3 / 4 + 512 * 7 / 8,
            "all-reduce": 2 * 16 * 7 / 8,
            "collective-permute": 5 * (128 + 4) + 4 * 64,  # of 0, 2, 4, 6
            "reduce-scatter": 512 / 2,
        }
    )
    silent = HLO.replace("%limit = s32[]{:T(128)} constant(5)", "")
    with pytest.raises(UserError, match="start in a loop of unknown length"):
        collectives.sent(silent, devices=8)


COMPILE = """
import sys, jax, runpy
from siglip_jax.training import aot
config = runpy.run_path(sys.argv[1])["get_config"]()
config.mesh.update(data=2, fsdp=2, tensor=2)
step = aot.build_step(config)
report, compiled = aot.compile_step(config, step, capacity=2**30)
print(aot.describe(report)); print(aot.verdict(report))
assert aot.time_step(step, compiled) > 0
assert report.memory["arguments"] - report.state in range(0, 100_000), (report.memory, report.state)
assert report.flops == report.model_flops > 0
"""


def test_eight_devices(python, config_file):
    """XLA's own count of the arguments is the table's plus the batch's."""
    done = python(COMPILE, config_file, devices=8)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "8 devices"
    assert re.search(r"sent per step and device: [\d.]+ MiB \(.*all-reduce", done.stdout)
    assert lines[-1].startswith("fits: 0.00 of 1 GiB")


def test_advice_is_the_cheapest_change_that_is_left(tiny_config):
    config, mesh = tiny_config, abstract_mesh(2, 2, 1)

    def advice(**changes):
        config.update_from_flattened_dict(changes)
        return aot._advice(config, mesh, state=1, capacity=100.0)

    assert aot._advice(config, mesh, state=40, capacity=100.0) == "--config.mesh.fsdp=4 --config.mesh.data=1"
    assert advice() == "--config.model.remat=dots_no_batch"
    assert advice(**{"model.remat": "dots_no_batch"}) == "--config.model.remat=full"
    assert advice(**{"model.remat": "full"}) == "--config.microbatch=2"
    assert advice(microbatch=2) == "--config.microbatch=1"
    assert advice(microbatch=1) == "more chips, or --config.batch_size=8"


# --- chips and the program --------------------------------------------------------------------------------------------


def test_topologies():
    assert parse_topology("v5e:16x16") == (CHIPS["v5e"], 256)
    assert parse_topology("v5p:8x8x8") == (CHIPS["v5p"], 512)
    for wrong in ("", "v5e", "v9:2x2", "v5e:2", "v5e:2xtwo", "16x16"):
        with pytest.raises(UserError, match=r"expected one of v4, v5e, v5p, v6e, tpu7x and its shape"):
            parse_topology(wrong)


def test_the_bound_on_mfu():
    report = aot.Report(
        devices=4,
        capacity=16e9,
        needed=1e9,
        memory={"arguments": 1},
        state=1,
        flops=4 * 197e12,
        model_flops=3 * 197e12,
        sent={"all-reduce": 100e9},
        fits=True,
        advice="",
    )
    assert report.seconds(CHIPS["v5e"]) == pytest.approx((0.75, 1.0, 0.5))
    said = aot.describe(report, chip=CHIPS["v5e"])
    assert "MFU at most 75 % with all transfers hidden behind products, 50 % with none" in said
    assert "recomputation adds 33 %" in said


def test_without_libtpu_one_line_names_the_extra(config_file, monkeypatch, capsys):
    from siglip_jax.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["compile", f"--config={config_file}", "--topology=v5e:2x2"]) == 2
    assert "pip install siglip-jax[tpu]" in capsys.readouterr().err
    assert main(["compile", f"--config={config_file}"]) == 2
    assert "names no TPU slice; give one" in capsys.readouterr().err


COMPILE_FOR_TPU = "import sys; from siglip_jax.cli import main; sys.exit(main(['compile', *sys.argv[1:]]))"


def test_a_tiny_config_for_a_tpu_slice(python, config_file, tpu_compiler):
    """The configs of this repository are compiled by `make test-tpu`."""
    flags = [f"--config={config_file}", "--topology=v5e:2x4", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    done = python(COMPILE_FOR_TPU, *flags, "--config.batch_size=64", "--table", environment=tpu_compiler)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    assert done.stdout.startswith("parameter ")
    assert "\n8 v5e chips\n" in done.stdout
    assert re.search(r"sent per step and v5e chip: [\d.]+ MiB \(.*all-gather", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("fits: 0.0")


def test_every_config_names_where_it_runs():
    """Its slice and its launch command."""
    for path in sorted((pathlib.Path(__file__).parents[3] / "configs").glob("*.py")):
        module = runpy.run_path(str(path))
        config, said = module["get_config"](), module["__doc__"]
        assert (config.topology or "laptop CPU") in said, path
        assert "siglip-jax train --config=configs/" in said or "make demo" in said, path
        if config.topology:
            _, chips = parse_topology(config.topology)
            assert config.batch_size % chips == 0, path


def test_dry_run(config_file, shop_dataset, tmp_path, capsys):
    """Says what a run would take, and leaves nothing behind."""
    from siglip_jax.cli import main

    flags = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", *flags, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("parameter ")
    assert re.search(r"20 steps of 16, [\d.]+ epochs of \d+ rows: 0\.\d\d hours at [\d.]+ s a step", out)
    assert out.splitlines()[-1].startswith("fits: 0.0")
    assert not (tmp_path / "run").exists()
    # What training would refuse, it refuses.
    for wrong, message in (
        (["--config.batch_size=4096"], "batch_size=4096 on 1 process needs 4096 rows"),
        (["--config.data.crop_area=0.7,1", "--config.data.cache=True"], "cache with crop_area"),
        (["--config.data.title_attributes=absent"], "title_attributes has absent"),
    ):
        assert main(["train", *flags, "--dry-run", *wrong]) == 2
        assert message in capsys.readouterr().err
