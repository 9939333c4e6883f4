"""A traced step -> the same step with some layers' residuals made again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from xshard._jax import (
    Literal,
    equation_context,
    free_of_mesh,
    retraced,
    scan_counts,
    source_line,
    without_dead_code,
)
from xshard.ir.graph import Address
from xshard.ir.layers import Chain, find_layers
from xshard.ir.trace import Traced, build_graph
from xshard.remat.bind import bind
from xshard.remat.chain import Clones, clones_of
from xshard.remat.finished import Finished
from xshard.remat.loop import Pair, Split, pair_of
from xshard.remat.program import Node, Program, program_of


@dataclass(frozen=True, slots=True)
class Repeated:
    """A chain or loop of layers that keeps residuals for the backward pass.

    Attributes:
      length: the number of layers.
      saved_bytes: of the unsharded residuals that are not kept if all layers are recomputed.
      source: the user's line of a layer.
    """

    length: int
    saved_bytes: int
    how: Pair | tuple[Clones | None, ...]
    region: Address
    source: str


@dataclass(frozen=True, slots=True)
class Layered:
    """A traced step with the layers that can be recomputed.

    Attributes:
      parts: in the order of the forward pass.
    """

    traced: Traced
    program: Program
    parts: tuple[Repeated, ...]

    @property
    def may_wait(self) -> bool:
        """Whether layers can wait for those behind them in the backward pass: unrolled ones."""
        return any(isinstance(part.how, tuple) for part in self.parts)

    def recomputing(self, counts: Sequence[int]) -> Traced:
        """The step in which of each part so many layers are recomputed, the first ones.

        Their residuals would wait longest for the backward pass. Where none is recomputed, unrolled
        layers of the backward pass still wait for each other (`xshard.remat.finished`).
        """
        if not counts:
            return self.traced
        changes: dict[Address, _Changes] = {}
        for part, count in zip(self.parts, counts, strict=True):
            changes.setdefault(part.region, _Changes()).add(part, count)
        jaxpr = retraced(lambda *args: _run(self.program, args, changes), self.traced.closed_jaxpr)
        jaxpr = without_dead_code(jaxpr)
        graph, consts = build_graph(jaxpr, self.traced.in_paths)
        return replace(self.traced, closed_jaxpr=jaxpr, graph=graph, consts=consts)


def layered(traced: Traced) -> Layered:
    """Finds the layers of a step and what they keep for the backward pass."""
    found = find_layers(traced.graph)
    program = program_of(traced.closed_jaxpr, traced.graph, {part.region for part in found})
    parts = list[Repeated]()
    for inner in program.inner():
        nodes = _node_of_op(inner, traced)
        by_address = {node.address: node for node in inner.nodes}
        for part in found:
            if part.region != inner.region:
                continue
            if isinstance(part, Chain):
                clones = clones_of(inner, part, nodes)
                saved = sum(c.nbytes(inner) for c in clones if c is not None)
                if saved:
                    line = _line(traced.graph.ops[o].source for o in part.layers[0].forward)
                    parts.append(Repeated(part.length, saved, tuple(clones), part.region, line))
                continue
            pair = pair_of(inner, by_address[part.forward], by_address[part.backward])
            if pair is not None and pair.nbytes() > 0:
                line = source_line(pair.forward.eqn.source_info.traceback)
                parts.append(Repeated(part.length, pair.nbytes(), pair, part.region, line))
    return Layered(traced, program, tuple(parts))


def _line(sources: Iterable[str]) -> str:
    return next((source for source in sources if source), "")


def _node_of_op(program: Program, traced: Traced) -> dict[int, int]:
    """The index of the node of each op of the graph."""
    index = {node.address: i for i, node in enumerate(program.nodes)}
    found: dict[int, int] = {}
    for op in traced.graph.ops:
        for n in range(len(program.region) + 1, len(op.address) + 1):
            if op.address[:n] in index:
                found[op.id] = index[op.address[:n]]
                break
    return found


@dataclass(slots=True)
class _Changes:
    """What is done otherwise in one region.

    Attributes:
      layers: by the index of the backward node with which a layer begins, what of it runs again
        before that; nothing of one that is not recomputed.
      splits: by node, what runs in its stead.
    """

    layers: dict[int, list[Clones]] = field(default_factory=dict)
    splits: dict[Node, Callable[[Sequence[Any]], list[Any]]] = field(default_factory=dict)

    def add(self, part: Repeated, count: int) -> None:
        """Recomputes the first layers of a part."""
        if isinstance(part.how, tuple):
            for i, clones in enumerate(part.how):
                if clones is not None:
                    self.layers.setdefault(clones.at, []).extend([clones][: i < count])
        elif count:
            split = Split(part.how, count)
            self.splits[part.how.forward] = split.forward
            self.splits[part.how.backward] = split.backward


def _run(program: Program, args: Sequence[Any], changes: Mapping[Address, _Changes]) -> list[Any]:
    """The results of a program.

    What is made again takes the place of the first for backward nodes, and so do the layer's inputs
    behind their barrier: what resharding these need then happens once for both.
    """
    told = changes.get(program.region, _Changes())
    first: dict[int, Any] = dict(zip(program.ins, args, strict=True)) | program.consts
    again: dict[int, Any] = {}
    finished = Finished(program, first)

    def read(atom: Any, backward: bool) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        return again[atom] if backward and atom in again else first[atom]

    with free_of_mesh():
        for i, node in enumerate(program.nodes):
            for clones in told.layers.get(i, ()):
                _rerun(program, clones, finished, again)
            if told.layers.get(i) == []:
                where, settings = equation_context(node.eqn)
                with where, settings:
                    finished.wait(i)
            ins = [read(a, node.phase == "bwd") for a in node.ins]
            first.update(zip(node.outs, _outs(node, ins, told, changes), strict=True))
            finished.made(node)
        return [read(a, backward=False) for a in program.outs]


def _outs(
    node: Node, ins: list[Any], told: _Changes, changes: Mapping[Address, _Changes]
) -> Sequence[Any]:
    if node in told.splits:
        where, settings = equation_context(node.eqn)
        with where, settings:
            return told.splits[node](ins)
    if node.body is None or not any(
        r[: len(node.body.region)] == node.body.region for r in changes
    ):
        return bind(node.eqn, ins)
    return _loop(node, node.body, ins, changes)


def _loop(
    node: Node, body: Program, ins: list[Any], changes: Mapping[Address, _Changes]
) -> list[Any]:
    params = node.eqn.params
    consts, carries = scan_counts(params)
    last = consts + carries

    def turn(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = _run(body, [*ins[:consts], *carry, *xs], changes)
        return outs[:carries], outs[carries:]

    where, settings = equation_context(node.eqn)
    with where, settings:
        carry, ys = jax.lax.scan(
            turn, list(ins[consts:last]), list(ins[last:]), params["length"], params["reverse"],
            params["unroll"],
        )  # fmt: skip
    return [*carry, *ys]


def _rerun(program: Program, clones: Clones, finished: Finished, again: dict[int, Any]) -> None:
    """Runs a part of a layer again; adds what it makes to `again`."""
    where, settings = equation_context(program.nodes[clones.nodes[0]].eqn, again=True)
    with where, settings:
        inputs = finished.wait(clones.at, [finished.values[v] for v in clones.inputs])
    local = dict(zip(clones.inputs, inputs, strict=True))
    again.update(local)
    for i in clones.nodes:
        node = program.nodes[i]
        ins = [a.val if isinstance(a, Literal) else local[a] for a in node.ins]
        local.update(zip(node.outs, bind(node.eqn, ins, again=True), strict=True))
    again.update({v: local[v] for v in clones.made})
