r"""Choices of a `Flat` that another one can always replace. Exact.

$d$ replaces $c$ where it uses no more memory in any span and $\mathrm{cost}[d] - \mathrm{cost}[c]
+ \sum_e \max_j (\mathrm{cost}_e[d, j] - \mathrm{cost}_e[c, j]) \le 0$: `xshard.solve.drop`'s
criterion, for nodes with many spans.
"""

from __future__ import annotations

import numpy as np

from xshard.solve import loops
from xshard.solve.contract import Contraction, incidence
from xshard.solve.flat import Flat, offsets_of

MOST_COMPARISONS = 1 << 31


def undominated(flat: Flat) -> Contraction | None:
    """The step that keeps what nothing replaces; None if that is all, or too much to compare."""
    a, b = (flat.sizes[flat.ends[:, side]] for side in (0, 1))
    if int((a * b * (a + b)).sum()) > MOST_COMPARISONS:
        return None
    first, edges = incidence(flat)
    order = np.argsort(flat.span_nodes, kind="stable")
    span_first = np.searchsorted(flat.span_nodes[order], np.arange(len(flat.offsets)))
    kept = np.ones(len(flat.costs), np.bool_)
    loops.compare(
        flat.offsets, flat.costs, flat.ends, flat.starts, flat.tables, first, edges,
        span_first.astype(np.int64), order.astype(np.int64), flat.span_starts, flat.usage, kept,
    )  # fmt: skip
    if kept.all():
        return None
    sizes = np.add.reduceat(kept.astype(np.int64), flat.offsets[:-1])
    maps = np.flatnonzero(kept) - np.repeat(flat.offsets[:-1], sizes)
    n = len(sizes)
    return Contraction(np.arange(n), offsets_of(sizes)[:-1], maps.astype(np.int64), sizes)
