"""No choices hold less than an equal share of all that is live."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.steps import array, mlp, mlp_params, state, train
from xshard.asked import Asked
from xshard.cost.cluster import Cluster
from xshard.hopeless import Hopeless, nothing_fits
from xshard.ir.trace import trace
from xshard.place import mesh_shapes
from xshard.prepare import Prepared, model, prepare_all
from xshard.run.call import Arguments


def prepared(kind: str) -> list[Prepared]:
    """A step on each mesh of four devices."""
    step, avals = train([mlp] * 4), (state([mlp_params(96, 64)] * 4), array(256, 96))
    call = Arguments(step, (), (0,)).call(avals, {})
    asked = Asked(Cluster.parse(f"{kind}:1x4"), mesh_shapes(4))
    return prepare_all(asked.requests(trace(step, avals, call.static), call))


@pytest.mark.parametrize("kind", ["cpu", "v100-sxm2-32gb"])
def test_no_choices_hold_less(kind: str) -> None:
    rng = np.random.default_rng(0)
    for p in prepared(kind):
        modelled, least = model(p), _least(p)
        sizes = [len(node.costs) for node in modelled.draft.nodes]
        for _ in range(50):
            choices: Any = tuple(int(rng.integers(n)) for n in sizes)
            assert modelled.peak_bytes(choices) >= least


def test_it_is_the_same_on_all_meshes_and_falls_with_the_rows() -> None:
    found = [nothing_fits(p, 1) for p in prepared("v100-sxm2-32gb")]
    assert len(set(found)) == 1 and isinstance(found[0], Hopeless)
    assert found[0].at(4, 1) < found[0].at(2, 1) < found[0].at(1, 1)


def _least(p: Prepared) -> int:
    """The largest limit that nothing fits."""
    low, high = 1, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if nothing_fits(p, middle) is None else (middle, high)
    return low
