"""Eight devices in three arrangements against one: the same hundred steps, compiled once, as XLA was told."""

import json

import numpy as np
import pytest

TRAIN = """
import json, runpy, sys
import jax, numpy as np
from siglip_jax import model as models
from siglip_jax.training import aot
from siglip_jax.training.optimizer.adamw import make_optimizer
from siglip_jax.training.parallel.sharding import to_devices, tree_shardings
from siglip_jax.training.start.spec import outline
from siglip_jax.training.step import init_state

config = runpy.run_path(sys.argv[1])["get_config"]()
config.steps = 100
module, _ = outline(config)
start = jax.device_get(models.init(module, None, seed=0).params)
rng = np.random.default_rng(0)
batches = [
    {
        "image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
        "text": rng.integers(0, 400, (16, 8), np.int32),
        "group": np.array([0, 0, *range(2, 16)], np.int32),
    }
    for _ in range(4)
]
for sizes in ((1, 1, 1), tuple(map(int, sys.argv[2:]))):
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes)))
    step = aot.build_step(config, devices=jax.devices()[: int(np.prod(sizes))])
    shardings = tree_shardings(step.state, step.mesh)
    state = jax.jit(lambda p: init_state(p, make_optimizer(config)), out_shardings=shardings)(start)
    losses = []
    for number in range(100):
        state, metrics = step.function(state, to_devices(batches[number % 4], step.mesh))
        losses.append(float(metrics["loss"]))
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    print(json.dumps({"sizes": sizes, "losses": losses, "compiled": step.function._cache_size(), "bytes": here}))
"""


REMATERIALISED = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

devices = jax.devices()
if sys.argv[1] == "tpu":
    from tools.compile import tpu_devices
    devices = tpu_devices("v5e:2x4")
mesh = Mesh(np.asarray(devices).reshape(2, 2, 2), ("a", "b", "c"), axis_types=(AxisType.Auto,) * 3)
rows, columns = NamedSharding(mesh, P("a", None)), NamedSharding(mesh, P(None, ("c", "a")))
x = jax.ShapeDtypeStruct((64, 64), "float32", sharding=rows)
jax.jit(lambda x: jax.lax.with_sharding_constraint(2 * x, columns)).lower(x).compile()
"""


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_warning_that_other_tests_look_for_is_seen(python, request, platform):
    """A program that XLA can only serve by gathering the whole array, which it says on stderr."""
    environment = request.getfixturevalue("tpu_compiler") if platform == "tpu" else {}
    done = python(REMATERIALISED, platform, devices=8, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "Involuntary full rematerialization" in done.stderr


# The tiny model has more norms and biases than a real one (test_aot.py), and tensor leaves the embedding whole.
@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "share"), [((8, 1, 1), 1), ((1, 8, 1), 0.25), ((2, 2, 2), 0.45)], ids=str)
def test_a_hundred_steps_are_those_of_one_device(python, config_file, sizes, share):
    done = python(TRAIN, config_file, *sizes, devices=8)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    one, eight = map(json.loads, done.stdout.splitlines())
    print(sizes, np.max(np.abs(np.divide(eight["losses"], one["losses"]) - 1)), eight["bytes"] / one["bytes"])
    assert one["losses"][-1] < 0.7 * one["losses"][0]  # it learns, so that there is something to differ in
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-5)
    assert eight["compiled"] == 1
    assert eight["bytes"] <= share * one["bytes"]
