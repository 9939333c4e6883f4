"""Ties between the body of a control-flow op and the values outside, and the user's own pins."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, build, letters, rank
from xshard.rules.elementwise import aligned
from xshard.rules.rule import Rule


def same(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b, a b -> a b"`."""
    return aligned(ins, outs, "port")


def scan_x(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a! b c -> b c"`: a loop reads one slice after the other."""
    first, *dims = letters(rank(ins[0]))
    return build(ins, outs, [[f"{first}!", *dims]], [dims], kind="port")


def scan_y(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"b c -> a! b c"`."""
    first, *dims = letters(len(outs[0].shape))
    left = [dims if rank(v) else () for v in ins]
    return build(ins, outs, left, [[f"{first}!", *dims]], kind="port")


def pin(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b -> a b"`: what the user stated about one value."""
    return aligned(ins, outs, "pin")


def predicate(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"? ->"`: what decides whether a body runs, on every device."""
    return build(ins, outs, [None] * len(ins), [], kind="port")


TABLE = {
    "scan_const": same,
    "scan_x": scan_x,
    "scan_y": scan_y,
    "carry_in": same,
    "carry_out": same,
    "branch_in": same,
    "branch_out": same,
    "predicate": predicate,
    "sharding_constraint": pin,
    "reshard": pin,
    "mesh_cast": pin,
}
