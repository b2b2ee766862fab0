"""Checkpoints that are kept, restored elsewhere, and damaged in every file."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import UserError


def state_at(step: int):
    rng = np.random.default_rng(step)
    return {
        "params": {"kernel": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "t": jnp.ones((1,))},
        "step": jnp.asarray(step, jnp.int32),
    }


# Arrays of more than a kilobyte have data files of their own.
LIKE = jax.eval_shape(lambda: state_at(0))


def write(folder, steps, **options):
    with Checkpoints(folder, **options) as checkpoints:
        for step, metrics in steps.items():
            checkpoints.save(step, state=state_at(step), iterator={"position": step}, metrics=metrics)
        checkpoints.wait()
        return checkpoints.steps(), checkpoints.best_step()


def assert_restored(found, step):
    assert found[0] == step
    jax.tree.map(np.testing.assert_array_equal, found[1], state_at(step))
    assert found[2] == {"position": step}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints 1, 2 and 3. Not to be written to."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    write(folder, {1: None, 2: None, 3: None}, keep=3, attributes={"config": {"seed": 5}})
    return folder


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best_metric", "values", "kept", "best"),
    [
        ("", [1, 2, 3, 4, 5], [4, 5], None),
        ("recall", [0.1, 0.9, 0.3, 0.2, 0.4], [2, 4, 5], 2),
        ("recall", [0.1, 0.9, 0.3, 0.9, 0.4], [4, 5], 4),  # of equals the newest
        ("test_loss", [3.0, 0.5, 2.0, 1.0, 4.0], [2, 4, 5], 2),
        ("recall", [None, 0.2, float("nan"), None, None], [2, 4, 5], 2),
        ("recall", [None] * 5, [4, 5], None),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, best_metric, values, kept, best):
    steps = {
        step: {"other": 1.0} | ({} if value is None else {best_metric: value})
        for step, value in enumerate(values, start=1)
    }
    options = {"keep": 2, "best_metric": best_metric}
    assert write(tmp_path, steps, **options) == (kept, best)
    # Started again, the best is still known, and outlives the newer ones.
    more = write(tmp_path, {6: {}, 7: {}, 8: {}}, **options)
    assert more == (sorted({7, 8, *([best] if best else [])}), best)


def test_a_checkpoint_tells_of_its_run(three):
    run = json.loads((three / "3" / "run" / "metadata").read_text())
    assert run == {"config": {"seed": 5}}


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops futures that failed
@pytest.mark.parametrize("how", DAMAGE)
def test_any_damaged_file_gives_the_state_or_the_one_before(three, tmp_path, capfd, how):
    """Never a third thing: each file of the newest checkpoint in turn."""
    fell_back = 0
    for number, file in enumerate(files_of(three / "3")):
        folder = tmp_path / str(number)
        shutil.copytree(three, folder)
        DAMAGE[how](folder / "3" / file)
        with Checkpoints(folder, keep=3) as checkpoints:
            found = checkpoints.restore_newest(like=LIKE)
            warned = capfd.readouterr().err
            if found[0] == 3:  # a file that restoring has no need of
                assert_restored(found, 3)
                assert "warning" not in warned
                continue
            fell_back += 1
            assert_restored(found, 2)
            assert f"warning: {folder / '3'} is damaged" in warned, file
            assert "continuing from step 2" in warned
            assert (folder / "damaged" / "3").exists()
            # The step can be computed and saved again.
            checkpoints.save(3, state=state_at(3), iterator={"position": 3})
        with Checkpoints(folder, read_only=True) as checkpoints:
            assert_restored(checkpoints.restore_newest(like=LIKE), 3)
    assert fell_back >= 4


def test_a_save_that_never_ended_does_not_count(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    (tmp_path / "run" / "3").rename(tmp_path / "run" / "3.orbax-checkpoint-tmp-1")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert_restored(checkpoints.restore_newest(like=LIKE), 2)


def test_nothing_left_to_read_is_one_error(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    for step in "123":
        shutil.rmtree(tmp_path / "run" / step / "state")
    before = files_of(tmp_path / "run")
    expected = pytest.raises(UserError, match=r"none of the checkpoints 1, 2, 3 can be read; .*3 is damaged")
    with Checkpoints(tmp_path / "run") as checkpoints, expected:
        checkpoints.restore_newest(like=LIKE)
    assert files_of(tmp_path / "run") == before


def test_no_checkpoint_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(like=LIKE) is None
        assert (checkpoints.latest_step(), checkpoints.best_step(), checkpoints.steps()) == (None, None, [])


def test_reading_changes_nothing(three):
    before = files_of(three)
    with Checkpoints(three, keep=1, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
    assert files_of(three) == before
