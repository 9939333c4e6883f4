"""A memory limit that the compiled program keeps, not only the plan.

A plan's peak is a prediction. Where it comes near the limit, XLA's own count decides: if the
compiled program needs more, the step is planned again under a limit that is lower by as much as the
prediction was short.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from xshard.errors import InfeasibleError
from xshard.plan.units import size
from xshard.run.call import Call
from xshard.run.hosts import agree_bytes

MOST_TRIES = 4
"""How often a step is planned and compiled to meet a limit."""

_PATIENCE = 3
"""Time limits of one solve after which nothing further is begun that was not asked for: a user who
states a limit for each solve waits for a few of them, not for all that could be tried."""

NEAR = 0.6
"""Predictions below this part of the limit are not checked: none was found to be so far off."""

Step = TypeVar("Step")
"""A step with its plan: a `Runnable` or a pipeline."""

_SPARE = 0.99
"""The part of a lowered limit that is used, since another plan's prediction is off otherwise."""


def patience_s(time_limit_s: float) -> float:
    """How long plans are looked for once there is one, by the time limit of one solve."""
    return _PATIENCE * time_limit_s


def compiled_bytes(compiled: Any) -> int:
    """What one device needs for a compiled step, as XLA allocates it: arguments, results that do
    not take a donated argument's place, and temporaries."""
    m = compiled.memory_analysis()
    held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return int(held + m.temp_size_in_bytes)


def of_one_program(current: Any, call: Call) -> int:
    """What a device needs for a step of one program."""
    return compiled_bytes(current.lower(call).compile())


def within_limit(
    make: Callable[[int], Step], call: Call, limit: int, time_limit_s: float,
    needed: Callable[[Step, Call], int] = of_one_program,
) -> Step:  # fmt: skip
    """The step that needs at most `limit` bytes a device as it is compiled.

    Args:
      make: plans under a limit in bytes. Its InfeasibleError ends the search if it knows no limit
        that has a plan.
      call: the arguments to compile for.
      time_limit_s: of one solve; no further plan is tried after `patience_s` of it.
      needed: compiles a step, and says what a device needs.

    Raises:
      InfeasibleError: no plan fits, or XLA allocates more than the limit for all that were tried.
    """
    began, needs, target = time.monotonic(), list[int](), limit
    refused: InfeasibleError | None = None
    for _ in range(MOST_TRIES):
        try:
            current = make(target)
        except InfeasibleError as error:
            if error.smallest_limit_bytes is None and needs:
                break
            if error.smallest_limit_bytes is None:
                raise
            refused, current = error, make(error.smallest_limit_bytes)
        peak = current.plan.predicted_peak_bytes  # type: ignore[attr-defined]
        if peak < NEAR * limit:
            return current
        needs.append(agree_bytes(needed(current, call)))
        if needs[-1] <= limit:
            return current
        if refused or agree_bytes(time.monotonic() - began > patience_s(time_limit_s)):
            break
        target = int(min(peak, target) * limit / needs[-1] * _SPARE)
    if refused and len(needs) == 1:
        raise _needing(refused, needs[0])
    raise InfeasibleError(_message(limit, needs), min(needs))


def _needing(error: InfeasibleError, need: int) -> InfeasibleError:
    """The error of a limit without a plan, when XLA allocates `need` for the smallest with one."""
    if need <= (error.smallest_limit_bytes or 0):
        return error
    text = str(error).replace("limit that works", "limit that has a plan", 1)
    return InfeasibleError(
        f"{text}\nXLA allocates {size(need)} for that plan: a limit of {need} bytes works.", need
    )


def _message(limit: int, needs: list[int]) -> str:
    return (
        f"no plan was found whose compiled program fits {size(limit)} per device: there are plans "
        f"that are predicted to fit, but XLA allocates {size(min(needs))} for the smallest of the "
        f"{len(needs)} that were compiled. A limit of {min(needs)} bytes works; so may more "
        "devices, a smaller batch, or jax.checkpoint around the layers."
    )
