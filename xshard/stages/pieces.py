"""Arrays in pieces that hold some of a step's layers each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xshard._jax import Literal
from xshard.microbatch.status import Rows, Status
from xshard.stages.flat import Atom

Bounds = tuple[int, ...]
"""Piece i of something that has `bounds[-1]` layers has the layers `bounds[i]:bounds[i + 1]`."""
LAYERS = Rows(0)
"""Layers are rows of the first dimension."""


@dataclass(frozen=True, slots=True)
class Split:
    """An array's pieces, by value id."""

    rows: Rows
    bounds: Bounds
    pieces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Local:
    """The shapes of a piece of so many layers."""

    whole: int
    layers: int

    def shape(self, shape: tuple[int, ...], status: Status) -> tuple[int, ...]:
        """Of a piece of an array."""
        if not isinstance(status, Rows):
            return shape
        d = status.dim
        return (*shape[:d], shape[d] // self.whole * self.layers, *shape[d + 1 :])


def is_simple(status: Status) -> bool:
    """Whether pieces lie one after the other in a dimension."""
    return not isinstance(status, Rows) or status.outer == 1


def is_zero(atom: Atom) -> bool:
    """Whether it is a literal zero."""
    return isinstance(atom, Literal) and atom.val == 0  # type: ignore[attr-defined]


def with_layers(aval: Any, layers: int) -> Any:
    """The type with another first dimension."""
    return aval.update(shape=(layers, *aval.shape[1:]))
