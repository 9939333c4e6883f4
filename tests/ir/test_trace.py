"""The graph of small programs, line by line; names, phases, scopes; what cannot be traced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive  # noqa: TID251  (a user's own)

from xshard.errors import TraceError
from xshard.ir.graph import Graph
from xshard.ir.trace import Traced, trace

F32 = jnp.float32


def array(*shape: int, dtype: Any = F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def text(graph: Graph) -> str:
    """The graph without phases and lines, one op a line."""
    return "\n".join(line.partition("  #")[0].strip() for line in graph.text())


def ops(traced: Traced, prim: str) -> list[Any]:
    return [op for op in traced.graph.ops if op.prim == prim]


def scanned(w: Any, x: Any) -> Any:
    def body(h: Any, row: Any) -> Any:
        return jnp.tanh(h @ w), h + row

    return jax.lax.scan(body, x, jnp.zeros((3, 4)), reverse=True)


def looped(w: Any, x: Any) -> Any:
    return jax.lax.while_loop(lambda s: s[1].sum() < 9, lambda s: (s[0] + 1, s[1] @ w), (0, x))


def branched(w: Any, x: Any) -> Any:
    return jax.lax.cond(w[0, 0] > 0, lambda x: x @ w, lambda x: x, x)


def called(w: Any, x: Any) -> Any:
    inner = jax.jit(lambda a, b: (a, jnp.sin(b), 2.0))
    same, y, _ = jax.checkpoint(inner)(w, x)
    return same, y, y


GOLDEN = {
    scanned: """
        %2:float32[3,4] = broadcast_in_dim lit
        %3:float32[4,4] = scan_const %0 ×3
        %4:float32[4,4] = carry_in %1 %7 ×3
        %5:float32[4] = scan_x %2 ×3
        %6:float32[4,4] = dot_general %4 %3 ×3
        %7:float32[4,4] = tanh %6 ×3
        %8:float32[1,4] = broadcast_in_dim %5 ×3
        %9:float32[4,4] = add %4 %8 ×3
        %10:float32[4,4] = carry_out %7
        %11:float32[3,4,4] = scan_y %9
    """,
    looped: """
        %2:float32[4,4] = scan_const %0
        %3:int32[] = carry_in lit %7
        %4:float32[4,4] = carry_in %1 %8
        %5:float32[] = reduce_sum %4
        %6:bool[] = lt %5 lit
        = predicate %6
        %7:int32[] = add %3 lit
        %8:float32[4,4] = dot_general %4 %2
        %9:int32[] = carry_out %7
        %10:float32[4,4] = carry_out %8
    """,
    branched: """
        %2:float32[1,1] = slice %0
        %3:float32[] = squeeze %2
        %4:bool[] = gt %3 lit
        %5:int32[] = convert_element_type %4
        = predicate %5
        %6:float32[4,4] = branch_in %1
        %7:float32[4,4] = branch_in %0
        %8:float32[4,4] = branch_in %1
        %9:float32[4,4] = dot_general %8 %7
        %10:float32[4,4] = branch_out %6 %9
    """,
    called: """
        %2:float32[4,4] = sin %1
    """,
}


@pytest.mark.parametrize("program", GOLDEN, ids=lambda f: f.__name__)
def test_graph(program: Any) -> None:
    traced = trace(program, (array(4, 4), array(4, 4)))
    want = "\n".join(line.strip() for line in GOLDEN[program].strip().splitlines())
    assert text(traced.graph) == want


def test_addresses_of_ports_and_bodies() -> None:
    traced = trace(looped, (array(4, 4), array(4, 4)))
    assert [(op.prim, op.address) for op in traced.graph.ops] == [
        ("scan_const", (0, 1, -1)), ("carry_in", (0, 1, -2)), ("carry_in", (0, 1, -3)),
        ("reduce_sum", (0, 0, 0)), ("lt", (0, 0, 1)), ("predicate", (0,)),
        ("add", (0, 1, 0)), ("dot_general", (0, 1, 1)),
        ("carry_out", (0, -1)), ("carry_out", (0, -2)),
    ]  # fmt: skip


@pytest.mark.parametrize("program", GOLDEN, ids=lambda f: f.__name__)
def test_keys_are_unique(program: Any) -> None:
    graph = trace(program, (array(4, 4), array(4, 4))).graph
    keys = [(op.address, r) for op in graph.ops for r in range(len(op.outputs))]
    assert len(keys) == len(set(keys))


def test_values_passed_through_have_one_id() -> None:
    traced = trace(called, (array(4, 4), array(4, 4)))
    assert traced.graph.outputs == (0, 2, 2)


def test_literal_results_and_unused_inputs() -> None:
    traced = trace(lambda used, unused: (used, 3.0), (array(2), array(3)))
    assert traced.graph.outputs == (0, None)
    assert traced.graph.inputs == (0, 1)
    assert traced.graph.ops == ()


def test_names_of_both_ends() -> None:
    state = {"params": {"w": array(2, 2)}, "step": 0}
    traced = trace(lambda s, flag, x: {"loss": x.sum(), "s": s}, (state, "f", array(2)), (1,))
    assert traced.in_paths == ("args[0]['params']['w']", "args[0]['step']", "args[2]")
    assert tuple(v.name for v in traced.graph.values[:3]) == traced.in_paths
    assert traced.out_paths == ("['loss']", "['s']['params']['w']", "['s']['step']")
    assert traced.in_tree == jax.tree.structure((state, array(2)))
    assert [a.shape for a in traced.in_avals] == [(2, 2), (), (2,)]
    assert [a.weak_type for a in traced.in_avals] == [False, True, False]


def train_step(w: Any, m: Any, x: Any) -> Any:
    small = w.astype(jnp.bfloat16)

    def loss(w: Any) -> Any:
        with jax.named_scope("layer_0"):
            return jax.checkpoint(lambda w: jnp.tanh(x @ w))(w).sum()

    value, grad = jax.value_and_grad(loss)(small)
    m = m * 0.9 + grad
    return value, w - m, m


def test_phases() -> None:
    traced = trace(train_step, (array(4, 4), array(4, 4), array(8, 4, dtype=jnp.bfloat16)))
    phases = {(op.prim, op.phase) for op in traced.graph.ops}
    assert ("tanh", "fwd") in phases  # of the loss
    assert ("tanh", "bwd") in phases  # made again by the checkpoint
    assert ("mul", "update") in phases
    assert ("sub", "update") in phases
    first, last = traced.graph.ops[0], traced.graph.ops[-1]
    assert (first.prim, first.phase) == ("convert_element_type", "fwd")
    assert (last.prim, last.phase) == ("sub", "update")


def test_scopes_are_the_users_in_both_directions() -> None:
    traced = trace(train_step, (array(4, 4), array(4, 4), array(8, 4, dtype=jnp.bfloat16)))
    assert {op.scope for op in ops(traced, "tanh")} == {"layer_0"}


def test_a_program_without_gradients_is_all_forward() -> None:
    assert {op.phase for op in trace(scanned, (array(4, 4), array(4, 4))).graph.ops} == {"fwd"}


def test_source_is_the_users_line() -> None:
    line = scanned.__code__.co_firstlineno + 2
    (tanh,) = ops(trace(scanned, (array(4, 4), array(4, 4))), "tanh")
    assert tanh.source == f"test_trace.py:{line} (body)"


def test_code_inside_a_library_function_carries_the_users_line() -> None:
    traced = trace(lambda k: jax.random.normal(k, (4,)), (jax.random.key(0),))
    assert {op.source.partition(":")[0] for op in traced.graph.ops} == {"test_trace.py"}


def test_repeat_is_the_product_of_trip_counts() -> None:
    def f(x: Any) -> Any:
        inner = lambda c, _: (jnp.sin(c), None)  # noqa: E731
        outer = lambda c, _: (jax.lax.scan(inner, jnp.cos(c), None, 5)[0], None)  # noqa: E731
        return jax.lax.scan(outer, x, None, 3)[0]

    traced = trace(f, (array(2),))
    assert [op.repeat for op in ops(traced, "cos") + ops(traced, "sin")] == [3, 15]


def test_parameters_are_kept_without_functions() -> None:
    traced = trace(lambda x, y: jnp.sort(x) @ y, (array(2, 4), array(4, 3)))
    (dot,) = ops(traced, "dot_general")
    assert dot.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    assert dot.params["preferred_element_type"] == np.float32
    auto = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Auto,))
    island = jax.shard_map(lambda x: x, mesh=auto, in_specs=jax.P("x"), out_specs=jax.P("x"))
    (op,) = ops(trace(island, (array(4),)), "shard_map")
    assert "in_specs" in op.params
    assert "jaxpr" not in op.params


@pytest.mark.parametrize(
    ("dtype", "name", "itemsize"),
    [
        (jnp.float16, "float16", 2), (jnp.bool_, "bool", 1), (jnp.int4, "int4", 0.5),
        (jnp.uint2, "uint2", 0.25), (jnp.float8_e4m3fn, "float8_e4m3fn", 1),
        (jnp.complex64, "complex64", 8), (jnp.uint16, "uint16", 2),
    ],
)  # fmt: skip
def test_dtypes(dtype: Any, name: str, itemsize: float) -> None:
    value = trace(lambda x: x, (array(3, dtype=dtype),)).graph.values[0]
    assert (value.dtype, value.itemsize) == (name, itemsize)


def test_random_keys_have_the_size_of_their_data() -> None:
    sizes = {"threefry2x32": 8, "rbg": 16}
    for impl, size in sizes.items():
        value = trace(lambda k: k, (jax.random.key(0, impl=impl),)).graph.values[0]
        assert value.dtype.startswith("key<")
        assert (value.shape, value.itemsize) == ((), size)


def test_captured_arrays_are_constants_once() -> None:
    table = jnp.arange(8.0)
    nested = jax.custom_vjp(lambda x: x * table)
    nested.defvjp(lambda x: (nested(x), None), lambda _, g: (g,))
    traced = trace(lambda x: nested(x) + jax.jit(lambda x: x + table)(x), (array(8),))
    assert len(traced.consts) == len(traced.graph.consts) == 1
    assert traced.graph.values[traced.graph.consts[0]].shape == (8,)


def test_dead_code_is_dropped_and_effects_are_kept() -> None:
    def f(x: Any, n: Any) -> Any:
        jnp.sin(x)
        jax.lax.scan(lambda c, _: (jnp.cos(c), None), x, None, 2)
        jax.lax.cond(n > 0, lambda: jax.debug.print("{}", n + 1), lambda: None)
        jax.lax.while_loop(lambda i: i < n, lambda i: i + 1, 0)
        return jax.lax.scan(lambda c, _: ((c[0] * 2, jnp.exp(c[1])), None), (x, x), None, 2)[0][0]

    prims = [op.prim for op in trace(f, (array(2), 1)).graph.ops]
    assert not {"sin", "cos", "exp", "while"} & set(prims)
    assert prims.count("carry_in") == 1
    assert prims.index("predicate") < prims.index("debug_print")


@pytest.mark.parametrize(
    ("fun", "args", "static", "message"),
    [
        (3, (), (), r"needs a function to shard, but got 3 \(int\)"),
        (lambda x, c: x, (array(2), [1]), (1,), r"static argument args\[1\] is a list, .*hashable"),
        (lambda x: x, (array(2),), (4,), r"static_argnums has 4, but the function got 1 argu"),
        (lambda x: x, ({"n": "hi"},), (), r"args\[0\]\['n'\] is a str, .*static_argnums"),
    ],
    ids=["not callable", "unhashable", "no such argument", "not an array"],
)
def test_bad_input(fun: Any, args: Any, static: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(fun, args, static)


def numpy_step(x: Any) -> Any:
    return np.sin(np.asarray(x))


def test_a_function_that_jax_cannot_trace_gets_the_error_of_jit_and_a_note_with_its_line() -> None:
    line = numpy_step.__code__.co_firstlineno + 1
    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        trace(numpy_step, (array(2),))
    (note,) = [n for n in caught.value.__notes__ if n.startswith("xshard was tracing numpy_step")]
    assert note.endswith(f"test_trace.py:{line}, in numpy_step)")


NAMED = r"function pick at .*argument args\[0\]\['n'\]"


def pick(state: Any, x: Any) -> Any:
    return x if state["n"] > 0 else state["m"]


def test_messages_of_jax_name_the_arguments_by_their_paths() -> None:
    args = ({"m": array(2), "n": array()}, array(2))
    with pytest.raises(jax.errors.TracerBoolConversionError, match=NAMED):
        trace(pick, args)


def test_a_primitive_of_another_library_is_what_it_is_implemented_with() -> None:
    """At any depth; one that computes with numbers of its own stays as it is."""
    doubled, opaque = Primitive("doubled"), Primitive("opaque")
    for primitive in (doubled, opaque):
        primitive.def_abstract_eval(lambda x: x)
    doubled.def_impl(lambda x: x + jnp.sin(x))
    opaque.def_impl(lambda x: np.asarray(x) * 2)

    def step(x: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda _, x: doubled.bind(x), opaque.bind(x))

    traced = trace(step, (array(4),))
    assert ops(traced, "sin")
    assert ops(traced, "opaque")
    assert not ops(traced, "doubled")
