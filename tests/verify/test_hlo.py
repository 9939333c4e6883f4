"""Collectives of golden module texts, and of what this JAX's CPU compiler makes today."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xshard.errors import MeshError
from xshard.verify.collectives import Collective, share_beside, summarize
from xshard.verify.hlo import collectives_in
from xshard.verify.payload import dtype_bits, top_level

MESH = ((2, 4), ("d", "m"))
D, M = "replica_groups=[4,2]<=[2,4]T(1,0)", "replica_groups={{0,1,2,3},{4,5,6,7}}"


def entry(*lines: str) -> str:
    return "\n".join(["ENTRY %main (p: f32[8]) -> f32[8] {", *(f"  {x}" for x in lines), "}"])


def one(text: str) -> Collective:
    (only,) = collectives_in(text, *MESH)
    return only


INSTRUCTIONS = [  # type and opcode, groups, kind, axes, bytes, dtype
    ("f32[16,64]{1,0} all-reduce(%x)", M, "all-reduce", "m", 4096, "f32"),
    ("f32[16]{0} all-reduce(f32[16]{0} x)", M, "all-reduce", "m", 64, "f32"),
    ("f32[] all-reduce(%x)", "replica_groups={}", "all-reduce", "dm", 4, "f32"),
    ("f32[4] all-reduce(%x)", "channel_id=1, replica_groups={{0}}", "all-reduce", "dm", 16, "f32"),
    ("(f32[8], /*index=1*/bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) all-reduce(%x, %y)", D,
     "all-reduce", "d", 64, "f32+bf16"),
    ("f32[1344]{0} all-reduce-start(%x)", D, "all-reduce", "d", 5376, "f32"),
    ("(f32[8], f32[4]) all-reduce-start(%x, %y)", D, "all-reduce", "d", 48, "f32"),
    ("((f32[16,64]), f32[16,64]{1,0}) all-reduce-start(%x)", M, "all-reduce", "m", 4096, "f32"),
    ("s8[128]{0} all-gather(%x)", M, "all-gather", "m", 128, "s8"),
    ("(f32[16,64], f32[32,64]{1,0}) all-gather-start(%x)", D, "all-gather", "d", 8192, "f32"),
    ("((f32[8], f32[4]), (f32[16], f32[8])) all-gather-start(%x, %y)", D,
     "all-gather", "d", 96, "f32"),
    ("f16[4,64]{1,0} reduce-scatter(%x)", M, "reduce-scatter", "m", 2048, "f16"),
    ("((f32[16], f32[8]), (f32[8], f32[4])) reduce-scatter-start(%x, %y)", D,
     "reduce-scatter", "d", 96, "f32"),
    ("(f32[4], f32[4], f32[4], f32[4]) all-to-all(%a, %b, %c)", M, "all-to-all", "m", 64, "f32"),
    ("((f32[32]), f32[32]{0}) all-to-all-start(%x)", M, "all-to-all", "m", 128, "f32"),
    ("c64[3]{0} collective-permute(%x)", "source_target_pairs={{0,4},{4,0}}",
     "collective-permute", "d", 24, "c64"),
    ("(f32[8], f32[8], u32[], u32[]) collective-permute-start(%x)", "source_target_pairs={{0,1}}",
     "collective-permute", "m", 32, "f32"),
    ("pred[8]{0} collective-broadcast(%x)", D, "collective-broadcast", "d", 8, "pred"),
    ("s4[7]{0:E(4)} ragged-all-to-all(%x)", M, "ragged-all-to-all", "m", 4, "s4"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "groups", "kind", "axes", "size", "dtype"), INSTRUCTIONS)
def test_one_instruction(op: str, groups: str, kind: str, axes: str, size: int, dtype: str) -> None:
    done = f'%d = f32[8] {kind}-done(%s), metadata={{op_name="a all-reduce(b)"}}'
    c = one(entry(f"ROOT %s = {op}, {groups}, dimensions={{0}}", done))
    assert (c.kind, "".join(c.axes), c.bytes, c.dtype, c.count) == (kind, axes, size, dtype, 1)


def test_what_runs_beside_a_collective() -> None:
    """Between its start and its end; bitcasts are no work, and another one's end is not its own."""
    start = f"%{{0}} = f32[8] all-reduce-start(%x), {D}"
    done = "%{0}-done = f32[8] all-reduce-done(%{0})"
    text = entry(
        start.format("a"), "%b = f32[8] bitcast(%x)", done.format("a"), "%w = f32[8] fusion(%x)",
        start.format("c"), start.format("c.1"), done.format("c.1"), "%g = f32[8] custom-call(%x)",
        done.format("c"), f"%d = f32[8] all-reduce(%x), {D}",
    )  # fmt: skip
    found = {c.name: c.beside for c in collectives_in(text, *MESH)}
    assert found == {"a": False, "c": True, "c.1": False, "d": None}
    assert share_beside(collectives_in(text, *MESH)) == 1 / 4
    assert share_beside([one(entry(f"%d = f32[8] all-reduce(%x), {D}"))]) is None


