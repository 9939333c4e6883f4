"""Many processes, one plan: process 0 plans, the others take what it says."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from functools import cache

import jax
import numpy as np

from xshard import errors
from xshard.errors import InfeasibleError, PlanError, XshardError
from xshard.plan.plan import Plan

_FAILED = b"!"


def agree(make: Callable[[], Plan]) -> Plan:
    """The plan of process 0, in every process.

    Args:
      make: plans; called in process 0 only.

    Raises:
      XshardError: what `make` raised in process 0, in every process.
    """
    if jax.process_count() == 1:
        return make()
    mine: list[Plan] = []

    def text() -> str:
        mine.append(make())
        return mine[0].to_json()

    told = same_text(text)
    return mine[0] if mine else Plan.from_json(told)


def same_text(make: Callable[[], str]) -> str:
    """The text that `make` gives in process 0, in every process.

    Raises:
      XshardError: what `make` raised in process 0, in every process.
    """
    if jax.process_count() == 1:
        return make()
    error, message = None, b""
    if jax.process_index() == 0:
        try:
            message = make().encode()
        except Exception as failure:  # the others wait: they must hear of any failure
            error, message = failure, _FAILED + _told(failure)
    message = _broadcast(message)
    if error is not None:
        raise error
    if message.startswith(_FAILED):
        raise _heard(message[1:])
    return message.decode()


def agree_bytes(count: int) -> int:
    """The number of process 0, in every process."""
    if jax.process_count() == 1:
        return count
    return int(_broadcast(str(int(count)).encode()))


def most_bytes(count: int) -> int:
    """The largest number of all processes, in every process."""
    if jax.process_count() == 1:
        return count
    from jax.experimental import multihost_utils

    halves = np.array(divmod(count, 1 << 24), np.int32)  # JAX has no 64 bits by default
    everywhere = np.reshape(multihost_utils.process_allgather(halves), (-1, 2)).tolist()
    return max((high << 24) + low for high, low in everywhere)


def _told(failure: Exception) -> bytes:
    smallest = getattr(failure, "smallest_limit_bytes", None)
    return json.dumps([type(failure).__name__, str(failure), smallest]).encode()


def _heard(message: bytes) -> XshardError:
    """The error that another process told of, of the same type if it is one of ours."""
    name, text, smallest = json.loads(message)
    if name == InfeasibleError.__name__:
        return InfeasibleError(text, smallest)
    kind = getattr(errors, name, XshardError)
    return kind(text)


@cache
def host_of_processes() -> tuple[int, ...]:
    """For each process a number that processes on one host share: there may be one for each GPU.

    The first call is collective: every process has to make it.
    """
    if jax.process_count() == 1:
        return (0,)
    from jax.experimental import multihost_utils

    digest = hashlib.sha256(platform.node().encode()).digest()
    mine = np.frombuffer(digest[:4], np.int32)
    everywhere = np.ravel(multihost_utils.process_allgather(mine))
    return tuple(int(h) for h in everywhere)


def confirm(plan: Plan, fingerprint: str) -> None:
    """Checks in every process that all of them traced what the plan is for.

    All processes learn of a difference, or some would wait for the others forever.

    Args:
      fingerprint: of this process's function, shapes, mesh and devices.

    Raises:
      PlanError: the processes traced different functions.
    """
    _confirm(plan.fingerprint == fingerprint)


def confirm_text(mine: str) -> None:
    """Checks in every process that all of them have the same text.

    Raises:
      PlanError: they differ.
    """
    _confirm(same_text(lambda: mine) == mine)


def _confirm(mine: bool) -> None:
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    same = np.array([mine])
    everywhere = multihost_utils.process_allgather(same)
    if not np.all(everywhere):
        different = [int(i) for i in np.flatnonzero(~np.ravel(everywhere))]
        raise PlanError(
            f"processes {different} traced another function or other shapes than process 0; "
            "all processes must call the same step with arguments of the same global shapes."
        )


def _broadcast(message: bytes) -> bytes:
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.array(len(message), np.int32)))
    buffer = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        buffer[:] = np.frombuffer(message, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer)))
