"""What a backward pass leaves behind it: the cotangent, and gradients of weights.

XLA puts weight gradients off, to sum several up together or to free more at once, and keeps what
they are computed from meanwhile: in the worst case all that every layer has made again. So each
layer of the backward pass waits for all that those before it leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from xshard._jax import Literal
from xshard.remat.bind import bind, is_plain
from xshard.remat.chain import nbytes
from xshard.remat.program import Node, Program


class Finished:
    """Follows the backward nodes of a program while it is traced again.

    Attributes:
      values: arrays by number; what waited at a barrier is replaced by what is behind it.
      last: for each number, the index of the last node that reads it; -1 for none.
      makers: of what was made since the last barrier, the nodes.
    """

    def __init__(self, program: Program, values: dict[int, Any]) -> None:
        self.program, self.values = program, values
        self.last = [max(readers, default=-1) for readers in program.readers()]
        self.makers: dict[int, Node] = {}

    def made(self, node: Node) -> None:
        """A node has run."""
        if node.phase == "bwd":
            self.makers.update(dict.fromkeys(node.outs, node))

    def wait(self, at: int, inputs: Sequence[Any] = ()) -> list[Any]:
        """`inputs` behind a barrier, together with what nodes from the index `at` on read.

        What is computed from something narrower alone (a cast to a wider type, say) is computed
        from it again, behind the barrier.
        """
        left = [v for v in self.makers if self.last[v] >= at and is_plain(self.values[v])]
        ways = [self._way(v) for v in left]
        held = list(dict.fromkeys(source for source, _ in ways))
        plain = [i for i, x in enumerate(inputs) if is_plain(x)]
        self.makers.clear()
        if len(held) + len(plain) < 2:
            return list(inputs)
        tied = [*(self.values[v] for v in held), *(inputs[i] for i in plain)]
        behind = jax.lax.optimization_barrier(tied)
        self.values.update(zip(held, behind, strict=False))
        for node in dict.fromkeys(node for _, nodes in ways for node in nodes):
            ins = [a.val if isinstance(a, Literal) else self.values[a] for a in node.ins]
            self.values.update(zip(node.outs, bind(node.eqn, ins), strict=True))
        found = dict(zip(plain, behind[len(held) :], strict=True))
        return [found.get(i, x) for i, x in enumerate(inputs)]

    def _way(self, value: int) -> tuple[int, list[Node]]:
        """The narrowest array that a value is computed from alone, and the nodes that do it."""
        nodes = list[Node]()
        while (node := self.makers.get(value)) is not None and len(node.reads) == 1:
            [source] = node.reads
            if source not in self.makers or self._nbytes(source) >= self._nbytes(value):
                break
            nodes.append(node)
            value = source
        return value, nodes[::-1]

    def _nbytes(self, value: int) -> int:
        return nbytes(self.program.avals[value])
