"""The programs of examples/, run as a user runs them, with tiny sizes."""

import re


def test_quickstart_without_arguments_searches_a_tiny_model(example):
    lines = example("quickstart.py").splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"a \w+ \w+: (\w+ -?\d\.\d{3}(, )?){3}", line) for line in lines)


def test_quickstart_takes_a_model_and_images(example, trained_workdir, shop):
    images = sorted(map(str, (shop / "images").glob("*.jpg")))[:2]
    lines = example("quickstart.py", str(trained_workdir), *images).splitlines()
    assert [image in line for line in lines for image in images] == [True] * 4


def test_the_minimal_loop_learns(example):
    printed = example("train_minimal.py", "--steps=100")
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]
    assert losses[-1] < 0.7 * losses[0]
    assert float(re.search(r"accuracy (\d\.\d+) of 16", printed)[1]) > 0.5  # a guess is right once in 16


def test_an_own_metric_is_between_precision_and_recall(example):
    lines = [line.split() for line in example("own_metric.py").splitlines()]
    assert lines[0] == ["F1@1", "F1@5", "precision@5", "recall@5"]
    measured = {name: list(map(float, values)) for name, *values in lines[1:]}
    for _, f1, precision, recall in measured.values():
        assert recall < f1 < precision
    assert measured["vectors"][1] > 10 * measured["random"][1]


def test_an_own_evaluator_measures(example):
    measured = dict(line.split() for line in example("own_evaluator.py").splitlines())
    assert measured.keys() == {"separation/margin", "separation/nearest"}
    assert float(measured["separation/margin"]) < 0  # random weights: some other title is nearer
    assert 0 <= float(measured["separation/nearest"]) < 0.5
