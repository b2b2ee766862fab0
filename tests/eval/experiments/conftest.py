"""What tea-tasting, statsmodels and ville say of one small experiment; tests/golden/make_experiments.py made it."""

import json
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "experiments.json"


@pytest.fixture(scope="session")
def golden_experiment() -> dict:
    found = json.loads(GOLDEN.read_text())
    found["columns"] = {name: np.array(values, np.float64) for name, values in found["columns"].items()}
    return found


@pytest.fixture(scope="session")
def arms_of(golden_experiment):
    """The columns named, of control and of treatment: two arrays [user, column]; None is a column of ones."""
    columns = golden_experiment["columns"]

    def stack(*names):
        ones = np.ones(len(columns["variant"]))
        table = np.stack([ones if name is None else columns[name] for name in names], axis=1)
        return table[columns["variant"] == 0], table[columns["variant"] == 1]

    return stack
