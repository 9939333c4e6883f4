"""What each primitive does to dimensions: its factors, which are summed, which must stay whole.

Importing this package fills the table; every family's own table reads as its specification.
"""

from xshard.rules import (
    conv,
    dot,
    elementwise,
    index,
    island,
    linalg,
    order,
    ports,
    reduce,
    reshape,
    rng,
    scatter,
    view,
    window,
)
from xshard.rules.registry import register, registered, rule_of
from xshard.rules.rule import Rule

for _family in (
    elementwise, dot, conv, view, reshape, reduce, window, index, scatter, order, rng, linalg,
    island, ports,
):  # fmt: skip
    register(_family.TABLE)

__all__ = ["Rule", "registered", "rule_of"]
