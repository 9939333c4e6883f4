"""Each op's rule, read against its text form and against what XLA does."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.rules.cases import CASES
from tests.rules.one_op import Case, as_function, find, random_args, rule_of_equation
from xshard.rules import Rule
from xshard.rules.rule import Dim
from xshard.run.constraints import partition_spec
from xshard.spec import MeshShape
from xshard.strategies import strategies_of

COLLECTIVE = re.compile(
    r"= .*?(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
)

GATHERED = {"top_k": {"all-gather"}}
"""What XLA gathers although no element needs another shard. top_k: on CPU, not on GPU."""
if jax.__version_info__ < (0, 12):
    GATHERED["fft"] = {"all-gather"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_reads_as_specified(case: Case) -> None:
    rule = rule_of_equation(find(case))
    assert rule.known
    assert rule.text() == case.text
    assert not rule.reduced or rule.reduce == case.reduce


@pytest.mark.parametrize("case", CASES, ids=str)
def test_xla_splits_each_factor_as_the_rule_says(case: Case, mesh) -> None:
    eqn = find(case)
    rule, args = rule_of_equation(eqn), random_args(eqn)
    whole = as_function(eqn)(*args)
    for factor in splittable(rule):
        run = jax.jit(
            as_function(eqn),
            in_shardings=shardings(rule.operands, factor, mesh(2), eqn.invars),
            out_shardings=shardings(rule.results, factor, mesh(2), eqn.outvars),
        )
        found = set(COLLECTIVE.findall(run.lower(*args).compile().as_text() or ""))
        expected = {"all-reduce"} if factor in rule.reduced else GATHERED.get(case.prim, set())
        assert found == expected, f"{factor} of {rule.text()}"
        for part, reference in zip(run(*args), whole, strict=True):
            assert_close(part, reference)


@pytest.mark.parametrize("case", [c for c in CASES if c.prim.startswith("conv")], ids=str)
def test_xla_computes_rightly_whatever_two_axes_split(case: Case, mesh) -> None:
    eqn = find(case)
    rule, args, shape = rule_of_equation(eqn), random_args(eqn), MeshShape(("x", "y"), (4, 2))
    whole = as_function(eqn)(*args)
    ranks = [tuple(len(v.aval.shape) for v in side) for side in (eqn.invars, eqn.outvars)]
    for strategy in strategies_of(rule, shape, *ranks):
        specs = [
            [NamedSharding(mesh(4, 2), partition_spec(spec, mesh(4, 2))) for spec in side]
            for side in (strategy.operands, strategy.results)
        ]
        run = jax.jit(as_function(eqn), in_shardings=specs[0], out_shardings=specs[1])
        for part, reference in zip(run(*args), whole, strict=True):
            assert_close(part, reference)


@pytest.mark.parametrize("case", {c.prim: c for c in CASES}.values(), ids=str)
def test_xla_pads_what_does_not_divide(case: Case, mesh) -> None:
    """Over four devices with a copy each, the last may have nothing: as on one device."""
    eqn = find(case)
    rule, args = rule_of_equation(eqn), random_args(eqn)
    whole = as_function(eqn)(*args)
    for factor in splittable(rule):
        if rule.sizes[factor] % 4 == 0 or factor in rule.even:
            continue
        ins = shardings(rule.operands, factor, mesh(4, 2), eqn.invars)
        outs = shardings(rule.results, factor, mesh(4, 2), eqn.outvars)

        def run(*args, ins=ins, outs=outs):
            results = as_function(eqn)(*map(constrained, args, ins))
            split = map(constrained, results, outs)
            return [constrained(x, NamedSharding(mesh(4, 2), P())) for x in split]

        for part, reference in zip(jax.jit(run)(*args), whole, strict=True):
            assert_close(part, reference)


def constrained(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The array in that sharding, if it is one that may have any."""
    extended = jax.numpy.issubdtype(x.dtype, jax.dtypes.extended)
    return x if extended or not x.ndim else jax.lax.with_sharding_constraint(x, sharding)


def splittable(rule: Rule) -> list[str]:
    """Factors that two devices can share: outermost in each of their dimensions."""
    dims = [d for group in (*rule.operands, *rule.results) for d in group or ()]
    inner = {f for dim in dims for f in dim[1:]}
    return [f for f, n in rule.sizes.items() if n % 2 == 0 and f not in rule.blocked | inner]


def shardings(
    groups: tuple[tuple[Dim, ...] | None, ...], factor: str, mesh: Mesh, variables: list
) -> list[NamedSharding]:
    """The mesh on each dimension that begins with `factor`; none for literals."""
    return [
        NamedSharding(mesh, P(*("x" if factor in dim else None for dim in dims or ())))
        for dims, var in zip(groups, variables, strict=True)
        if not hasattr(var, "val")
    ]


def assert_close(part: jax.Array, expected: jax.Array) -> None:
    """Equal up to the rounding of a sum in another order."""
    if jax.numpy.issubdtype(part.dtype, jax.dtypes.prng_key):
        part, expected = jax.random.key_data(part), jax.random.key_data(expected)
    np.testing.assert_allclose(
        np.asarray(part, np.complex64), np.asarray(expected, np.complex64), rtol=2e-5, atol=2e-5
    )