def test_groups_of_no_axes_keep_their_text() -> None:
    c = one(entry("%r = f32[8] all-reduce(%x), replica_groups={{0,5},{1,4},{2,7},{3,6}}"))
    assert (c.axes, c.group_size, c.recognised) == ((), 2, False)
    assert c.groups == "{{0,5},{1,4},{2,7},{3,6}}"


LOOPS = """
%inner_body (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8] all-reduce(%p), replica_groups={}
}
%less (a: s32[], b: s32[]) -> pred[] {
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}
%inner_cond (p: f32[8]) -> pred[] {
  %five = s32[] constant(5)
  ROOT %lt = pred[] fusion(%i, %five), kind=kLoop, calls=%less
}
%odd_cond (p: f32[8]) -> pred[] {
  ROOT %lt = pred[] compare(%x, %y), direction=GT
}
%wrapped (p: f32[8]) -> f32[8] {
  ROOT %b = f32[8] all-gather(%p), replica_groups={}
}
%fused (p: f32[8]) -> f32[8] {
  ROOT %c = f32[32] reduce-scatter(%p), replica_groups={}
}
%branch (p: f32[8]) -> f32[8] {
  ROOT %d = f32[8] all-to-all(%p), replica_groups={}
}
%dead (p: f32[8]) -> f32[8] {
  ROOT %e = f32[8] all-reduce(%p), replica_groups={}
}
%outer_body (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%inner_cond, body=%inner_body
  %s = ((f32[8]), f32[8], u32[]) async-start(%w), calls=%wrapped
  %u = ((f32[8]), f32[8], u32[]) async-update(%s), calls=%wrapped
  %t = f32[8] async-done(%u), calls=%wrapped
  %f = f32[8] fusion(%t), kind=kCustom, calls=%fused
  ROOT %q = f32[8] conditional(%k, %f, %f), branch_computations={%less, %branch}
}
%odd_body (p: f32[8]) -> f32[8] {
  ROOT %g = f32[8] collective-broadcast(%p), replica_groups={}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%odd_cond, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %v = f32[8] while(%w), condition=%odd_cond, body=%odd_body
  %c = f32[8] call(%v), to_apply=%fused
  ROOT %r = f32[8] call(%c), to_apply=%fused
}
"""  # noqa: E501


def test_counts_multiply_through_loops_and_add_over_calls() -> None:
    got = {c.name: (c.count, c.count_from, c.in_branch) for c in collectives_in(LOOPS, *MESH)}
    assert got == {
        "a": (15, "condition", False),
        "b": (3, "known", False),
        "c": (5, "known", False),  # 3 in the loop's fusion, 2 by calls
        "d": (3, "known", True),
        "g": (1, "unknown", False),
    }


TABLES = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "/home/me/train.py"
2 "/venv/lib/python3.11/site-packages/flax/nnx/linear.py"
3 "/usr/lib/python3.11/contextlib.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=8 end_column=8}
2 {file_name_id=2 function_name_id=1 line=99 end_line=101 column=8 end_column=8}
3 {file_name_id=1 function_name_id=1 line=30 end_line=30 column=8 end_column=8}
4 {file_name_id=3 function_name_id=1 line=81 end_line=81 column=8 end_column=8}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=4 parent_frame_id=3}
4 {file_location_id=2 parent_frame_id=4}
5 {file_location_id=2 parent_frame_id=1}

