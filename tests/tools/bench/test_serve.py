"""A real server keeps its promises while its index is swapped and while it is told to stop."""

import pytest

from siglip_jax import cli
from tools.bench.serve import STEADY, STOPPED, SWAPPED, run_load


@pytest.mark.slow
def test_no_answer_is_wrong_or_lost():
    load = run_load(items=400, dim=8, clients=4, seconds=4.0, swaps=20)
    assert (load.wrong, load.lost, load.swaps) == (0, 0, 20), load.errors[:5]
    assert {each.part for each in load.answers} >= {STEADY, SWAPPED}
    assert {each.part for each in load.answers} <= {STEADY, SWAPPED, STOPPED}
    assert len({each.generation for each in load.answers if each.part == SWAPPED}) == 2
    assert load.refused >= 1  # in the end it is gone


@pytest.mark.slow
def test_figures(capsys):
    assert cli.main(["bench", "serve", "--items=100", "--dim=4", "--clients=2", "--seconds=1", "--swaps=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["part", "steady", "swapped"]
    assert " 0 wrong; 3 swaps; 0 questions lost before SIGTERM" in lines[-1]
