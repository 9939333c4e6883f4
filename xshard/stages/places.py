"""Where nodes run, and what they read when free values are made where they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xshard.stages.flat import Flat, Node

Behind = Mapping[int, tuple[int, ...]]
"""For each free value, the other values that it is made of."""


@dataclass(slots=True)
class Stages:
    """Where nodes run.

    Attributes:
      of: the stage of a node.
      light: the stages of a node that runs on several.
      made: the stage of a value that the body makes, the first of several.
      backward: nodes that run in the backward pass.
    """

    count: int
    light: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    of: dict[Node, int] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)
    backward: set[Node] = field(default_factory=set)

    def put(self, node: Node, stage: int) -> None:
        """Places a node."""
        self.of[node] = stage
        self.made.update(dict.fromkeys(node.outs, stage))


def sources(flat: Flat, free: frozenset[int]) -> Behind:
    """For each free value, the other values that it is made of."""
    found: dict[int, tuple[int, ...]] = {}
    for node in (*flat.before, *flat.body, *flat.after):
        if not free.isdisjoint(node.outs):
            behind = dict.fromkeys(v for r in node.reads for v in found.get(r, (r,)))
            found.update(dict.fromkeys(node.outs, tuple(behind)))
    return found


def reads_of(node: Node, behind: Behind) -> list[int]:
    """The values that a node needs, free ones left out."""
    return [v for r in node.reads for v in behind.get(r, (r,))]
