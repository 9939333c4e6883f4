"""Checkpoints: resuming equals never having stopped, and damage is told in one sentence."""

import functools
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from models.gpt3.checkpoint import Checkpoints
from models.gpt3.cli import InputError
from models.gpt3.data import Text
from models.gpt3.step import make_train_step, state_avals
from tests.models.helpers import SMALL, assert_trees_close, batches

CONFIG = SMALL.replace(layers="scanned", dtype="float16")


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.read()


def shardings(mesh: Any) -> Any:
    """Every array whose first dim divides by two is split over the mesh's first axis."""
    place = lambda a: PartitionSpec("x") if a.ndim and a.shape[0] % 2 == 0 else PartitionSpec()  # noqa: E731
    return jax.tree.map(lambda aval: NamedSharding(mesh, place(aval)), state_avals(CONFIG))


@functools.cache
def first_state() -> Any:
    return jax.jit(make_train_step(CONFIG).init)(jax.random.key(0))


def save(folder: Path, *steps: int) -> Any:
    checkpoints, state = Checkpoints(folder, CONFIG, seed=0), first_state()
    for step in steps:
        checkpoints.save(step, state)
    checkpoints.close()
    return state


def restore(folder: Path, mesh: Any, config: Any = CONFIG, seed: int = 0) -> Any:
    return Checkpoints(folder, config, seed).restore(state_avals(config), shardings(mesh(2)))


def test_resumed_training_equals_uninterrupted(tmp_path: Path, mesh: Any, text: Text) -> None:
    train = jax.jit(make_train_step(CONFIG).train)
    state, whole = first_state(), []
    for i, batch in enumerate(batches(text, CONFIG, 6)):
        if i == 3:
            checkpoints = Checkpoints(tmp_path, CONFIG, seed=0)
            checkpoints.save(i, state)
            checkpoints.close()
        state, metrics = train(state, batch)
        whole.append(float(metrics["loss"]))
    resumed = jax.device_put(restore(tmp_path, mesh), jax.devices()[0])
    for batch, loss in zip(batches(text, CONFIG, 3, first=3), whole[3:], strict=True):
        resumed, metrics = train(resumed, batch)
        assert float(metrics["loss"]) == loss
    assert_trees_close(resumed, state, 0, 0)


def test_state_is_restored_into_the_planned_sharding(tmp_path: Path, mesh: Any) -> None:
    state = save(tmp_path, 7)
    restored = restore(tmp_path, mesh)
    assert_trees_close(restored, state, 0, 0)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == shardings(mesh(2))


def test_empty_folder_has_nothing_to_restore(tmp_path: Path, mesh: Any) -> None:
    assert restore(tmp_path / "new", mesh) is None


def test_unfinished_save_is_passed_over(tmp_path: Path, mesh: Any) -> None:
    save(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    assert restore(tmp_path, mesh) is not None


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damaged_checkpoint_is_one_sentence(tmp_path: Path, mesh: Any, damage: str) -> None:
    save(tmp_path, 7)
    files = [path for path in (tmp_path / "7" / "state").rglob("*") if path.is_file()]
    for path in files:
        if damage == "truncate":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.unlink()
    message = r"^Checkpoint \S+/7 is damaged or incomplete \(.*\); delete it to resume from the one"
    with pytest.raises(InputError, match=message) as error:
        restore(tmp_path, mesh)
    assert len(str(error.value).splitlines()) == 1


OTHER_RUNS = [
    (CONFIG.replace(hidden=96), 0, "hidden 48, not 96"),
    (CONFIG, 1, "seed 0, not 1"),
]


@pytest.mark.parametrize(("config", "seed", "difference"), OTHER_RUNS)
def test_checkpoint_of_another_run_is_refused(
    tmp_path: Path, mesh: Any, config: Any, seed: int, difference: str
) -> None:
    save(tmp_path, 7)
    message = rf"^Checkpoints in \S+ are of a run with {difference}; use another folder or"
    with pytest.raises(InputError, match=message):
        restore(tmp_path, mesh, config, seed)


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^Cannot keep checkpoints in \S+: File exists\.$"):
        Checkpoints(tmp_path / "file", CONFIG, seed=0)
