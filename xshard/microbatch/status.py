"""What a value is to the batch, and how statuses of one value meet.

A loop over microbatches takes, in its j-th of `m` turns, the rows j, j + m, j + 2m, ... of the
batch. In it, a value has one of three statuses:

  Const    the same in every turn
  Rows     has the batch in a dimension: a turn makes the turn's rows of it
  Partial  the batch is summed away (or the maximum taken, ...): a turn makes its share, and all
           shares together, combined, are the value
"""

from __future__ import annotations

from dataclasses import dataclass

from xshard.errors import XshardError


class CoupledError(XshardError):
    """An op needs several rows of the batch at once, or a sum over the batch that is not complete.

    Attributes:
      source: the user's line, or "".
    """

    def __init__(self, message: str, source: str = "") -> None:
        super().__init__(message)
        self.source = source


@dataclass(frozen=True, slots=True)
class Const:
    """Not dependent on the batch; `zero`: known to be all zeros."""

    zero: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """Dimension `dim` has `outer` × batch × `inner` elements, in row-major order."""

    dim: int
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Partial:
    """To be combined by `how`: "sum", "max", "min", "prod", "and", "or" or "xor"."""

    how: str = "sum"


Status = Const | Rows | Partial
FULL = Const()
IDEMPOTENT = ("max", "min", "and", "or")
"""Ways to combine in which a value that is the same in every turn may take part."""


def version(status: Status) -> Status:
    """How a value of this status is read where nothing else is asked for."""
    return FULL if isinstance(status, Const) else status


def may_be(status: Status, wanted: Status) -> bool:
    """Whether a value of this status can also be had as `wanted`."""
    if isinstance(status, Const):
        if isinstance(wanted, Partial):
            return wanted.how in IDEMPOTENT or (status.zero and wanted.how in ("sum", "xor"))
        return True
    return status == wanted


def join(a: Status, b: Status) -> Status:
    """The status of a value that is sometimes the one and sometimes the other.

    Raises:
      CoupledError: there is none.
    """
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(a.zero and b.zero)
    both = b if isinstance(a, Const) else a
    if may_be(a, both) and may_be(b, both):
        return both
    raise CoupledError("values that depend on the batch in different ways meet in a loop or branch")
