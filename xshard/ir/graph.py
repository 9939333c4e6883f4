"""`Graph`: a train step as a flat list of ops over values, with no JAX object inside.

Calls are inlined and the bodies of scan, while and cond stand in the same list, so one value has
one id everywhere. An `Op` remembers where its equation stands (`address`) so that a plan can be
applied to the jaxpr, and how often it runs in one step (`repeat`).

Control flow leaves *port* ops behind: identities that tie a body's variable to the value outside.
They move no data; their rules say which dimensions correspond.

  "scan_const"   outer -> body          same shape
  "scan_x"       stacked -> slice       "l a b -> a b"  (l is never sharded)
  "scan_y"       slice -> stacked       "a b -> l a b"
  "carry_in"     (init, body_out) -> body_in: all three must have one sharding
  "carry_out"    body_out -> final      same shape
  "branch_in"    operand -> branch variable
  "branch_out"   (branch outs...) -> result
  "predicate"    a while's or cond's scalar -> nothing: it decides what runs
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Address = tuple[int, ...]
"""Equation indices from the outermost jaxpr inwards: `(7, 0, 3)` is the fourth equation of the
first sub-jaxpr of the eighth equation. A port ends in `~k`: `(7, 0, ~2)` is the third input of that
sub-jaxpr, `(7, ~2)` the third result of the eighth equation."""


@dataclass(frozen=True, slots=True)
class Value:
    """One array of the program.

    Attributes:
      id: its index in `Graph.values`.
      shape: global shape.
      dtype: dtype name; extended dtypes such as `key<fry>` keep JAX's name.
      itemsize: bytes of one element.
      producer: index of the op that makes it; -1 for inputs and constants.
      name: the path of an input ("args[0]['params']['w']"); "" for others.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    itemsize: float
    producer: int = -1
    name: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole (unsharded) array."""
        return math.ceil(self.size * self.itemsize)

    def __str__(self) -> str:
        return f"%{self.id}:{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Op:
    """One equation, or one port of a control-flow equation.

    Attributes:
      id: its index in `Graph.ops`.
      prim: primitive name ("dot_general"), or a port kind.
      inputs: one entry an operand: a value id, or None for a literal.
      outputs: value ids.
      params: the equation's parameters that rules read, hashable.
      phase: "fwd", "bwd" (below `transpose(...)` in the name stack) or "update".
      scope: the name stack, cleaned ("layers_0/attn").
      source: "file.py:123 (function)" of the user's frame, or "".
      repeat: how often it runs in one step (product of scan lengths).
      address: where the equation stands in the jaxpr.
      recomputed: the backward pass runs it again (`jax.checkpoint`, and layers chosen by xshard).
    """

    id: int
    prim: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    phase: str = "fwd"
    scope: str = ""
    source: str = ""
    repeat: int = 1
    address: Address = ()
    recomputed: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """Values and ops in program order.

    Attributes:
      values, ops: indexed by id.
      inputs: value ids of the flattened arguments, in order (a value may be unused).
      consts: value ids of arrays captured by closure.
      outputs: value ids of the flattened results; None for a literal result.
    """

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    consts: tuple[int, ...]
    outputs: tuple[int | None, ...]

    def consumers(self) -> list[list[tuple[int, int]]]:
        """For each value, the (op id, operand index) pairs that read it, in program order."""
        uses: list[list[tuple[int, int]]] = [[] for _ in self.values]
        for op in self.ops:
            for k, v in enumerate(op.inputs):
                if v is not None:
                    uses[v].append((op.id, k))
        return uses

    def verify(self) -> Graph:
        """Returns self if ids, producers and definitions-before-uses are consistent.

        Raises:
          AssertionError: naming the first op or value that is not.
        """
        for i, value in enumerate(self.values):
            assert value.id == i, f"value {i} carries id {value.id}"
        defined = set(self.inputs) | set(self.consts)
        for i, op in enumerate(self.ops):
            assert op.id == i, f"op {i} carries id {op.id}"
            for v in _forward_inputs(op):
                assert v in defined, f"op {i} ({op.prim}) reads {self.values[v]} before it is made"
            for v in op.outputs:
                assert self.values[v].producer == i, f"{self.values[v]} names a wrong producer"
                assert v not in defined, f"{self.values[v]} is made twice"
                defined.add(v)
        for v in self.outputs:
            assert v is None or v in defined, f"result {v} is never made"
        return self

    def text(self) -> Iterator[str]:
        """One readable line an op."""
        for op in self.ops:
            outs = " ".join(str(self.values[v]) for v in op.outputs)
            ins = " ".join("lit" if v is None else f"%{v}" for v in op.inputs)
            times = f" ×{op.repeat}" if op.repeat > 1 else ""
            yield f"{outs} = {op.prim} {ins}{times}  # {op.phase} {op.scope} {op.source}"

    def __str__(self) -> str:
        return "\n".join(self.text())


def _forward_inputs(op: Op) -> tuple[int, ...]:
    """Operands that must exist before the op runs; a loop's back edge need not."""
    inputs = op.inputs[:1] if op.prim == "carry_in" else op.inputs
    return tuple(v for v in inputs if v is not None)
