"""The mesh, where arrays live on it, and several devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing
from siglip_jax.training.optimizer.adamw import make_optimizer
from siglip_jax.training.parallel.sharding import make_mesh, to_devices, tree_shardings
from siglip_jax.training.param_rules import path_name
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.step import init_state

TRAIN = "import sys; from siglip_jax.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"


def named_leaves(tree) -> dict:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((4, 2, 1), (4, 2, 1)), ((1, 1, -1), (1, 1, 8))],
)
def test_mesh(sizes, shape):
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices=list(range(8)))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert mesh.devices.ravel().tolist() == list(range(8))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (16, 1, 1), (0, 1, 1), (-1, 16, 1), (-2, -2, 2)])
def test_meshes_that_do_not_fit(sizes):
    asked = "data={}, fsdp={}, tensor={}".format(*sizes)
    with pytest.raises(UserError, match=f"config.mesh: {asked} does not fit 8 devices"):
        make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices=list(range(8)))


def test_batches_of_patches_travel_whole():
    """And are made into floats on the device as on the host."""
    value = Preprocessing(image_size=(2, 2), resize="naflex", patch_size=2, max_patches=6)
    images = [np.full((2 * rows, 2 * columns, 3), 40 * rows, np.uint8) for rows, columns in ((1, 1), (2, 3), (3, 2))]
    patches = value.batch(images)
    batch = to_devices({"image": patches, "group": np.arange(3)}, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
    assert isinstance(batch["image"], Patches)
    expected, found = value.to_float(patches), jax.jit(value.to_float)(batch["image"])
    np.testing.assert_allclose(found.pixels, expected.pixels, atol=1e-6)
    np.testing.assert_array_equal(found.shape, [[1, 1], [2, 3], [3, 2]])


def test_parameters_and_moments_are_sharded_alike(tiny_model, tiny_config):
    state = jax.eval_shape(lambda: init_state(tiny_model.params, make_optimizer(tiny_config)))
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    specs = {name: tuple(s.spec) for name, s in named_leaves(tree_shardings(state, mesh)).items()}
    attention = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    expected = {
        attention: (None, "fsdp", "tensor", None),
        "txt/Encoder_0/encoderblock/MlpBlock_0/Dense_1/kernel": (None, "tensor", "fsdp"),
        "t": (),
        "img/MAPHead_0/probe": (),
    }
    for name, spec in expected.items():
        found = {n: s for n, s in specs.items() if n.endswith(f"/{name}")}
        assert len(found) == 3  # parameter and two moments
        assert set(found.values()) == {spec}
    assert specs["step"] == ()


def test_what_an_axis_does_not_divide_is_not_sharded():
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    leaf = jax.ShapeDtypeStruct((6, 8), jnp.float32)
    rules = [(".*", PartitionSpec("fsdp", "tensor"))]
    assert tuple(tree_shardings({"x": leaf}, mesh, rules)["x"].spec) == (None, "tensor")


def losses_of(workdir) -> list[float]:
    lines = read_metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.mark.slow  # two processes on this mesh, in test_distributed, are in every run
@pytest.mark.parametrize(
    "changes",
    [{"mesh.data": 8, "microbatch": 1}, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}],
    ids=str,
)
def test_eight_devices_learn_as_one(trained_workdir, config_file, shop_dataset, python, tmp_path, changes):
    sizes = [f"--config.{field}={value}" for field, value in changes.items()]
    flags = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={tmp_path / 'run'}"]
    flags.append("--config.checkpoint_every=20")
    done = python(TRAIN, *flags, *sizes, devices=8)
    assert done.returncode == 0, done.stderr
    assert "rematerialization" not in done.stderr
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(trained_workdir), rtol=1e-5)