"""
SOURCES = [
    ('op_name="jit(step)/dot" stack_frame_id=4', "/home/me/train.py:7"),  # two libraries up
    ("stack_frame_id=1", "/home/me/train.py:30"),
    ("stack_frame_id=5", "/venv/lib/python3.11/site-packages/flax/nnx/linear.py:99"),
    ("stack_frame_id=77", ""),
    ('op_name="x" source_file="old.py" source_line=12', "old.py:12"),
    ('op_name="x"', ""),
]


@pytest.mark.parametrize(("metadata", "source"), SOURCES)
def test_source_is_the_innermost_frame_of_the_user(metadata: str, source: str) -> None:
    text = TABLES + entry(f"%r = f32[8] all-reduce(%x), {M}, metadata={{{metadata}}}")
    assert one(text).source == source


def test_op_name_keeps_escaped_quotes() -> None:
    c = one(entry(f'%r = f32[8] all-reduce(%x), {M}, metadata={{op_name="a[\\"b\\"]/c"}}'))
    assert c.op_name == 'a[\\"b\\"]/c'


BAD = [
    ("", (8,), ("x",), ValueError, "no ENTRY computation"),
    (TABLES + entry(), (2, 2), ("x", "y"), MeshError, "compiled for 8 devices, but mesh shape"),
    (TABLES + entry(), (8,), ("x", "y"), MeshError, "2 axis names"),
    (
        entry("%r = f32[8] all-reduce(%x), replica_groups=@new<form>"),
        (8,),
        ("x",),
        ValueError,
        "unknown form of replica_groups=.*@new<form>",
    ),
]


@pytest.mark.parametrize(("text", "shape", "names", "error", "message"), BAD)
def test_bad_input(
    text: str,
    shape: tuple[int, ...],
    names: tuple[str, ...],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        collectives_in(text, shape, names)


def test_types() -> None:
    bits = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "s4": 4, "c128": 128, "token": 0}
    assert {dtype: dtype_bits(dtype) for dtype in bits} == bits
    assert top_level("((f32[2]{0}, u8[]), (f32[4,2]{1,0:T(8,128)}), u32[])") == [
        "(f32[2]{0}, u8[])", "(f32[4,2]{1,0:T(8,128)})", "u32[]",
    ]  # fmt: skip


MESHES = [((8,), ("x",)), ((2, 4), ("x", "y")), ((2, 4), ("y",)), ((2, 2, 2), ("x", "z"))]


@pytest.mark.parametrize(("shape", "axes"), MESHES)
def test_what_the_cpu_compiler_emits(
    mesh: Callable[..., Mesh], shape: tuple[int, ...], axes: tuple[str, ...]
) -> None:
    """Every kind once, in a scan of five; float32[16, 64] on each device."""
    m = mesh(*shape)
    size = math.prod(m.shape[a] for a in axes)

    def body(c: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        ring = [(i, (i + 1) % size) for i in range(size)]
        c = jax.lax.psum(jnp.sin(c), axes)
        return c, (
            jax.lax.all_gather(c * 2, axes, tiled=True),
            jax.lax.psum_scatter(c * 3, axes, tiled=True),
            jax.lax.all_to_all(c * 4, axes, 0, 1, tiled=True),
            jax.lax.ppermute(c * 5, axes, ring),
        )

    step = jax.shard_map(
        lambda x: jax.lax.scan(body, x, None, length=5),
        mesh=m, in_specs=P(), out_specs=P(), check_vma=False,
    )  # fmt: skip
    text = jax.jit(step).lower(jax.ShapeDtypeStruct((16, 64), jnp.float32)).compile().as_text()
    assert text is not None
    found = collectives_in(text, m.devices.shape, m.axis_names)
    full = 5 * 16 * 64 * 4
    assert summarize(found) == {
        ("all-reduce", axes): (5, full),
        ("all-gather", axes): (5, full * size),
        ("reduce-scatter", axes): (5, full),
        ("all-to-all", axes): (5, full),
        ("collective-permute", axes): (5, full),
    }
    assert {Path(c.source.rpartition(":")[0]).name for c in found} == {"test_hlo.py"}
    assert {c.count_from for c in found} == {"known"}


def test_a_gathered_weight_and_a_summed_loss(mesh: Callable[..., Mesh]) -> None:
    m = mesh(2, 4)

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        w = jax.lax.with_sharding_constraint(w, NamedSharding(m, P()))
        return jnp.sum(jnp.tanh(x @ w))

    w = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(m, P("y")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(m, P("x")))
    text = jax.jit(loss).lower(w, x).compile().as_text()
    assert text is not None
    assert summarize(collectives_in(text, (2, 4), ("x", "y"))) == {
        ("all-gather", ("y",)): (1, 64 * 32 * 4),
        ("all-reduce", ("x",)): (1, 4),
    }


def test_the_cpu_compiler_moves_bfloat16_as_float32(mesh: Callable[..., Mesh]) -> None:
    """What the audit allows for on "cpu"; float16 stays as it is."""
    m = mesh(8)
    gather = jax.shard_map(
        lambda x: jax.lax.all_gather(x, "x", tiled=True),
        mesh=m, in_specs=P("x"), out_specs=P(), check_vma=False,
    )  # fmt: skip
    for dtype, moved, size in ((jnp.bfloat16, "f32", 256), (jnp.float16, "f16", 128)):
        text = jax.jit(gather).lower(jax.ShapeDtypeStruct((64,), dtype)).compile().as_text()
        assert text is not None
        (c,) = collectives_in(text, (8,), ("x",))
        assert (c.dtype, c.bytes) == (moved, size)


def test_groups_of_one_device_are_dropped_from_the_sum() -> None:
    text = entry("%r = f32[8] all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}")
    assert len(collectives_in(text, *MESH)) == 1
    assert summarize(collectives_in(text, *MESH)) == {}
