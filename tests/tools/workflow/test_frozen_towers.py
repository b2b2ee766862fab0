"""Frozen towers run once: the same parameters as running them in each step."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import siglip_jax
from input_pipeline.augment import Augmentation
from input_pipeline.loader.stored_outputs import StoredOutputs
from siglip_jax.errors import UserError
from siglip_jax.models.towers import parameter_shapes
from tools.workflow import frozen_towers
from tools.workflow.training import dry_run, train_on_dataset


@pytest.fixture
def config(tiny_config, monkeypatch):
    tiny_config.steps, tiny_config.checkpoint_every = 4, 2
    tiny_config.data.flip = False
    tiny_config.data.cache_frozen = "on"
    monkeypatch.setattr(frozen_towers, "SHARD_BYTES", 1 << 11)  # several shards
    monkeypatch.setattr(frozen_towers, "ROWS", 16)
    return tiny_config


@pytest.fixture
def train(config, shop_dataset, tmp_path):
    """train(name, **fields) -> the trained parameters."""

    def run(name, **fields):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        return train_on_dataset(changed, dataset=shop_dataset, workdir=tmp_path / name).params

    return run


def assert_same(ours, theirs, *, atol=1e-5):
    def compare(path, x, y):
        # The same number added to all keys changes no attention: the gradient of their bias is rounding alone, which
        # Adam makes steps of full size.
        noise = atol and jax.tree_util.keystr(path).endswith("['key']['bias']")
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-2 if noise else atol)

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"optimizer.freeze": "image", "data.flip": True}, "image_embedding [93, 2, 16] float32"),
        pytest.param(
            {"optimizer.freeze": "image", "data.title_dropout": 0.3, "microbatch": 4},
            "image_embedding [93, 16] float32",
            marks=pytest.mark.slow,
        ),
        (
            {"optimizer.freeze": "heads", "data.flip": True, "microbatch": 8},
            "image_tokens [93, 2, 4, 16] float32, text_pooled [93, 16] float32",
        ),
        pytest.param(
            {"optimizer.freeze_rules": (("txt/.*", True),), "data.zoom": 0.2, "data.cache_frozen": "auto", "steps": 6},
            "text_embed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"optimizer.freeze_rules": (("(img|txt)/.*", True),)},
            "text_embedding [93, 16] float32",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_same_parameters_as_running_the_towers_in_each_step(train, tiny_model, capsys, fields, stored):
    once = train("once", **fields)
    assert stored in capsys.readouterr().out
    each_step = train("each_step", **(fields | {"data.cache_frozen": "off"}))
    assert "run once" not in capsys.readouterr().out
    assert_same(once, each_step)
    assert abs(once["t"] - tiny_model.params["t"]) > 1e-3  # something was learned


@pytest.mark.slow
def test_bad_pictures_are_replaced_by_the_same_rows(train, shop_dataset, tmp_path, monkeypatch):
    from input_pipeline.loader.examples import Recipe

    picture = Recipe.picture

    def damaged(self, record, row, *arguments):
        if row in (3, 40):
            raise UserError("cut short")
        picture(self, record, row, *arguments)

    monkeypatch.setattr(Recipe, "picture", damaged)
    fields = {"optimizer.freeze": "image", "data.max_bad_fraction": 0.5, "steps": 6}  # an epoch and more
    assert_same(train("once", **fields), train("each_step", **fields, **{"data.cache_frozen": "off"}))
    once, each_step = ((tmp_path / name / "bad_pictures.jsonl").read_text() for name in ("once", "each_step"))
    assert once == each_step
    assert '"row": 3' in once


@pytest.mark.slow
def test_goes_on_where_a_killed_run_was(train, tmp_path, monkeypatch, capsys):
    unbroken = train("unbroken", **{"optimizer.freeze": "heads"})
    assert not (tmp_path / "unbroken" / "frozen").exists()
    write, written = StoredOutputs.write, []

    def killed(self, shard, *arguments, **options):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, *arguments, **options)

    monkeypatch.setattr(StoredOutputs, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train("broken", **{"optimizer.freeze": "heads"})
    monkeypatch.setattr(StoredOutputs, "write", write)
    (tmp_path / "broken" / "frozen" / "00001.text_pooled.npy").write_bytes(b"cut short")
    capsys.readouterr()
    broken = train("broken", **{"optimizer.freeze": "heads"})
    assert "; 2 of " in capsys.readouterr().out
    assert_same(broken, unbroken, atol=0)
    # Killed after a checkpoint, when the outputs are gone as well.
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "4")
    assert_same(train("broken", **{"optimizer.freeze": "heads"}), unbroken, atol=0)


@pytest.mark.filterwarnings("ignore::siglip_jax.training.start.prepare_start.StartWarning")  # random weights
@pytest.mark.slow
def test_another_start_is_noticed(train, tiny_model, tmp_path, monkeypatch, capsys):
    fields = {"init": str(tmp_path / "start"), "optimizer.freeze": "image"}
    tiny_model.save(tmp_path / "start")
    remove = frozen_towers.remove_outputs
    monkeypatch.setattr(frozen_towers, "remove_outputs", lambda workdir: None)  # as if it were killed
    first = train("run", **fields)

    other = jax.tree.map(lambda x: x + 0.01, tiny_model.params["img"])
    shutil.rmtree(tmp_path / "start")
    tiny_model.replace(params={**tiny_model.params, "img": other}).save(tmp_path / "start")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    with pytest.raises(UserError, match=r"36 frozen parameters of the run are not those of its start"):
        train("run", **fields)

    shutil.rmtree(tmp_path / "run" / "checkpoints")  # nothing is lost now
    monkeypatch.setattr(frozen_towers, "remove_outputs", remove)
    capsys.readouterr()
    shutil.rmtree(tmp_path / "start")
    tiny_model.save(tmp_path / "start")
    assert_same(train("run", **fields), first, atol=0)
    assert "was made from another run's parameters; it is made again" in capsys.readouterr().out


@pytest.mark.slow
def test_two_devices(python, config_file, shop_dataset, tmp_path):
    done = python(TWO_DEVICES, config_file, shop_dataset, tmp_path, devices=2)
    assert done.returncode == 0, done.stderr
    once, each_step = (np.load(tmp_path / f"{name}.npy") for name in ("on", "off"))
    np.testing.assert_allclose(once, each_step, rtol=0, atol=1e-5)
    assert "frozen image tower up to its head and text tower up to its head run once" in done.stdout


TWO_DEVICES = """
import runpy, sys
import jax, numpy as np
from tools.workflow.training import train_on_dataset

