"""Folders for libraries of others: shards, model cards, and nothing left of what fails."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import cli
from siglip_jax.errors import UserError
from tools.workflow.exports.folders import bytes_of, write_folder

REPORT = {
    "protocol": "full-catalogue retrieval",
    "primary_metric": "nDCG@5",
    "queries": 1200,
    "items": 394,
    "conclusion": "Trained ranks better than start.",
    "rows": [
        {"name": "trained|a", "exact": {"nDCG@5": {"mean": 0.49712, "low": 0.47, "high": 0.52}, "hit@5": None}},
        {"name": "popular", "exact": {"nDCG@5": {"mean": 0.1, "low": None, "high": None}}},
    ],
}


@pytest.fixture
def stored(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "native")
    return tmp_path / "native"


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    return path


def test_convert_writes_shards_with_an_index_and_a_card(stored, report, tmp_path, tiny_model, capsys):
    output = tmp_path / "new" / "shop"
    arguments = [f"--model={stored}", f"--output={output}", "--to=huggingface", "--shard_size=4KB"]
    assert cli.main(["convert", *arguments, f"--report={report}"]) == 0
    index = json.loads((output / "model.safetensors.index.json").read_text())
    shards = {path.name: safetensors.numpy.load_file(path) for path in output.glob("*.safetensors")}
    assert len(shards) > 2
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    sizes = {file: [value.nbytes for value in tensors.values()] for file, tensors in shards.items()}
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    assert all(sum(each) <= 4000 or len(each) == 1 for each in sizes.values())
    back = siglip_jax.load(output)
    jax.tree.map(np.testing.assert_array_equal, back.params, jax.device_get(tiny_model.params))

    card = (output / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: zero-shot-image-classification\n")
    assert "# shop\n" in card
    assert "1,200 queries over 394 items" in card
    assert "|  | nDCG@5 | hit@5 |\n| --- | ---: | ---: |\n" in card
    assert "| trained\\|a | 0.4971 [0.4700, 0.5200] | - |\n| popular | 0.1000 | - |" in card
    assert "Trained ranks better than start." in card
    assert f"-> {output} (huggingface)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "library"),
    [("huggingface", "transformers"), ("sentence_transformers", "sentence-transformers"), ("open_clip", "open_clip")],
)
def test_export_writes_folders_that_say_that_they_were_not_evaluated(stored, tmp_path, name, library, tiny_model):
    arguments = [f"--model={stored}", f"--output={tmp_path / 'out'}", f"--format={name}"]
    assert cli.main(["export", *arguments]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"library_name: {library}\n" in card
    assert card.endswith(
        "## Evaluation\n\nNot evaluated here: no ranking report was given when this folder was written.\n"
    )
    back = siglip_jax.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, back.params, jax.device_get(tiny_model.params))


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("export", ["--format=open_clip", "--tower=text"], "--tower is not of --format=open_clip"),
        ("export", ["--shard_size=5GB"], "--shard_size is of --format=huggingface"),
        ("convert", ["--to=native", "--report=report.json"], "--report is for the model card of huggingface"),
        ("convert", ["--to=huggingface", "--shard_size=5"], "--shard_size=5; expected such as 500MB"),
        ("convert", ["--to=huggingface", "--report=nothing.json"], "expected the .json beside a report"),
    ],
)
def test_flags_that_do_not_belong_together(stored, tmp_path, program, arguments, message, capsys):
    assert cli.main([program, f"--model={stored}", f"--output={tmp_path / 'out'}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("report", [{"rows": []}, [], {**REPORT, "rows": [{"name": "a"}]}])
def test_a_report_that_is_none_leaves_nothing(tiny_model, tmp_path, report):
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="--report"):
        write_folder(tiny_model, tmp_path / "out", format="open_clip", report=tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_fails_half_way_leaves_nothing(tiny_model, tmp_path, monkeypatch):
    from siglip_jax.weights import tensors

    def broken(path, *arguments, **options):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(tensors, "write_file", broken)
    with pytest.raises(OSError, match="no space"):
        write_folder(tiny_model, tmp_path / "out", format="huggingface")
    assert list(tmp_path.iterdir()) == []


def test_another_gelu_is_only_another_gelu(stored, tmp_path, tiny_model):
    arguments = [f"--model={stored}", f"--output={tmp_path / 'out'}", "--to=open_clip", "--image_gelu=exact"]
    assert cli.main(["convert", *arguments]) == 0
    back = siglip_jax.load(tmp_path / "out")
    assert (back.architecture.image.gelu, back.architecture.text.gelu) == ("exact", "tanh")
    jax.tree.map(np.testing.assert_array_equal, back.params, jax.device_get(tiny_model.params))


def test_sizes():
    assert [bytes_of(size) for size in ("4KB", "500MB", "5GB")] == [4000, 500_000_000, 5_000_000_000]
    with pytest.raises(UserError, match="expected such as"):
        bytes_of("1.5GB")
