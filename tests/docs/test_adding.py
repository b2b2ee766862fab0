"""docs/adding.md: every block of the page is run, in a process where its entry is added, and its addition is used."""

import contextlib
import doctest
import io
import itertools
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
from unittest import mock

import numpy as np
import PIL.Image
import pytest

import siglip_jax
import tools
from eval.embeddings.encoders.encoder_table import ENCODERS
from eval.metrics import rank_metrics
from eval.metrics.metric_names import parse_metric
from eval.metrics.metric_table import METRICS, OneQuery
from eval.report import format_table
from input_pipeline.dataset import open_split
from siglip_jax import cli
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.preprocessing.resize_table import RESIZES
from siglip_jax.training import loop
from siglip_jax.training.config import default_config
from siglip_jax.training.config_fields.optimizer_fields import OPTIMIZER
from siglip_jax.weights.formats import FORMATS
from tools.workflow.embedding import embed, load_encoder
from tools.workflow.evaluators import EVALUATORS, make_evaluators

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "adding.md").read_text(encoding="utf-8")
ROOT = pathlib.Path(__file__).parents[2]
TABLES = (METRICS, RESIZES, EVALUATORS, FORMATS, ENCODERS, OPTIMIZER.fields)
SECTIONS = dict(re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", PAGE))
TINY = """steps=1 optimizer.warmup_steps=0 batch_size=8 preprocessing.image_size=(16,16) preprocessing.vocab_size=400
preprocessing.text_length=8 model.unroll=1 model.image.width=16 model.image.depth=2 model.image.mlp_dim=32
model.text.width=16 model.text.mlp_dim=32"""  # of the demo's config


class Section:
    """The blocks of a section, and the names that its Python defines."""

    def __init__(self, title: str):
        self.names: dict = {}
        self.blocks = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", SECTIONS[title])

    def of(self, language: str) -> list[str]:
        return [text for kind, text in self.blocks if kind == language]

    def run_python(self) -> None:
        """Writes the blocks that are files, runs all others, and compares every session with what the page shows."""
        for kind, text in self.blocks:
            if kind == "python" and (named := re.match(r"# (\w+\.py)\n", text)):
                pathlib.Path(named[1]).write_text(text)
            elif kind == "python":
                exec(compile(text, "docs/adding.md", "exec"), self.names)
            elif kind == "pycon":
                session = doctest.DocTestParser().get_doctest(text, self.names, "docs/adding.md", None, 0)
                printed: list[str] = []
                runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
                result = runner.run(session, out=printed.append, clear_globs=False)
                assert result.attempted > 1
                assert result.failed == 0, "".join(printed)
                self.names |= session.globs

    def run_commands(self, *more: str) -> str:
        """Runs every `siglip-jax` command in this process, where the entry is; what they print."""
        lines = "".join(self.of("bash")).replace("\\\n", " ").splitlines()
        out = io.StringIO()
        for line in lines:
            with contextlib.redirect_stdout(out):
                assert cli.main([*shlex.split(line)[1:], *more]) == 0, line
        assert lines
        return out.getvalue()


@pytest.fixture(scope="module")
def embeddings(trained_workdir, shop_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings") / "store"
    embed(load_encoder(str(trained_workdir)), dataset=shop_dataset, split="test", output=folder)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, shop_dataset, trained_workdir, embeddings):
    """The working directory that the page assumes; the tables are as they were afterwards."""
    for name, target in (
        ("data/shop", shop_dataset),
        ("runs/shop", trained_workdir),
        ("runs/shop-embeddings", embeddings),
        ("configs", ROOT / "configs"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with contextlib.ExitStack() as stack:
        for table in TABLES:
            stack.enter_context(mock.patch.dict(table))
        yield tmp_path


def test_every_block_is_run():
    """Each section has code, and a test below that names it."""
    tests = pathlib.Path(__file__).read_text(encoding="utf-8")
    for title in SECTIONS:
        assert Section(title).of("python"), title
        assert f'Section("{title}")' in tests, title
    assert {kind for title in SECTIONS for kind, _ in Section(title).blocks} == {"python", "pycon", "bash"}


def test_a_metric():
    section = Section("A metric")
    section.run_python()
    assert "F1@5" in section.run_commands()
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.integers(0, 3, 5).astype(float), rng.integers(0, 2, 5)
        labels[0] = 1
        for k in (1, 3, 9):
            found = rank_metrics([scores], [labels], metrics=(f"F1@{k}",))[f"F1@{k}"][0]
            by_hand, by_reference = [], []
            for order in itertools.permutations(range(5)):
                ranking = sorted(order, key=lambda i: -scores[i])
                precision, recall = (sum(labels[ranking[:k]]) / n for n in (k, sum(labels)))
                by_hand.append(2 * precision * recall / (precision + recall) if precision else 0.0)
                query = OneQuery(
                    labels=labels[ranking].tolist(), all_labels=labels, relevant_from=1, max_grade=1, gain=float
                )
                by_reference.append(METRICS["F1"].reference(query, parse_metric(f"F1@{k}")))
            assert found == pytest.approx(np.mean(by_hand))
            assert found == pytest.approx(np.mean(by_reference))


def test_a_way_of_resizing():
    section = Section("A way of resizing")
    section.run_python()
    assert "centre_square" in section.run_commands()
    preprocessing = Preprocessing(image_size=(16, 12), resize="centre_square")
    preprocessing.save("saved")
    assert Preprocessing.load("saved") == preprocessing
    for data, expected in centre_squares():
        np.testing.assert_array_equal(preprocessing.image(data), expected)


def test_the_resize_in_the_graph(tiny_model):
    tf = pytest.importorskip("tensorflow")
    from siglip_jax.export import image_graph

    Section("A way of resizing").run_python()
    preprocessing = tiny_model.preprocessing.replace(resize="centre_square", image_size=(16, 12))
    for data, expected in centre_squares():
        pixels = image_graph.decode_and_resize(tf, tf.constant(data), preprocessing).numpy()
        np.testing.assert_allclose(pixels, expected, atol=1)


def centre_squares():
    """(an encoded image, its centre square at 16 x 12 by PIL)."""
    for height, width in ((30, 50), (61, 20), (16, 12)):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer, side = io.BytesIO(), min(height, width)
        image = PIL.Image.fromarray(pixels)
        image.save(buffer, "PNG")
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        yield buffer.getvalue(), np.asarray(square.resize((12, 16), PIL.Image.Resampling.BILINEAR))


def test_an_evaluator_while_training(tiny_model, shop_dataset, monkeypatch):
    section = Section("An evaluator while training")
    section.run_python()
    measured: list[dict] = []

    def measure_the_start(config, *, model, evaluators, **others):  # tests/tools/workflow/test_evaluators.py trains
        measured.append({name: value for evaluate in evaluators for name, value in evaluate(0, model.params).items()})
        return model

    monkeypatch.setattr(loop, "train", measure_the_start)
    section.run_commands(*(f"--config.{field}" for field in TINY.split()))
    assert {"separation/margin", "separation/nearest", "image_to_text/recall@1"} < measured[0].keys()
    assert measured[1].keys() == {"spread/image", "spread/text"}

    config = runpy.run_path("my_config.py")["get_config"]()
    config.evaluation.while_training = ("my_evaluators:separation", "spread")
    config.data.cache = True
    config.mesh.data = 1
    (evaluate,) = make_evaluators(config, model=tiny_model, dataset=shop_dataset)
    metrics = evaluate(1, tiny_model.params)
    rows = open_split(shop_dataset, "test")[:]
    image = tiny_model.encode_image([row["image"] for row in rows]).astype(np.float64)
    text = tiny_model.encode_text([row["title"] for row in rows]).astype(np.float64)
    margins = [
        image[i] @ text[i] - max(image[i] @ text[j] for j in range(len(rows)) if rows[j]["title"] != rows[i]["title"])
        for i in range(len(rows))
    ]
    assert metrics["separation/margin"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert metrics["separation/nearest"] == pytest.approx(np.mean(np.array(margins) > 0), abs=1e-9)
    spread = np.mean(((image - image.mean(axis=0)) ** 2).sum(axis=1))
    assert metrics["spread/image"] == pytest.approx(spread, abs=1e-5)


def test_a_format_of_model_files(trained_workdir):
    section = Section("A format of model files")
    section.run_python()
    assert "no preprocessing" in section.run_commands()
    model = siglip_jax.load(trained_workdir)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    for path in ("runs/flat", "runs/shop-flat"):
        np.testing.assert_array_equal(siglip_jax.load(path).encode_image(images), model.encode_image(images))


def test_an_encoder_of_another_framework(folder):
    section = Section("An encoder of another framework")
    section.run_python()
    assert "colours" in section.run_commands()
    (folder / "colours.npy.json").write_text('{"value_range": [0, 1]}')
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    encoded = load_encoder("colours.npy").encode(images)
    np.testing.assert_allclose(encoded, images.mean(axis=(1, 2)) / 255, rtol=1e-5)


def test_a_bench(python, folder):
    section = Section("A bench")
    section.run_python()
    shutil.copytree(pathlib.Path(tools.__file__).parent, folder / "tools")
    shutil.move(folder / "copy_array.py", folder / "tools" / "bench")
    code = (
        "from siglip_jax.cli import main; assert main(['bench', '--help']) == 0;"
        "assert main(['bench', 'copy_array', '--mib=1', '--repetitions=2']) == 0"
    )
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = python(code, cwd=folder, environment={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert re.search(r"(?m)^  copy_array +copying an array, which no step", done.stdout)
    assert re.search(r"(?m)^into a new array +\d+\.\d\d +1\.00$", done.stdout)
    assert section.of("bash") == ["siglip-jax bench --help\n"]


def test_a_field_of_the_config():
    Section("A field of the config").run_python()
    assert default_config().optimizer.momentum == "adam"


def test_a_ranker():
    section = Section("A ranker")
    section.run_python()
    ranker = section.names["AttributesRanker"]({"type": ["a", "a", "b"], "colour": ["x", "y", "y"]})
    expected = np.array([[2, 1, 0], [1, 2, 1]], np.float32)
    np.testing.assert_array_equal(ranker.scores(np.array([0, 1])), expected)
    listed = ranker.scores(np.array([0, 1]), np.array([[1, -1], [2, 0]]))
    np.testing.assert_array_equal(listed, [[1, -np.inf], [1, 1]])


def test_a_protocol():
    section = Section("A protocol")
    section.run_python()
    protocol, rankers = section.names["protocol"], section.names["rankers"]
    items, ranker = section.names["items"], rankers["titles"]
    assert "titles − random" in format_table(section.names["report"])
    values = protocol.metrics_of(ranker)["nDCG_exp@5"]
    scores = ranker.scores(np.arange(len(items.ids)))
    for query, (kind, colour) in enumerate(zip(items.columns["type"], items.columns["colour"], strict=True)):
        others = [i for i, other in enumerate(items.columns["type"]) if other == kind and i != query]
        assert protocol.candidate_counts()[query] == len(others)
        labels = [items.columns["colour"][i] == colour for i in others]
        expected = rank_metrics([scores[query, others]], [labels], metrics=("nDCG@5",))["nDCG@5"][0]
        assert values[query] == pytest.approx(expected, nan_ok=True)
        first = protocol.first_results(query, ranker, depth=2)
        assert [item for item, _ in first] == sorted(others, key=lambda i: -scores[query, i])[:2]
