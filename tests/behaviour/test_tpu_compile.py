"""The loss and every config compiled ahead of time for TPU slices, without a TPU: `make test-tpu`."""

import json
import pathlib
import runpy

import pytest

pytestmark = pytest.mark.tpu_compile

COMPILE = """
import dataclasses, json, sys
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.analysis.hlo import collectives, memory
from siglip_jax.losses import sigmoid_loss

topology, batch, dtype, communication, chips, texts = sys.argv[1:]
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
devices = devices[: int(chips)] if chips != "all" else devices
mesh = Mesh(np.asarray(devices).reshape(-1), ("data",), axis_types=(AxisType.Auto,))
rows, scalar = (
    jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec))
    for shape, kind, spec in (((int(batch), 768), dtype, P("data")), ((1,), "float32", P()))
)
like = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=rows.sharding)
labels, text = {}, rows
if texts != "one":
    text = like(int(texts) * int(batch), 768)
    labels = {"groups": like(int(batch), dtype="int32"), "text_groups": like(text.shape[0], dtype="int32")}
options = {"same_group": "mean"} if labels else {}
loss = lambda *a, **k: sigmoid_loss(*a, **k, **options, mesh=mesh, communication=communication)
compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(rows, text, scalar, scalar, **labels).compile()
found = [dataclasses.asdict(c) for c in collectives(compiled.as_text())]
print(json.dumps({"devices": len(devices), "memory": memory(compiled), "collectives": found}))
"""


@pytest.fixture
def compile_loss(python, tpu_compiler):
    """compile_loss(topology, batch, dtype="bfloat16", communication="ring", chips="all", texts="one") -> what the
    program prints. With several texts an image, the positives of one weigh 1/k."""

    def compiled(topology, batch, dtype="bfloat16", communication="ring", chips="all", texts="one"):
        done = python(
            COMPILE, topology, batch, dtype, communication, chips, texts, environment=tpu_compiler, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return compiled


@pytest.mark.parametrize("batch", [32_768, 524_288])
@pytest.mark.parametrize(("topology", "chips"), [("v5e:16x16", 256), ("v5p:8x8x8", 512)])
def test_ring(compile_loss, topology, chips, batch):
    found = compile_loss(topology, batch)
    print(f"{topology}, batch {batch}: bytes per chip {found['memory']}")
    for c in found["collectives"]:
        print(f"  {c}")
    assert found["devices"] == chips
    rows = batch // chips
    texts, gradients = rows * 768 * 2, rows * 768 * 4
    kinds = [c["kind"] for c in found["collectives"]]
    # A hop sends the texts and their gradients; outside the loop the first texts leave, the last gradients come home.
    assert sorted(set(kinds)) == ["all-reduce", "collective-permute"]
    permutes = [c for c in found["collectives"] if c["kind"] == "collective-permute"]
    assert sorted(c["bytes"] for c in permutes if c["in_loop"]) == [texts, gradients]
    assert sorted(c["bytes"] for c in permutes if not c["in_loop"]) == [texts, gradients]
    assert all(c["asynchronous"] for c in permutes)
    assert all(c["overlapped"] for c in permutes if c["in_loop"])
    assert all(c["bytes"] <= 16 for c in found["collectives"] if c["kind"] == "all-reduce")  # loss, t and b
    # The accumulators and what travels, with one tile: never rows of another device but one's.
    tile = min(rows, 1024)
    assert found["memory"]["temporary"] < 6 * gradients + 6 * tile * tile * 4 + 2**20


@pytest.mark.parametrize(
    ("topology", "chips", "ceiling"), [("v5e:2x2", 1, 640), ("v5e:2x4", 8, 80), ("v5e:8x8", 64, 10)]
)
def test_memory_of_an_accelerator(compile_loss, topology, chips, ceiling):
    """MiB at 65,536 rows, all told: on one chip 384 of embeddings and gradients, 192 of float32 text gradients."""
    sizes = compile_loss(topology, 65_536, chips=chips)["memory"]
    print(f"{chips} chip(s), batch 65536: bytes per chip {sizes}")
    assert sum(sizes.values()) / 2**20 < ceiling


@pytest.mark.parametrize("texts", [1, 3])
def test_ring_of_counted_groups(compile_loss, texts):
    """Counts go round once before the texts do; all permutes are asynchronous, with work beside those of the texts."""
    found = compile_loss("v5e:16x16", 32_768, texts=texts)
    permutes = [c for c in found["collectives"] if c["kind"] == "collective-permute"]
    rows = texts * 32_768 // 256
    assert {c["bytes"] for c in permutes} == {rows * 4, rows * 768 * 2, rows * 768 * 4}  # labels, texts, gradients
    assert all(c["asynchronous"] for c in permutes)
    assert all(c["overlapped"] for c in permutes if c["in_loop"] and c["bytes"] > rows * 4)
    assert found["memory"]["temporary"] < 16 * rows * 768 * 4


def test_gather(compile_loss):
    found = compile_loss("v5e:4x4", 4096, communication="gather")
    assert {c["kind"] for c in found["collectives"]} <= {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"}
    assert not any(c["kind"] == "collective-permute" for c in found["collectives"])


def test_float32(compile_loss):
    """Products of float32 stay float32: six passes of the matrix unit, and a program that compiles."""
    assert compile_loss("v5e:2x2", 4096, dtype="float32")["memory"]["temporary"] > 0


# --- the configs ------------------------------------------------------------------------------------------------------

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FOR_TPU = [path for path in sorted(CONFIGS.glob("*.py")) if runpy.run_path(str(path))["get_config"]().topology]


COMPILE_CONFIG = "import sys; from siglip_jax.cli import main; sys.exit(main(['compile', *sys.argv[1:]]))"


@pytest.mark.parametrize("path", FOR_TPU, ids=lambda path: path.stem)
def test_every_config_fits_its_slice(python, tpu_compiler, path):
    done = python(COMPILE_CONFIG, f"--config={path}", environment=tpu_compiler, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    print(done.stdout)
    assert done.stdout.splitlines()[-1].startswith("fits: ")
