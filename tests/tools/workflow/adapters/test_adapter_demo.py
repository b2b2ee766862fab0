"""How an adapter's training is fitted to the catalogue; the whole demo is in tests/tools/test_demo.py."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.adapter import get_config
from tools.workflow.adapters.adapter_demo import MOST_EPOCHS, _fitted_to


@given(rows=st.integers(2, 100_000))
def test_few_pairs_are_seen_a_bounded_number_of_times_in_batches_that_they_fill(rows):
    config = get_config()
    fitted = _fitted_to(config, rows=rows)
    assert fitted.batch_size <= rows
    assert fitted.batch_size == config.batch_size or rows < 2 * fitted.batch_size
    assert fitted.steps * fitted.batch_size <= MOST_EPOCHS * rows
    assert fitted.steps == config.steps or (fitted.steps + 1) * fitted.batch_size > MOST_EPOCHS * rows
    assert fitted.optimizer.warmup_steps <= max(1, fitted.steps // 10)
    # exp(t) and everything else aside, the bias is that of one positive in the batch.
    odds = [math.exp(each.model.init_bias) * each.batch_size for each in (config, fitted)]
    assert odds[0] == pytest.approx(odds[1])


def test_a_large_catalogue_changes_nothing(capsys):
    config = get_config()
    assert _fitted_to(config, rows=32_203) is config
    assert capsys.readouterr().out == ""


def test_what_is_changed_is_said(capsys):
    _fitted_to(get_config(), rows=100)
    assert capsys.readouterr().out == (
        "a batch of 64 pairs, not 512 and 100 steps, not 1000, since there are 100 items to train on\n"
    )
