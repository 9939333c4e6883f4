"""Kernels that run as one: loops over one size, and sums that are finished together."""

from __future__ import annotations

from collections.abc import Hashable
from graphlib import TopologicalSorter

from xshard.cost.kernels import FUSED, Kernel, Program, Sizes


def merged(kernels: list[Kernel], program: Program) -> list[int]:
    """Lets loops make what only they and later kernels read, in place; tells where each went."""
    into = list(range(len(kernels)))
    first = _first_readers(kernels)
    for k, kernel in enumerate(kernels):
        reader = first.get(min(kernel.makes, default=-1))
        if reader is not None and len(kernel.makes) == 1 and _is_loop(kernel, program):
            into[k] = reader if _runs_over(kernels[reader], min(kernel.makes), program) else k

    def root(k: int) -> int:
        while into[k] != k:
            k = into[k]
        return k

    roots = [root(k) for k in range(len(into))]
    for k, r in enumerate(roots):
        if r != k:
            kernels[r].absorb(kernels[k])
    places = {k: i for i, k in enumerate(k for k, r in enumerate(roots) if k == r)}
    kernels[:] = [kernels[k] for k in places]
    for i, kernel in enumerate(kernels):
        kernel.after = {places[roots[a]] for a in kernel.after} - {i}
    return [places[r] for r in roots]


def _first_readers(kernels: list[Kernel]) -> dict[int, int]:
    found: dict[int, int] = {}
    last = [max(kernel.ops, default=-1) for kernel in kernels]
    for k in sorted(range(len(last)), key=lambda k: last[k]):
        for b in kernels[k].reads:
            found.setdefault(b, k)
    return found


def _is_loop(kernel: Kernel, program: Program) -> bool:
    op = program.graph.ops[kernel.ops[0]] if kernel.kind == "op" else None
    return op is not None and (program.kinds[op.id] in FUSED or op.prim == "random_bits")


def _runs_over(kernel: Kernel, value: int, program: Program) -> bool:
    """Whether a kernel is a loop, or a reduction, over as many elements as a value has."""
    if kernel.kind != "op":
        return False
    op = program.graph.ops[kernel.ops[0]]
    sizes = [program.graph.values[v].size for v in (*op.inputs, *op.outputs) if v is not None]
    is_loop = program.kinds[op.id] in (*FUSED, "reduce")
    return is_loop and max(sizes) == program.graph.values[value].size


def add_sums(kernels: list[Kernel], sizes: Sizes) -> None:
    """Adds collectives that finish sums; those that can wait for each other are one.

    One that a barrier holds back until another is finished is not joined with that.
    """
    before = _sums_before(kernels, sizes)
    groups: dict[Hashable, tuple[int, int, int]] = {}
    ops = [(n, kernel) for n, kernel in enumerate(kernels) if kernel.kind == "op"]
    for n, kernel in ops:
        for b in sorted(kernel.makes & sizes.unfinished.keys()):
            raw, nbytes = sizes.unfinished[b], sizes.bytes_of(b)
            k, total, members = groups.get(raw.together, (-1, 0, 0))
            fits = total + nbytes <= sizes.combined_bytes and not before[n] & members
            if k < 0 or raw.together is None or not fits:
                k, total, members = len(kernels), 0, 0
                kernels.append(Kernel("sum"))
            groups[raw.together] = k, total + nbytes, members | 1 << n
            kernel.makes = (kernel.makes - {b}) | {raw.buffer}
            kernels[k].reads.add(raw.buffer)
            kernels[k].views.add((raw.buffer, None))
            kernels[k].makes.add(b)


def _sums_before(kernels: list[Kernel], sizes: Sizes) -> list[int]:
    """For each kernel a mask of the kernels that leave sums and run before it."""
    makers = {b: k for k, kernel in enumerate(kernels) for b in kernel.makes}
    before = {
        k: {*(makers[b] for b in kernel.reads if b in makers), *kernel.after} - {k}
        for k, kernel in enumerate(kernels)
    }
    found = [0] * len(kernels)
    for k in TopologicalSorter(before).static_order():
        for other in before[k]:
            leaves = not sizes.unfinished.keys().isdisjoint(kernels[other].makes)
            found[k] |= found[other] | leaves << other
    return found
