"""A scan over layers, split into one scan for each stage.

What the scan goes over (stacked weights) and what it stacks (residuals, gradients) is taken apart
along its first dimension, and so is what is computed of these layer by layer: the other scan, that
of the backward pass, the totals over the microbatches, and the optimizer's update with its moments.
An argument that is taken apart becomes several inputs. Where an op needs the whole array, the
pieces are put together for it; where it sums over the layers, the pieces' sums are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import Literal, Var, scan_counts
from xshard.microbatch.accumulate import COMBINE
from xshard.microbatch.factor import Use, backward, forward
from xshard.microbatch.resize import resized
from xshard.microbatch.status import FULL, CoupledError, Partial, Rows, Status
from xshard.stages.flat import Atom, Flat, Node
from xshard.stages.pieces import LAYERS, Bounds, Local, Split, is_simple, is_zero, with_layers
from xshard.stages.slices import rows_of
from xshard.stages.staged import Piece


def stacks_of(flat: Flat) -> list[Node]:
    """The body's scans over arrays that all microbatches share: over the layers' weights."""
    made = {v for n in flat.body for v in n.outs}

    def over_weights(node: Node) -> bool:
        rows = node.ins[sum(scan_counts(node.eqn.params)) :]
        shared = [a for a in rows if not isinstance(a, Literal) and a not in made]
        return node.eqn.params["length"] > 1 and any(flat.avals[a].ndim > 1 for a in shared)

    return [n for n in flat.body if n.eqn.primitive.name == "scan" and over_weights(n)]


def unstack(
    flat: Flat, cuts: Mapping[Node, Bounds], arguments: Mapping[int, Sequence[int]]
) -> tuple[Flat, dict[Node, list[Node]]]:
    """The step with these scans and arguments split; and which nodes stand for each of its nodes.

    Args:
      arguments: those that no scan goes over, but of which layers read slices.
    """
    return _Unstacker(flat, cuts, {v: tuple(bounds) for v, bounds in arguments.items()}).run()


@dataclass(slots=True)
class _Unstacker:
    old: Flat
    cuts: Mapping[Node, Bounds]
    arguments: Mapping[int, Bounds]
    new: Flat = field(init=False)
    splits: dict[int, Split] = field(default_factory=dict)
    wholes: dict[int, int] = field(default_factory=dict)
    makers: dict[int, tuple[Node, list[Node]]] = field(default_factory=dict)
    lists: dict[int, list[Node]] = field(default_factory=dict)
    stand_for: dict[Node, list[Node]] = field(default_factory=dict)
    zeros: set[int] = field(default_factory=set)

    def run(self) -> tuple[Flat, dict[Node, list[Node]]]:
        old = self.old
        self.new = replace(
            old, avals=list(old.avals), before=[], body=[], after=[], totals=[], stacks=[],
            pieces=dict(old.pieces),
        )  # fmt: skip
        self.wholes = {v: v for v in old.inputs}
        for v, bounds in self.arguments.items():
            self.splits[v] = Split(LAYERS, bounds, self._input(v, bounds))
        for nodes, into in ((old.before, self.new.before), (old.body, self.new.body)):
            for node in nodes:
                self._visit(node, into)
        self._ends()
        for node in old.after:
            self._visit(node, self.new.after)
        self.new.results = tuple(map(self._result, old.results))
        self._join_inputs()
        return self.new, self.stand_for

    def _visit(self, node: Node, into: list[Node]) -> None:
        """Adds a node, or its pieces, behind what is already there."""
        first = len(into)
        self.makers.update(dict.fromkeys(node.outs, (node, into)))
        bounds = self.cuts.get(node) or self._scanned(node)
        if bounds is not None:
            self._scan(node, bounds, into)
        elif not any(way(node, into) for way in self._ways):
            ins = [a if isinstance(a, Literal) else self._whole(a, into) for a in node.ins]
            into.append(Node(node.eqn, tuple(ins), node.outs))
            self.wholes.update(zip(node.outs, node.outs, strict=True))
        self.stand_for[node] = into[first:]

    @property
    def _ways(self) -> tuple[Callable[[Node, list[Node]], bool], ...]:
        """How an op may run on pieces; each says whether it did."""
        return self._slice, self._pad, self._sum, self._in_pieces

    def _slice(self, node: Node, into: list[Node]) -> bool:
        """Takes rows of the piece that has them all."""
        rows = rows_of(self.old, node)
        split = self.splits.get(node.reads[0]) if rows else None
        if rows is None or split is None or split.rows != LAYERS:
            return False
        for piece, (a, b) in zip(split.pieces, pairwise(split.bounds), strict=True):
            if a <= rows[0] and rows[1] <= b:
                params = node.eqn.params
                start, stop = params["start_indices"], params["limit_indices"]
                moved = {"start_indices": (rows[0] - a, *start[1:]),
                         "limit_indices": (rows[1] - a, *stop[1:])}  # fmt: skip
                outs = [self.old.avals[v] for v in node.outs]
                [made] = self._add(node, {**params, **moved}, [piece], outs, into)
                self.wholes[node.outs[0]] = made
                return True
        return False

    def _pad(self, node: Node, into: list[Node]) -> bool:
        """The transpose of a slice: rows of the piece that they belong to, zeros in the others."""
        if node.eqn.primitive.name != "pad" or not is_zero(node.ins[1]):
            return False
        aval = self.old.avals[node.outs[0]]
        known = {b for v, b in self.arguments.items() if self.old.avals[v].shape == aval.shape}
        (low, high, inner), *others = node.eqn.params["padding_config"]
        rows = low, aval.shape[0] - high
        if len(known) != 1 or inner or low < 0 or high < 0 or any(map(any, others)):
            return False
        [bounds] = known
        if not any(a <= rows[0] and rows[1] <= b for a, b in pairwise(bounds)):
            return False
        operand = self._shared(node.ins[0], into)
        pieces: list[int] = []
        for a, b in pairwise(bounds):
            kind = with_layers(aval, b - a)
            if a <= rows[0] and rows[1] <= b:
                config = ((rows[0] - a, b - rows[1], 0), *others)
                changed = {**node.eqn.params, "padding_config": config}
                pieces += self._add(node, changed, [operand, node.ins[1]], [kind], into)
            else:
                pieces += self.new.traced(partial(jnp.zeros, kind.shape, kind.dtype), (), into)
                self.zeros.add(pieces[-1])
        self.splits[node.outs[0]] = Split(LAYERS, bounds, tuple(pieces))
        return True

    def _sum(self, node: Node, into: list[Node]) -> bool:
        """Adds pieces of which some are nothing but zeros."""
        splits = [self.splits.get(v) for v in node.reads]
        if node.eqn.primitive.name not in ("add", "add_any") or len(splits) != 2:
            return False
        a, b = splits
        if a is None or b is None or (a.rows, a.bounds) != (b.rows, b.bounds):
            return False
        if self.zeros.isdisjoint((*a.pieces, *b.pieces)):
            return False
        pieces = [
            y if x in self.zeros else x if y in self.zeros
            else self._add(node, node.eqn.params, [x, y], [self.new.avals[x]], into)[0]
            for x, y in zip(a.pieces, b.pieces, strict=True)
        ]  # fmt: skip
        self.splits[node.outs[0]] = replace(a, pieces=tuple(pieces))
        return True

    def _scanned(self, node: Node) -> Bounds | None:
        """The bounds of a scan that goes over pieces: the backward pass of one that is split."""
        if node.eqn.primitive.name != "scan":
            return None
        rows = node.ins[sum(scan_counts(node.eqn.params)) :]
        found = {
            s.bounds for a in rows if isinstance(a, int) and (s := self.splits.get(a))
            and s.rows == LAYERS and s.bounds[-1] == node.eqn.params["length"]
        }  # fmt: skip
        return found.pop() if len(found) == 1 else None

    def _scan(self, node: Node, bounds: Bounds, into: list[Node]) -> None:
        """One scan after the other, each going on with what the one before carries."""
        params = node.eqn.params
        consts, carries = scan_counts(params)
        shared = [self._shared(a, into) for a in node.ins[: consts + carries]]
        carry = shared[consts:]
        rows = [self._pieces_of(a, bounds, into) for a in node.ins[consts + carries :]]
        stacked: list[list[int]] = [[0] * (len(bounds) - 1) for _ in node.outs[carries:]]
        order = range(len(bounds) - 1)
        for i in reversed(order) if params["reverse"] else order:
            length = bounds[i + 1] - bounds[i]
            ins = [*shared[:consts], *carry, *(r[i] for r in rows)]
            outs = [self.old.avals[v] for v in node.outs]
            outs[carries:] = [with_layers(a, length) for a in outs[carries:]]
            unroll = min(params["unroll"], length)
            changed = dict(params, length=length, unroll=unroll)
            made = self._add(node, changed, ins, outs, into)
            carry = list(made[:carries])
            for k, v in enumerate(made[carries:]):
                stacked[k][i] = v
        self.wholes.update(zip(node.outs[:carries], carry, strict=True))  # type: ignore[arg-type]
        for v, pieces in zip(node.outs[carries:], stacked, strict=True):
            self.splits[v] = Split(LAYERS, bounds, tuple(pieces))

    def _add(
        self, node: Node, params: dict[str, Any], ins: Sequence[Atom], outs: Sequence[Any],
        into: list[Node],
    ) -> tuple[int, ...]:  # fmt: skip
        """Adds the node's equation with other parameters, operands and types of results."""
        eqn = node.eqn.replace(
            params=params,
            invars=[a if isinstance(a, Literal) else Var(self.new.avals[a]) for a in ins],
            outvars=list(map(Var, outs)),
        )
        into.append(self.new.node(eqn, ins))
        return into[-1].outs

    def _in_pieces(self, node: Node, into: list[Node]) -> bool:
        """Runs an op that reads pieces on each piece; False if it must see the whole."""
        known = [self.splits.get(a) if isinstance(a, int) else None for a in node.ins]
        bounds = {s.bounds for s in known if s}
        if len(bounds) != 1 or node.eqn.effects:
            return False
        [b] = bounds
        try:
            use = forward(node.eqn, [s.rows if s else FULL for s in known], b[-1])
        except CoupledError:
            return False
        if not all(is_simple(s) for s in (*use.ins, *use.outs)):
            return False
        self._by_use(node, use, b, into)
        return True

    def _by_use(self, node: Node, use: Use, bounds: Bounds, into: list[Node]) -> None:
        ins = [self._read(a, s, bounds, into) for a, s in zip(node.ins, use.ins, strict=True)]
        parts: list[tuple[int, ...]] = []
        for i, (start, stop) in enumerate(pairwise(bounds)):
            local = Local(bounds[-1], stop - start)
            params = resized(node.eqn, use, local.shape)
            outs = [
                self.old.avals[v].update(shape=local.shape(self.old.avals[v].shape, s))
                for v, s in zip(node.outs, use.outs, strict=True)
            ]
            parts.append(self._add(node, params, [x[i] for x in ins], outs, into))
        for v, status, pieces in zip(node.outs, use.outs, zip(*parts, strict=True), strict=True):
            if isinstance(status, Rows):
                self.splits[v] = Split(status, bounds, pieces)
            else:
                assert isinstance(status, Partial)
                self.wholes[v] = self._combined(pieces, status.how, into)

    def _combined(self, pieces: Sequence[int], how: str, into: list[Node]) -> int:
        total = pieces[0]
        for piece in pieces[1:]:
            [total] = self.new.traced(COMBINE[how], (total, piece), into)
        return total

    def _read(self, atom: Atom, status: Status, bounds: Bounds, into: list[Node]) -> Sequence[Atom]:
        """What each piece of an op reads."""
        if isinstance(status, Rows):
            return self._pieces_of(atom, bounds, into, status)
        return [self._shared(atom, into)] * (len(bounds) - 1)

    def _shared(self, atom: Atom, into: list[Node]) -> Atom:
        return atom if isinstance(atom, Literal) else self._whole(atom, into)

    def _whole(self, v: int, into: list[Node]) -> int:
        """The whole array."""
        if v in self.splits and v not in self.wholes:
            split = self.splits[v]
            self.wholes[v] = self._joined(split.pieces, split.rows.dim, into)
        return self.wholes.get(v, v)

    def _joined(self, pieces: Sequence[int], dim: int, into: list[Node]) -> int:
        def join(*pieces: Any) -> Any:
            return jax.lax.concatenate(pieces, dim)

        return self.new.traced(join, pieces, into)[0]

    def _join_inputs(self) -> None:
        """Arguments that are taken apart are put together first, for what reads them whole."""
        for v in self.old.inputs:
            if v in self.new.pieces:
                nodes: list[Node] = []
                self._joined([p.value for p in self.new.pieces[v]], 0, nodes)
                self.new.before.insert(0, replace(nodes[-1], outs=(v,)))

    def _pieces_of(
        self, atom: Atom, bounds: Bounds, into: list[Node], rows: Rows = LAYERS
    ) -> Sequence[int]:
        """The pieces of an array, which may have to be made in pieces, or cut from the whole."""
        assert not isinstance(atom, Literal)
        found = self.splits.get(atom)
        if found and (found.rows, found.bounds) == (rows, bounds):
            return found.pieces
        if found is None and rows == LAYERS and atom in self.old.inputs:
            pieces = self._input(atom, bounds)
        elif found is None and self._remade(atom, bounds, rows):
            return self.splits[atom].pieces
        else:
            pieces = self._slices(atom, bounds, rows, into)
        if found is None:
            self.splits[atom] = Split(rows, bounds, pieces)
        return pieces

    def _input(self, v: int, bounds: Bounds) -> tuple[int, ...]:
        """An argument becomes several."""
        aval = self.old.avals[v]
        pieces = tuple(self.new.value(with_layers(aval, b - a)) for a, b in pairwise(bounds))
        self.new.pieces[v] = tuple(
            Piece(p, a, b) for p, (a, b) in zip(pieces, pairwise(bounds), strict=True)
        )
        return pieces

    def _remade(self, v: int, bounds: Bounds, rows: Rows) -> bool:
        """Whether the op that made the whole array could make its pieces."""
        if v not in self.makers:
            return False
        node, into = self.makers[v]
        use = backward(node.eqn, node.outs.index(v), rows, bounds[-1])
        if use is None or len(node.outs) > 1 or not all(map(is_simple, use.ins)):
            return False
        self._by_use(node, use, bounds, into)
        return True

    def _slices(self, v: int, bounds: Bounds, rows: Rows, into: list[Node]) -> tuple[int, ...]:
        whole = self._whole(v, into)
        found: list[int] = []
        for a, b in pairwise(bounds):

            def part(x: Any, a: int = a, b: int = b) -> Any:
                return jax.lax.slice_in_dim(x, a * rows.inner, b * rows.inner, axis=rows.dim)

            found += self.new.traced(part, (whole,), into)
        return tuple(found)

    def _ends(self) -> None:
        """Totals of pieces, and stacks of whole rows."""
        for total in self.old.totals:
            split = self.splits.get(total.share)
            if split is None:
                share = self.wholes.get(total.share, total.share)
                self.new.totals.append(replace(total, share=share))
                continue
            aval = self.old.avals[total.total]
            made: list[int] = []
            for piece in split.pieces:
                made.append(self.new.value(aval.update(shape=self.new.avals[piece].shape)))
                self.new.totals.append(replace(total, share=piece, total=made[-1]))
            self.splits[total.total] = replace(split, pieces=tuple(made))
        for stack in self.old.stacks:
            row = self._whole(stack.row, self.new.body)
            self.new.stacks.append(replace(stack, row=row))

    def _result(self, atom: Atom) -> Atom:
        """A result, whose pieces are put together by whoever has all of them."""
        if isinstance(atom, Literal):
            return atom
        split = self.splits.get(atom)
        if split is None or split.rows != LAYERS:
            return self._whole(atom, self.new.after)
        if atom not in self.new.pieces:
            self.new.pieces[atom] = tuple(
                Piece(p, a, b)
                for p, (a, b) in zip(split.pieces, pairwise(split.bounds), strict=True)
            )
        return atom
