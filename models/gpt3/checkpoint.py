"""Checkpoints by orbax: written without stopping training, read back into the planned sharding."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from models.gpt3.cli import InputError
from models.gpt3.config import GPT3Config

_NOT_SAVED = {"name", "num_devices"}
"""Fields of the configuration that do not change what training computes."""


class Checkpoints:
    """The checkpoints of one run, the last three of them kept.

    A save is atomic: a run that is killed while it writes leaves the earlier checkpoints as they
    were. Every process calls every method.
    """

    def __init__(self, folder: Path, config: GPT3Config, seed: int) -> None:
        """Opens or makes the folder.

        Raises:
            InputError: the folder is a file or may not be written.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._folder = folder.resolve()
        self._run = _without(dataclasses.asdict(config), _NOT_SAVED) | {"seed": seed}
        options = ocp.CheckpointManagerOptions(max_to_keep=3)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise InputError(f"Cannot keep checkpoints in {folder}: {error.strerror}.") from error

    def save(self, step: int, state: Any) -> None:
        """Starts writing the state after `step` steps; the state may be donated at once."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(self._run)
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, avals: Any, shardings: Any) -> Any | None:
        """The latest state, each array in its given sharding; None where there is none yet.

        Raises:
            InputError: the checkpoint is damaged, or of a run with other settings.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        place = lambda aval, to: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=to)  # noqa: E731
        target = ocp.args.StandardRestore(jax.tree.map(place, avals, shardings))
        self._check_run(self._read(step, run=ocp.args.JsonRestore())["run"])
        return self._read(step, state=target)["state"]

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise whatever the damage leads to
            raise InputError(
                f"Checkpoint {self._folder / str(step)} is damaged or incomplete"
                f" ({_first_line(error)}); delete it to resume from the one before."
            ) from error

    def _check_run(self, saved: dict[str, Any]) -> None:
        for name, value in self._run.items():
            if saved.get(name) != value:
                raise InputError(
                    f"Checkpoints in {self._folder} are of a run with {name} {saved.get(name)},"
                    f" not {value}; use another folder or the same settings."
                )


def _without(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120] if text else 'no details'}"
