"""Ops that shares of a sum may pass before they are added up: f(a) + f(b) = f(a + b).

Inside a body (a layer's loop, a checkpoint) shares have to get out, so all of them are let through.
In the step itself, whatever can wait for the complete sum does, since it then runs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from xshard._jax import JaxprEqn
from xshard.microbatch.factor import Use, coupled
from xshard.microbatch.status import FULL, Const, Partial, Status, may_be, version

_SAME = frozenset(
    "neg transpose reshape squeeze expand_dims copy copy_p rev reduce_sum real imag "
    "broadcast_in_dim slice split unstack tile cumsum fft conj "
    "sharding_constraint reshard device_put layout_constraint".split()
)
"""Linear in their only operand."""
_SUMS = frozenset({"add", "add_any", "sub", "concatenate", "stack", "complex"})
"""Linear in all operands together: no operand may be a constant but zero."""
_FIRST = frozenset({"div", "dynamic_slice"})
"""Linear in the first operand for given others."""
_EITHER = frozenset({"mul", "dot_general", "conv_general_dilated"})
"""Linear in each operand for a given other one."""
_MOVES = frozenset(
    "transpose reshape squeeze expand_dims copy copy_p rev broadcast_in_dim slice split unstack "
    "tile dynamic_slice sharding_constraint reshard device_put layout_constraint".split()
)
"""Move elements only, so that they let any kind of share pass."""


def linear(eqn: JaxprEqn, statuses: Sequence[Status]) -> Use:
    """The use of an op that reads shares and no rows.

    Raises:
      CoupledError: it is not linear in them.
    """
    kinds = {s for s in statuses if isinstance(s, Partial)}
    share, prim = next(iter(kinds)), eqn.primitive.name
    if len(kinds) > 1 or not _passes(eqn, prim, statuses, share):
        raise coupled(eqn, "needs a sum over the batch to be complete")
    together = prim in _SUMS or _combines(prim, share)
    wanted = [share if together or s == share else FULL for s in statuses]
    if prim == "select_n":
        wanted[1:] = [share] * (len(wanted) - 1)
    return Use(tuple(wanted), (share,) * len(eqn.outvars))


def _passes(eqn: JaxprEqn, prim: str, statuses: Sequence[Status], share: Partial) -> bool:
    at = [i for i, s in enumerate(statuses) if s == share]
    if prim in _MOVES or _combines(prim, share):
        moved = at == [0] if prim in _MOVES else True
        return moved and (prim in _MOVES or all(may_be(s, share) for s in statuses))
    if share.how != "sum":
        return False
    if prim == "convert_element_type":
        return _keeps_sums(eqn)
    if prim in _SAME or prim in _FIRST:
        return at == [0]
    if prim in _SUMS:
        return all(may_be(s, share) for s in statuses)
    if prim == "select_n":
        return 0 not in at and all(may_be(s, share) for s in statuses[1:])
    if prim == "pad":
        return at == [0] and statuses[1] == Const(zero=True)
    return prim in _EITHER and len(at) == 1


def _combines(prim: str, share: Partial) -> bool:
    return prim == share.how and share.how in ("max", "min", "and", "or")


def _keeps_sums(eqn: JaxprEqn) -> bool:
    """Between floats of no less precision, or integers to floats."""
    aval: Any = eqn.invars[0].aval
    old, new = aval.dtype, eqn.params["new_dtype"]
    if jnp.issubdtype(old, jnp.integer):
        return jnp.issubdtype(new, jnp.floating) or np.dtype(new) == old
    return jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact) and (
        jnp.finfo(new).bits >= jnp.finfo(old).bits
    )  # fmt: skip


_CHEAP = frozenset(
    "add add_any sub neg convert_element_type transpose reshape squeeze expand_dims copy copy_p "
    "mul div max min and or".split()
)


def worth_passing(eqn: JaxprEqn) -> bool:
    """Whether shares pass this op in the step itself: it costs nothing, and makes no more of them.

    So two shares of a tied weight's gradient are added before they are summed up.
    """
    if not eqn.outvars:
        return False
    most = max((getattr(v.aval, "size", 0) for v in eqn.invars), default=0)
    result: Any = eqn.outvars[0].aval
    return eqn.primitive.name in _CHEAP and result.size <= most


def identities(statuses: Sequence[Status]) -> Use:
    """The use of an op whose k-th result is its k-th operand."""
    return Use(tuple(map(version, statuses)), tuple(statuses))