for choice in ("on", "off"):
    config = runpy.run_path(sys.argv[1])["get_config"]()
    config.optimizer.freeze, config.data.cache_frozen = "heads", choice
    config.mesh.data, config.mesh.fsdp = 1, 2
    config.steps, config.microbatch = 4, 4
    model = train_on_dataset(config, dataset=sys.argv[2], workdir=f"{sys.argv[3]}/{choice}")
    learned = jax.tree.leaves([model.params["img"]["MAPHead_0"], model.params["txt"]["head"]])
    np.save(f"{sys.argv[3]}/{choice}.npy", np.concatenate([np.ravel(x) for x in learned]))
"""


@pytest.mark.slow
def test_two_processes_share_the_work(train, config_file, shop_dataset, tmp_path, free_port, process_environment):
    fields = {"optimizer.freeze": "heads", "data.flip": True, "mesh.fsdp": 2, "mesh.data": 1, "steps": 4}
    flags = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={tmp_path / 'two'}"]
    flags += [f"--config.{name}={value}" for name, value in (fields | {"data.cache_frozen": "on"}).items()]
    flags += [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    code = "import sys; from siglip_jax.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *flags, f"--process_id={index}"],
            env=process_environment(1),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert ["run once" in output for output in outputs] == [True, False]
    one = train("one", **(fields | {"mesh.fsdp": 1, "data.cache_frozen": "off"}))
    assert_same(siglip_jax.load(tmp_path / "two").params, one, atol=1e-4)


@pytest.fixture
def plan(config, tiny_model, tmp_path):
    """plan(augmentation={}, **fields) -> `plan_cache` of 93 rows."""

    def make(augmentation=None, **fields):
        config.update_from_flattened_dict(fields)
        return frozen_towers.plan_cache(
            config,
            module=tiny_model.module,
            params=parameter_shapes(tiny_model.architecture),
            preprocessing=tiny_model.preprocessing,
            augmentation=Augmentation(**({"flip": False} | (augmentation or {}))),
            rows=93,
            workdir=tmp_path,
        )

    return make


@pytest.mark.parametrize(
    ("fields", "augmentation", "reason"),
    [
        ({"optimizer.freeze": "image"}, {"zoom": 0.1, "crop_area": (0.5, 1)}, r"pictures differ .*crop_area, zoom"),
        ({"optimizer.freeze": "heads"}, {"title_dropout": 0.1}, r"titles differ in each epoch \(title_dropout\)"),
        ({"optimizer.freeze": "embeddings"}, {}, "no tower is frozen, wholly or up to its head"),
        ({"optimizer.freeze_rules": (("img/pos_embedding", False), ("img/.*", True))}, {}, "no tower is frozen"),
    ],
)
def test_says_why_there_is_no_cache(plan, fields, augmentation, reason, capsys):
    with pytest.raises(UserError, match=reason):
        plan(augmentation, **fields)
    assert "text_pooled" not in str(plan(augmentation, **fields, **{"data.cache_frozen": "off"}))
    found = plan(augmentation, **fields, **{"data.cache_frozen": "auto"})
    assert found is None or [part.source for part in found.parts] == ["image"]


def test_auto_asks_whether_it_saves_work(plan, capsys):
    auto = {"optimizer.freeze": "image", "data.cache_frozen": "auto", "steps": 10, "batch_size": 16}
    assert plan(**auto).bytes == 93 * 16 * 4
    assert plan({"flip": True}, **auto) is None  # twice as many as are read
    assert "the run reads 160 rows, and storing would take 186" in capsys.readouterr().out
    assert plan({"flip": True}, **auto | {"data.cache_frozen": "on"}).bytes == 93 * 2 * 16 * 4


def test_a_full_disk(plan, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 20000, 20000))
    fields = {"optimizer.freeze": "heads"}  # 93 * 5 * 16 * 4 = 29,760 bytes
    with pytest.raises(UserError, match=r"its output takes 0.03 MiB, and the disk of .* has 0.02 MiB free"):
        plan(**fields)
    assert plan(**fields, **{"data.cache_frozen": "auto", "steps": 99}) is None
    assert "runs in every step: its output takes" in capsys.readouterr().out


def test_dry_run_has_the_step_of_the_stored_outputs(config, shop_dataset, tmp_path, capsys):
    config.optimizer.freeze = "heads"
    flops = {}
    for choice in ("on", "off"):
        config.data.cache_frozen = choice
        dry_run(config, dataset=shop_dataset, workdir=tmp_path / "run")
        out = capsys.readouterr().out
        assert ("run once: image_tokens [93, 4, 16]" in out) == (choice == "on")
        flops[choice] = float(out.split("FLOPs per step: ")[1].split(",")[0])
    assert flops["on"] < flops["off"] / 2
