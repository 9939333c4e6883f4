"""Where no plan exists, the error names the pins at fault: all of them and none too many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import xshard
from xshard.diagnosis import Statement, conflict

STATEMENTS = [Statement(str(i), (i,), ()) for i in range(7)]


@given(st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=4))
def test_a_conflict_cannot_hold_and_any_fewer_statements_can(forbidden: list[set[int]]) -> None:
    """`forbidden`: sets of statements that cannot hold together."""

    def can_hold(kept: Sequence[Statement]) -> bool:
        values = {v for s in kept for v in s.values}
        return not any(bad <= values for bad in forbidden)

    found = conflict(STATEMENTS, can_hold)
    if not can_hold([]):
        assert found == []
        return
    assert not can_hold(found)
    assert all(can_hold([s for s in found if s != left]) for left in found)


ARRAY = jax.ShapeDtypeStruct((64, 64), "float32")
BYTES = 64 * 64 * 4


def total(a: Any, b: Any, c: Any) -> Any:
    return jnp.sum(a) + jnp.sum(b) + jnp.sum(c)


def error(limit: int, *in_specs: P | None) -> str:
    with pytest.raises(xshard.InfeasibleError) as caught:
        xshard.plan(
            total, *[ARRAY] * 3, cluster="cpu:4", mesh=(4,), in_specs=in_specs, memory_limit=limit
        )
    return str(caught.value)


def test_two_pins_that_only_together_leave_no_plan() -> None:
    message = error(2 * BYTES, P(), P("data"), P())
    assert "These together leave no plan within 32.8 kB, any fewer of them do" in message
    assert message.endswith(":\n  args[0]: P()\n  args[2]: P()")


def test_one_pin_that_alone_leaves_no_plan() -> None:
    message = error(BYTES, None, P(), P("data"))
    assert "This alone leaves no plan within 16.4 kB; drop or change it:\n  args[1]: P()" in message


def test_no_pin_is_blamed_where_nothing_fits_without_pins() -> None:
    assert "leave" not in error(1000, P(), P(), P())
