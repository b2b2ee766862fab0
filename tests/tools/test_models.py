"""The programs `models` and `convert`, as a user calls them."""

import io
import pathlib

import jax
import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax import cli
from siglip_jax.weights.formats import FORMATS, written_formats

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main([str(word) for word in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_table_of_the_docs_is_what_the_program_prints(capsys):
    code, table, _ = run(capsys, "models", "--format=markdown")
    assert code == 0
    assert table in (DOCS / "guide" / "models.md").read_text()
    code, text, _ = run(capsys, "models")
    assert code == 0
    presets, formats = text.split("\n\n")
    assert len(presets.splitlines()) == 28
    assert "google/siglip2-giant-opt-patch16-384" in presets
    assert [line.split()[0] for line in formats.splitlines()] == list(FORMATS)
    assert [line.split()[0] for line in formats.splitlines() if "read, written" in line] == written_formats()


def test_convert_there_and_back(trained_workdir, tmp_path, capsys):
    code, out, _ = run(capsys, "convert", f"--model={trained_workdir}", f"--output={tmp_path}/w.npz", "--to=big_vision")
    assert code == 0
    assert f"not in {tmp_path}/w.npz: an .npz holds no preprocessing" in out
    for arguments in (
        (f"--model={tmp_path}/w.npz", f"--output={tmp_path}/hf", "--to=huggingface"),
        (f"--model={tmp_path}/hf", f"--output={tmp_path}/native"),
    ):
        assert run(capsys, "convert", *arguments)[0] == 0
    start, end = siglip_jax.load(trained_workdir), siglip_jax.load(tmp_path / "native")
    jax.tree.map(np.testing.assert_array_equal, end.params, start.params)
    assert end.architecture == start.architecture


def test_huggingface_folders_keep_the_preprocessing(trained_workdir, tmp_path, capsys):
    code, out, err = run(capsys, "convert", f"--model={trained_workdir}", f"--output={tmp_path}/hf", "--to=huggingface")
    assert code == 0, err
    assert f"not in {tmp_path}/hf: punctuation: transformers will delete it" in out
    start, back = siglip_jax.load(trained_workdir), siglip_jax.load(tmp_path / "hf")
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8))
    np.testing.assert_array_equal(back.encode_image([picture]), start.encode_image([picture]))
    titles = ["red Dress", "blue striped shoes", "Größe 42"]
    np.testing.assert_array_equal(back.encode_text(titles), start.encode_text(titles))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("convert --model={workdir} --output={workdir}", "exists; give a new path"),
        ("convert --model={none} --output={new}", "not found; expected a preset"),
        ("convert --model={workdir} --output={new} --to=big_vision", "a big_vision checkpoint is an .npz file"),
        (
            "convert --model={workdir} --output={new} --to=onnx",
            "--to='onnx'; expected one of native, sentence_transformers, hugg",
        ),
        ("convert --model={workdir} --output={new} --image_size=-1", "expected the side of a square"),
        ("convert --model={workdir} --output={new} --tokenizer={none}", "pass a SentencePiece"),
        ("convert --model={workdir} --output={new} --tokenizer={file}", "the model has its own, of sha256"),
        ("convert --model={file} --output={new}", "a .txt file of no known format; expected a preset"),
        ("models --weights={workdir}", "go with --verify=NAME"),
        ("models --verify=google/siglip3", "no such preset; siglip-jax models lists them"),
        ("models --verify=google/siglip-base-patch16-224 --weights={none}", "not found"),
        ("models --verify=google/siglip-base-patch16-224 --weights={workdir}", "not the weights of google/siglip-base"),
    ],
)
def test_bad_input_is_one_line(trained_workdir, tmp_path, capsys, arguments, part):
    (tmp_path / "file.txt").write_text("x")
    places = {
        "workdir": trained_workdir,
        "none": tmp_path / "none",
        "new": tmp_path / "new",
        "file": tmp_path / "file.txt",
    }
    code, _, err = run(capsys, *arguments.format(**places).split())
    assert code == 2
    assert len(err.splitlines()) == 1
    assert part in err


def test_verify_needs_a_picture(trained_workdir, tmp_path, capsys, monkeypatch):
    """With a trained tiny model standing in for the published weights."""
    import dataclasses

    from siglip_jax import verify
    from siglip_jax.models import presets

    model = siglip_jax.load(trained_workdir)
    name = "google/siglip2-base-patch16-256"
    preset = dataclasses.replace(presets.PRESETS[name], architecture=model.architecture)
    monkeypatch.setitem(presets.PRESETS, name, preset)
    arguments = ("models", f"--verify={name}", f"--weights={trained_workdir}")
    code, out, err = run(capsys, *arguments, f"--image={tmp_path}/none.jpg")
    assert (code, "pass a JPEG or PNG" in err) == (2, True)
    assert "every one there, of the right shape and finite" in out
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (20, 20)).save(buffer, "PNG")
    (tmp_path / "cats.png").write_bytes(buffer.getvalue())
    answers = {}
    # Which of the two wins is chance, of so small a model; the real titles are alike within its eight tokens.
    for titles in (("cats", "dogs"), ("dogs", "cats")):
        monkeypatch.setattr(verify, "TITLES", titles)
        code, out, err = run(capsys, *arguments, f"--image={tmp_path}/cats.png")
        answers[code] = out + err
    assert answers.keys() == {0, 2}
    assert "exp(t) = " in answers[0]
    assert answers[0].rstrip().endswith(f"{name}: verified")
    assert "should prefer the first" in answers[2]
