"""The targets of results.mk: their commands can be parsed, their recipes checked, and each reads what another wrote."""

import importlib
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
from absl import flags

from siglip_jax.training.config import check
from tools.workflow.recipes import changed, parse_recipes

ROOT = pathlib.Path(__file__).parents[1]
TARGETS = ("results-table", "results-curve", "results-ablations", "results-teacher")
READS = ("dataset", "model", "features", "store", "fit", "config.teacher.store")
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def commands(folder, target, encoder="cnn.npz"):
    """[[program, flag, ...], ...] that a clone with a finished environment would run."""
    for name in ("Makefile", "results.mk"):
        shutil.copy(ROOT / name, folder)
    for name in ("pyproject.toml", "uv.lock"):
        (folder / name).touch()
    (folder / ".venv").mkdir(exist_ok=True)
    for name in (".venv/ready", ".venv/tflite"):
        (folder / name).touch()
    line = ["make", "-n", target, "CATALOG=shop.zip", f"ENCODER={encoder}"]
    said = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout
    whole = said.replace("\\\n", " ").splitlines()
    return [shlex.split(each)[1:] for each in whole if each.startswith(".venv/bin/siglip-jax ")]


def parsed(command, monkeypatch):
    """The values of its flags."""
    count = 2 if command[0] == "bench" else 1
    module = importlib.import_module(".".join(["tools", *command[:count]]))
    line = ["siglip-jax", *command[count:]]
    monkeypatch.setattr(sys, "argv", line)
    values = flags.FlagValues()
    module.define_flags(values)
    assert len(values(line)) == 1
    return values


@pytest.mark.parametrize("target", TARGETS)
def test_commands_are_whole(tmp_path, monkeypatch, target):
    monkeypatch.chdir(ROOT)
    made = set()
    for command in commands(tmp_path, target):
        values = parsed(command, monkeypatch)
        given = [each.removeprefix("--").partition("=")[::2] for each in command if each.startswith("--")]
        for name, value in given:
            if name in READS and "runs/" in value:
                assert any(value.rpartition("=")[2].startswith(path) for path in made), (command[0], name, value)
        made |= {value for name, value in given if name in ("output", "workdir")}
        if "recipe" in values:
            recipes = parse_recipes(values.recipe, values.config, flag="recipe", taken=())
            for fields in recipes.values():
                check(changed(values.config, fields))
            assert len(recipes) >= 3


def test_the_ablations_see_equally_many_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for target in ("results-curve", "results-ablations"):
        values = parsed(commands(tmp_path, target)[-1], monkeypatch)
        recipes = parse_recipes(values.recipe, values.config, flag="recipe", taken=())
        for name, fields in recipes.items():
            config = changed(values.config, fields)
            assert config.steps * config.batch_size == pytest.approx(512_000, rel=0.01), name


def test_an_encoder_is_a_network_or_a_file(tmp_path):
    network, file = (commands(tmp_path, "results-curve", encoder=encoder)[1] for encoder in ("cnn.tflite", "cnn.npz"))
    assert network[1] == "--model=cnn.tflite"
    assert file[1] == "--embeddings=cnn.npz"
