"""Pointwise ops: every operand has the shape of the result, or is a scalar."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, Tokens, block, build, letters, names, rank, take
from xshard.rules.rule import Kind, Rule


def pointwise(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b, a b, . -> a b"`; a dimension of one element is broadcast."""
    return aligned(ins, outs, "elementwise")


def aligned(ins: Ins, outs: Outs, kind: Kind) -> Rule:
    """All operands and results of the full rank line up; scalars stay scalars."""
    dims = letters(max([rank(v) for v in [*ins, *outs]]))
    return build(ins, outs, [_of(dims, rank(v)) for v in ins], [dims for _ in outs], kind=kind)


def _of(dims: list[str], n: int) -> Tokens:
    return dims if n else ()


def each(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a, b c -> a, b c"`: the k-th result is the k-th operand."""
    fresh = names()
    dims = [take(fresh, rank(v)) for v in outs]
    left = [d if rank(v) else () for d, v in zip(dims, ins, strict=True)]
    return build(ins, outs, left, dims, kind="elementwise")


def bitcast(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b -> a b c!"` where the width changes, by a new or a lost innermost dimension."""
    dims = letters(max(rank(ins[0]), rank(outs[0])))
    if rank(ins[0]) != rank(outs[0]):
        dims = block(dims, [len(dims) - 1])
    return build(ins, outs, [dims[: rank(ins[0])]], [dims[: rank(outs[0])]], kind="elementwise")


_UNARY = """
    abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil clz conj
    convert_element_type copy copy_p cos cosh digamma erf erf_inv erfc exp exp2 expm1 floor imag
    integer_pow is_finite lgamma log log1p log2 logistic neg not one_minus_square polynomial
    population_count real reciprocal reduce_precision round rsqrt sign sin sinh sqrt square tan
    tanh zeros_like
"""

_NARY = """
    add add_any and atan2 clamp complex div eq eq_to ge gt igamma igamma_grad_a igammac le le_to lt
    lt_to max min mul mulhi ne nextafter or polygamma pow regularized_incomplete_beta rem select_n
    shift_left shift_right_arithmetic shift_right_logical sub xor zeta threefry2x32
"""

_IDENTITIES = """
    device_put layout_constraint name optimization_barrier pbroadcast preduced pvary
    reduced_vary_cast reduced_vary_cast_p relayout stop_gradient tie vary_unreduced_cast
    vary_unreduced_cast_p with_memory_space_constraint xla_metadata_value
"""

TABLE = {
    **dict.fromkeys(_UNARY.split(), pointwise),
    **dict.fromkeys(_NARY.split(), pointwise),
    **dict.fromkeys(_IDENTITIES.split(), each),
    "bitcast_convert_type": bitcast,
}
