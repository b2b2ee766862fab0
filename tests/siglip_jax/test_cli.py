"""The command: help costs nothing, wrong input is one line and exit code 2, whatever program it meets."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.embeddings import write_store
from siglip_jax import cli


def test_help_lists_the_programs_and_loads_nothing(python):
    code = (
        "import sys; from siglip_jax.cli import main; code = main(['--help']);"
        "print(sorted({'jax', 'absl', 'tensorflow', 'numpy'} & set(sys.modules))); sys.exit(code)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for program in ("demo", "data", "train", "embed", "index", "rank", "export", "bench"):
        assert f"\n  {program} " in done.stdout


@pytest.mark.parametrize("program", [name for name in cli.PROGRAMS if name != "bench"] + ["bench loss"])
def test_help_of_a_program(program, capsys):
    for flag in ("--help", "-h"):
        assert cli.main([*program.split(), flag]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"siglip-jax {program}: ")
    assert "\nflags:\n  --" in out
    assert err == ""


def test_help_of_a_program_with_commands(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(["bench", *arguments]) == 0
        out = capsys.readouterr().out
        assert out.startswith("siglip-jax bench: ")
        assert "\ncommands:\n  abtest  " in out
        assert "\n  loss  " in out


def test_version(capsys):
    import siglip_jax

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"siglip-jax {siglip_jax.__version__}\n"


def test_works_beside_the_users_own_eval_and_tools(tmp_path):
    """The installed command does not look for programs in the working directory."""
    command = pathlib.Path(sys.executable).parent / "siglip-jax"
    if not command.exists():
        pytest.skip("the command is not installed")
    for name in ("eval.py", "tools.py", "configs.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')\n")
    done = subprocess.run([command, "rank", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("siglip-jax rank: ")


def test_a_message_of_many_lines_is_one(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", lambda *_: (_ for _ in ()).throw(cli.UserError("first\n  second\n")))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "siglip-jax train: first second\n"


def test_ctrl_c(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "siglip-jax train: interrupted\n"


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(shop, shop_dataset, config_file, trained_workdir, tiny_model, tmp_path_factory) -> dict[str, str]:
    """What the lines of WRONG are written with."""
    import numpy as np

    root = tmp_path_factory.mktemp("wrong")
    (root / "empty").mkdir()
    (root / "no_image").mkdir()
    (root / "no_image" / "items.tsv").write_text("id\ttitle\n1\tred dress\n")
    (root / "file").write_text("text")
    (root / "broken.py").write_text("def get_config(:\n")
    (root / "raises.py").write_text("def get_config():\n    return undefined\n")
    (root / "leaves.py").write_text("import sys\n\n\ndef get_config():\n    sys.exit('bye')\n")
    bare = "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 0})\n"
    (root / "bare.py").write_text(bare)
    (root / "other_model").mkdir()
    tiny_model.save(root / "other_model")
    description = json.loads((root / "other_model" / "model.json").read_text())
    description["architecture"]["image"]["mlp_dim"] = 64
    (root / "other_model" / "model.json").write_text(json.dumps(description))
    vectors = np.eye(3, dtype=np.float32)
    write_store(root / "store", [(["a", "b", "c"], vectors)], manifest={"dataset": {"fingerprint": "another"}})
    write_store(root / "unknown_data", [(["a", "b", "c"], vectors)], manifest={})
    shutil.copytree(root / "store", root / "cut_store")
    shard = next((root / "cut_store").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    return {
        "catalog": str(shop),
        "data": str(shop_dataset),
        "config": f"--config={config_file}",
        "model": str(trained_workdir),
        "root": str(root),
        "new": str(root / "new"),
        "long": "x" * 300,
    }


WRONG = {
    "unknown program": ("trian", "expected one of demo, data"),
    "misspelt flag": ("train --datset=x {config} --workdir={new}", "datset"),
    "missing required flag": ("train {config} --dataset={data}", "workdir"),
    "stray argument": ("train {config} --dataset={data} --workdir={new} now", "unexpected argument 'now'"),
    "unknown choice": ("index --store={root}/store --output={new} --backend=faiss", "backend"),
    "not a number": ("data --catalog={catalog} --output={new} --seed=one", "seed"),
    "unknown config field": ("train {config} --config.nope=1 --dataset={data} --workdir={new}", "nope"),
    "config field of another type": ("train {config} --config.steps=many --dataset={data} --workdir={new}", "steps"),
    "no config file": ("train --config={root}/none.py --dataset={data} --workdir={new}", "none.py"),
    "config that does not parse": ("train --config={root}/broken.py --dataset={data} --workdir={new}", "broken.py"),
    "config that fails": ("train --config={root}/raises.py --dataset={data} --workdir={new}", "undefined"),
    # data
    "no catalogue": ("data --catalog={root}/none --output={new}", "no such file or folder"),
    "catalogue without a table": ("data --catalog={root}/empty --output={new}", "no table"),
    "table without pictures": ("data --catalog={root}/no_image --output={new}", "no column image"),
    "no such column": ("data --catalog={catalog} --output={new} --title_column=name", "no column name"),
    "split without a share": ("data --catalog={catalog} --output={new} --split=train", "expected name=share"),
    "split given twice": ("data --catalog={catalog} --output={new} --split=a=0.5 --split=a=0.5", "twice"),
    "split beyond one": ("data --catalog={catalog} --output={new} --split=train=0.9 --split=test=0.3", "sum to 1"),
    "negative split": (
        "data --catalog={catalog} --output={new} --split=train=1.5 --split=test=-0.5",
        "between 0 and 1",
    ),
    "bad rows refused": ("data --catalog={catalog} --output={new} --on_error=error", "every row is listed"),
    "dataset there already": ("data --catalog={catalog} --output={data}", "overwrite"),
    # train
    "no dataset": ("train {config} --dataset={root}/none --workdir={new}", "no such folder"),
    "not a dataset": ("train {config} --dataset={root}/empty --workdir={new}", "siglip-jax data"),
    "batch beyond the data": (
        "train {config} --config.batch_size=999 --dataset={data} --workdir={new}",
        "smaller batch",
    ),
    "no such split": ("train {config} --config.data.train_split=dev --dataset={data} --workdir={new}", "splits are"),
    "mesh that does not fit": ("train {config} --config.mesh.tensor=3 --dataset={data} --workdir={new}", "config.mesh"),
    "unknown type": ("train {config} --config.model.dtype=float7 --dataset={data} --workdir={new}", "float7"),
    "unknown remat": ("train {config} --config.model.remat=most --dataset={data} --workdir={new}", "most"),
    "no heads": ("train {config} --config.model.image.heads=0 --dataset={data} --workdir={new}", "heads"),
    "no start model": (
        "train {config} --config.init={root}/none --dataset={data} --workdir={new}",
        "not found; expected a preset",
    ),
    "no tokenizer": ("train {config} --config.preprocessing.tokenizer=/none --dataset={data} --workdir={new}", "/none"),
    "foreign workdir": ("train {config} --dataset={data} --workdir={root}", "not empty"),
    "workdir is a file": ("train {config} --dataset={data} --workdir={root}/file", "file"),
    "patches of no pixels": (
        "train {config} --config.model.patch_size=0 --dataset={data} --workdir={new}",
        "whole numbers from 1",
    ),
    "no unrolling": ("train {config} --config.model.unroll=-1 --dataset={data} --workdir={new}", "unroll"),
    "negative rate": (
        "train {config} --config.optimizer.learning_rate=-1 --dataset={data} --workdir={new}",
        "learning_rate=-1",
    ),
    "momentum beyond one": ("train {config} --config.optimizer.b1=2 --dataset={data} --workdir={new}", "b1=2"),
    "unknown group rule": (
        "train {config} --config.same_group=maybe --dataset={data} --workdir={new}",
        "positive, mean, ignore",
    ),
    "warm-up beyond the run": (
        "train {config} --config.optimizer.warmup_steps=99 --dataset={data} --workdir={new}",
        "warmup_steps=99",
    ),
    "tokenizer of an empty file": (
        "train {config} --tokenizer=/dev/null --dataset={data} --workdir={new}",
        "empty file",
    ),
    "tokenizer beside a start model": (
        "train {config} --config.init={model} --tokenizer={root}/file --dataset={data} --workdir={new}",
        "the model has its own",
    ),
    "config that leaves": ("train --config={root}/leaves.py --dataset={data} --workdir={new}", "bye"),
    "config without fields": ("train --config={root}/bare.py --dataset={data} --workdir={new}", "default_config"),
    # embed
    "no model": ("embed --model={root}/none --dataset={data} --output={new}", "not found; expected a preset"),
    "model of another architecture": ("embed --model={root}/other_model --dataset={data} --output={new}", "Dense_0"),
    "no split to embed": ("embed --model={model} --dataset={data} --output={new} --split=dev", "splits are"),
    "embeddings into a file": ("embed --model={model} --dataset={data} --output={root}/file", "file"),
    "name too long": ("embed --model={model} --dataset={data} --output={root}/{long}", "too long"),
    # index
    "no store": ("index --store={root}/none --output={new}", "none"),
    "damaged store": ("index --store={root}/cut_store --output={new}", "shard-00000"),
    # rank
    "store of other data": ("rank {config} --dataset={data} --output={new}.html --store=a={root}/store", "another"),
    "store of other items": (
        "rank {config} --dataset={data} --output={new}.html --store=a={root}/unknown_data",
        "items",
    ),
    "store without a name": ("rank {config} --dataset={data} --output={new}.html --store={root}/store", "name=folder"),
    "no store to rank": ("rank {config} --dataset={data} --output={new}.html", "store"),
    "report that is no page": ("rank {config} --dataset={data} --output={new}.pdf --store=a={root}/store", ".html"),
    "store named as a baseline": (
        "rank {config} --dataset={data} --output={new}.html --store=random={root}/unknown_data",
        "baseline",
    ),
    "missing store": ("rank {config} --dataset={data} --output={new}.html --store=a={root}/none", "none"),
    # bench
    "unknown bench": ("bench los", "expected one of abtest, build, "),
    "bench of uneven rows": ("bench loss --batch=10 --devices=3", "10 rows over 3 devices"),
    "bench of more devices than there are": ("bench loss --batch=8 --devices=8", "8 devices"),
    "bench of nothing": ("bench loss --only=theirs", "theirs"),
    "bench of no rows": ("bench loss --batch=0", "batch"),
    "number that is none": ("index --output={new} --health --compact_at=nan", "--compact_at=nan: expected a number"),
    # export
    "export of no model": (
        "export --model={root}/empty --dataset={data} --output={new}_model",
        "a folder of no known format",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_code_2(case, places, capsys):
    line, part = WRONG[case]
    arguments = [word.format(**places) for word in line.split()]
    capsys.readouterr()
    assert cli.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "/s, " not in line]  # progress, on a slow machine
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"siglip-jax {arguments[0]}: ")
    assert part in lines[0]
    assert "Traceback" not in lines[0]


def test_a_reader_that_leaves(python):
    """`siglip-jax --help | head -1` ends without a word of the closed pipe."""
    code = """
import os, sys
from siglip_jax.cli import main
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
sys.exit(main(["--help"]))
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (141, "")


@given(st.text())
def test_a_message_is_one_line_that_prints(message):
    line = cli.one_line(message)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1
    assert cli.one_line(line) == line


def test_a_message_keeps_its_letters():
    assert cli.one_line("Weiß 東京:\n  \x1b[31mred\udcff") == "Weiß 東京: \ufffd[31mred\ufffd"
