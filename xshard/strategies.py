"""From a rule to strategies: which factor each mesh axis splits, and all that follows from it.

A `Strategy` puts each mesh axis on one factor of the op or on none. Operand specs, result specs and
the axes over which results are partial sums are derived here, once, for every op.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from xshard.rules.rule import Dim, Rule
from xshard.spec import MeshShape, Spec, may_split


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to split an op over the mesh.

    Attributes:
      factors: for each mesh axis, the factor that it splits, or None.
      operands: the spec each operand must have; () for literals and scalars.
      results: the spec each result has; partial over `partial` where that is not empty.
      partial: mesh axes that split a reduced factor.
    """

    factors: tuple[str | None, ...]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]
    partial: tuple[int, ...]

    def splits(self, mesh: MeshShape) -> int:
        """Among how many devices the op's work is divided."""
        return mesh.size_of(tuple(a for a, f in enumerate(self.factors) if f is not None))


def strategies_of(
    rule: Rule, mesh: MeshShape, operand_ranks: tuple[int, ...], result_ranks: tuple[int, ...]
) -> tuple[Strategy, ...]:
    """All strategies of an op, without those that do not divide.

    The first splits nothing, but for factors that are bound to a mesh axis.
    """
    found: dict[tuple[object, ...], Strategy] = {}
    options = [_options(rule, *axis) for axis in zip(mesh.names, mesh.sizes, strict=True)]
    for factors in itertools.product(*options):
        if rule.crowded.intersection(factors) and _copies(factors, mesh) > 1:
            continue
        if rule.shared.intersection(factors) and _sharers(rule, factors, mesh) == 1:
            continue
        strategy = strategy_of(rule, mesh, factors, operand_ranks, result_ranks)
        if strategy is not None:
            key = (strategy.operands, strategy.results, strategy.partial, strategy.splits(mesh))
            found.setdefault(key, strategy)
    return tuple(found.values())


def specs_of(shape: tuple[int, ...], mesh: MeshShape) -> tuple[Spec, ...]:
    """All specs of an array that split its dimensions as they may be; the first splits nothing."""
    names = [f"d{i}" for i in range(len(shape))]
    dims = tuple((name,) if n > 1 else () for name, n in zip(names, shape, strict=True))
    rule = Rule((), (dims,), dict(zip(names, shape, strict=True)), kind="view")
    return tuple(s.results[0] for s in strategies_of(rule, mesh, (), (len(shape),)))


def _copies(factors: tuple[str | None, ...], mesh: MeshShape) -> int:
    """How many devices do the same."""
    return mesh.size_of(tuple(a for a, f in enumerate(factors) if f is None))


def _sharers(rule: Rule, factors: tuple[str | None, ...], mesh: MeshShape) -> int:
    """How many elements a device keeps along the rule's `sharers`."""
    kept = 1
    for factor in rule.sharers:
        shards = mesh.size_of(tuple(a for a, f in enumerate(factors) if f == factor))
        kept *= -(-rule.sizes[factor] // shards)
    return kept


def _options(rule: Rule, axis: str, axis_size: int) -> list[str | None]:
    """The factors that a mesh axis may split; None for "no factor"."""
    if axis_size == 1:
        return [None]
    for factor, name in rule.bound.items():
        if name == axis and rule.sizes.get(factor) == axis_size:
            return [factor]
    fixed = rule.blocked | rule.bound.keys()
    return [
        None,
        *(f for f, n in rule.sizes.items() if f not in fixed and n and _fits(rule, f, axis_size)),
    ]


def _fits(rule: Rule, factor: str, shards: int) -> bool:
    """Whether a factor may be split so: what XLA would have to pad only where it stands alone."""
    n = rule.sizes[factor]
    return n % shards == 0 or (may_split(n, shards) and factor not in rule.even)


def strategy_of(
    rule: Rule,
    mesh: MeshShape,
    factors: tuple[str | None, ...],
    operand_ranks: tuple[int, ...],
    result_ranks: tuple[int, ...],
) -> Strategy | None:
    """The strategy that puts each mesh axis on this factor; None if that does not divide."""
    axes: dict[str, tuple[int, ...]] = {}
    for axis, factor in enumerate(factors):
        if factor is not None:
            axes[factor] = (*axes.get(factor, ()), axis)
    if not all(_fits(rule, f, mesh.size_of(a)) for f, a in axes.items()):
        return None
    operands = _specs(rule.operands, operand_ranks, axes, rule.sizes, mesh)
    results = _specs(rule.results, result_ranks, axes, rule.sizes, mesh)
    if operands is None or results is None:
        return None
    partial = tuple(a for a, f in enumerate(factors) if f in rule.reduced)
    return Strategy(factors, operands, results, partial)


def _specs(
    groups: tuple[tuple[Dim, ...] | None, ...],
    ranks: tuple[int, ...],
    axes: dict[str, tuple[int, ...]],
    sizes: dict[str, int],
    mesh: MeshShape,
) -> tuple[Spec, ...] | None:
    specs: list[Spec] = []
    for dims, rank in zip(groups, ranks, strict=True):
        spec = _spec(dims, axes, sizes, mesh) if dims is not None else ((),) * rank
        if spec is None:
            return None
        specs.append(spec)
    return tuple(specs)


def _spec(
    dims: tuple[Dim, ...], axes: dict[str, tuple[int, ...]], sizes: dict[str, int], mesh: MeshShape
) -> Spec | None:
    """The spec of one array, or None if a compound dimension would be split in strides."""
    spec: list[tuple[int, ...]] = []
    for dim in dims:
        taken: tuple[int, ...] = ()
        whole_so_far = True
        for factor in dim:
            mine = axes.get(factor, ())
            if mine and not whole_so_far:
                return None
            taken += mine
            whole_so_far = whole_so_far and mesh.size_of(mine) == sizes[factor]
        if taken != tuple(sorted(taken)):
            return None
        spec.append(taken)
    return tuple(spec)
