"""The one gate to JAX's insides: jaxpr types, dead code, name stacks, contexts, versions.

JAX 0.10 has an open `Jaxpr` and a `ClosedJaxpr` around it; in 0.12 they are one class. `opened`,
`consts_of` and `closed` read and make either.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

import jax
from jax._src import core, debugging, dispatch, distributed, linear_util, source_info_util
from jax._src import mesh as mesh_lib
from jax._src.interpreters import partial_eval as pe
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.extend.random import threefry2x32_p
from jax.sharding import AxisType, Mesh

__all__ = [
    "ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Var", "auto_mesh", "closed", "consts_of",
    "equation_context", "expanded", "free_of_mesh", "has_explicit_axes", "has_mesh",
    "holds_shard_map", "inlined", "is_array_aval", "is_ordered_debugging", "is_user_file",
    "known_value",
    "lowered", "made_of",
    "needed_for", "needs_devices", "opened", "retraced", "retraced_at", "retyped", "scan_counts",
    "scopes_and_transforms", "solve_reads", "solves_called", "source_line", "sub_jaxprs",
    "threefry_bits", "typeof", "unsharded",
    "without_dead_code",
]  # fmt: skip

_LIBRARIES = tuple(
    os.path.join(sysconfig.get_path(kind), "") for kind in ("stdlib", "purelib", "platlib")
)
_JAX = os.path.join(os.path.dirname(jax.__file__), "")
_JAX_CORE = os.path.join(_JAX, "_src", "")
_XSHARD = os.path.join(os.path.dirname(__file__), "")
_NO_MESH = mesh_lib.empty_abstract_mesh


def opened(jaxpr: Any) -> Jaxpr:
    """The jaxpr itself, open or closed."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def consts_of(jaxpr: Any) -> list[Any]:
    """The values of `opened(jaxpr).constvars`."""
    return list(jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else []


def closed(jaxpr: Jaxpr, consts: Sequence[Any]) -> ClosedJaxpr:
    """A closed jaxpr with these constants."""
    return ClosedJaxpr(jaxpr, list(consts))


def made_of(
    eqns: Sequence[JaxprEqn], ins: Sequence[Var], outs: Sequence[Any], like: Any
) -> ClosedJaxpr:
    """A closed jaxpr of these equations of jaxpr `like`, without captured arrays."""
    effects = core.join_effects(*(eqn.effects for eqn in eqns))
    about = opened(like).debug_info.with_unknown_names()
    return closed(Jaxpr([], list(ins), list(outs), list(eqns), effects, about), [])


def inlined(eqn: JaxprEqn, call: JaxprEqn) -> JaxprEqn:
    """An equation of a called jaxpr as one of the caller's: with its name stack and line."""
    info, outer = eqn.source_info, call.source_info
    line = info.traceback if source_line(info.traceback) else outer.traceback
    stack = outer.name_stack + info.name_stack
    return eqn.replace(source_info=info.replace(name_stack=stack, traceback=line))


def run_again(eqn: JaxprEqn) -> JaxprEqn:
    """An equation as it runs again in the backward pass: marked as `jax.checkpoint` marks that."""
    info = eqn.source_info
    return eqn.replace(source_info=info.replace(name_stack=_again(info.name_stack)))


def is_rematted(eqn: JaxprEqn) -> bool:
    """Whether the equation is part of what a `jax.checkpoint` recomputes in the backward pass."""
    stack = eqn.source_info.name_stack.stack
    return any(getattr(part, "name", "") in _REMATTED for part in stack)


_REMATTED = ("rematted_computation", "checkpoint")


def _again(stack: Any) -> Any:
    marks = source_info_util.new_name_stack().transform("transpose")
    return marks.extend("rematted_computation") + stack


def sub_jaxprs(eqn: JaxprEqn) -> Iterator[Any]:
    """The jaxprs, open or closed, that an equation holds in its parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield item


def without_dead_code(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """Drops equations whose results nobody reads and that have no effect; keeps every input."""
    inner = opened(jaxpr)
    pruned, _ = pe.dce_jaxpr(inner, [True] * len(inner.outvars), instantiate=True)
    return closed(pruned, jaxpr.consts)


def needed_for(jaxpr: Any, wanted: Sequence[bool]) -> tuple[ClosedJaxpr, list[bool]]:
    """The part of a jaxpr that makes the wanted results; which of its inputs that takes."""
    pruned, used = pe.dce_jaxpr(opened(jaxpr), list(wanted))
    return closed(pruned, consts_of(jaxpr)), used


def retraced(
    fun: Callable[..., Sequence[Any]], like: Any, as_type: Callable[[Any], Any] | None = None
) -> ClosedJaxpr:
    """Traces `fun` over the unsharded inputs of jaxpr `like`, or over what `as_type` makes of them.

    Returns a closed jaxpr that captures its constants.
    """
    avals = [(as_type or unsharded)(var.aval) for var in opened(like).invars]
    jaxpr, consts = _traced(fun, like, avals)
    return closed(jaxpr, consts)


def retraced_at(fun: Callable[..., Sequence[Any]], like: Any, avals: Sequence[Any]) -> Any:
    """Traces `fun` over these types: (a jaxpr open or closed as `like`, its leading constants)."""
    jaxpr, consts = _traced(fun, like, avals)
    lifted = pe.convert_constvars_jaxpr(jaxpr) if consts else jaxpr
    return (closed(lifted, []) if isinstance(like, ClosedJaxpr) else lifted), list(consts)


def _traced(fun: Callable[..., Sequence[Any]], like: Any, avals: Sequence[Any]) -> Any:
    wrapped = linear_util.wrap_init(
        lambda *args: list(fun(*args)), debug_info=opened(like).debug_info.with_unknown_names()
    )
    jaxpr, _, consts = pe.trace_to_jaxpr_dynamic(wrapped, list(avals))
    return jaxpr, consts


def threefry_bits(key: Any, high: Any, low: Any, width: int) -> Any:
    """The bits of a threefry key's elements with these 64-bit numbers, as two uint32 arrays.

    They are those that `jax.random.bits` gives with `jax_threefry_partitionable`.
    """
    words = jax.random.key_data(key)
    x, y = threefry2x32_p.bind(words[0], words[1], high, low)
    if width == 64:
        return (x.astype("uint64") << 32) | y.astype("uint64")
    return (x ^ y).astype(f"uint{width}")


def lowered(jaxpr: ClosedJaxpr) -> ClosedJaxpr:
    """The jaxpr with primitives that only expand into others ("hi" ones) expanded."""
    inner = opened(jaxpr)
    if not getattr(inner, "is_high", False):
        return jaxpr
    wrapped = linear_util.wrap_init(
        core.jaxpr_as_fun(jaxpr), debug_info=inner.debug_info.with_unknown_names()
    )
    low, _, consts = pe.trace_to_jaxpr_dynamic(wrapped, [v.aval for v in inner.invars], lower=True)
    return closed(low, consts)


def expanded(jaxpr: Any) -> Any:
    """The jaxpr, open or closed, with primitives of other libraries as calls of what they do.

    What a primitive does is its implementation, if that can be traced; those of JAX itself are left
    alone, but for `jax.experimental`, whose sparse arrays are primitives of this kind.
    """

    def call(eqn: JaxprEqn) -> JaxprEqn | None:
        body = _implementation(eqn)
        return None if body is None else _calling(eqn, body, eqn.invars)

    return _rewritten(jaxpr, call)


def solves_called(jaxpr: Any) -> Any:
    """The jaxpr, open or closed, with linear solves as calls of what they do, underived."""

    def call(eqn: JaxprEqn) -> JaxprEqn | None:
        if eqn.primitive.name != "custom_linear_solve":
            return None
        return _calling(eqn, eqn.params["jaxprs"].solve, [eqn.invars[i] for i in solve_reads(eqn)])

    return _rewritten(jaxpr, call)


def solve_reads(eqn: JaxprEqn) -> list[int]:
    """Which operands of a linear solve its solving function takes; others are for derivatives."""
    counts = eqn.params["const_lengths"]
    start = (counts.matvec or 0) + (counts.vecmat or 0)
    rest = range(start + counts.solve + (counts.transpose_solve or 0), len(eqn.invars))
    return [*range(start, start + counts.solve), *rest]


def _calling(eqn: JaxprEqn, body: Any, operands: Sequence[Any]) -> JaxprEqn:
    params = {"call_jaxpr": body}
    return eqn.replace(primitive=core.closed_call_p, params=params, invars=list(operands))


def _rewritten(jaxpr: Any, new: Callable[[JaxprEqn], JaxprEqn | None]) -> Any:
    """The jaxpr with other equations where `new` makes some, at any depth."""
    inner = opened(jaxpr)
    eqns = [new(eqn) or _rewritten_below(eqn, new) for eqn in inner.eqns]
    if all(a is b for a, b in zip(eqns, inner.eqns, strict=True)):
        return jaxpr
    made = inner.replace(eqns=eqns)
    return closed(made, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else made


def _rewritten_below(eqn: JaxprEqn, new: Callable[[JaxprEqn], JaxprEqn | None]) -> JaxprEqn:
    def below(value: Any) -> Any:
        if isinstance(value, Jaxpr | ClosedJaxpr):
            return _rewritten(value, new)
        if type(value) not in (tuple, list):
            return value
        items = [below(item) for item in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)

    params = {name: below(value) for name, value in eqn.params.items()}
    same = all(params[name] is value for name, value in eqn.params.items())
    return eqn if same else eqn.replace(params=params)


def _implementation(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """What a primitive of another library does, as a jaxpr; None if it does not say."""
    fun = _own_function(eqn.primitive)
    if eqn.effects or fun is None:
        return None
    try:
        with eqn.ctx.manager, free_of_mesh():
            made = jax.make_jaxpr(lambda *xs: fun(*xs, **eqn.params))(*[v.aval for v in eqn.invars])
    except Exception:  # it computes with numbers, or in another language
        return None
    if list(map(_shape, made.out_avals)) != [_shape(v.aval) for v in eqn.outvars]:
        return None
    return None if any(e.primitive is eqn.primitive for e in opened(made).eqns) else expanded(made)


def _own_function(primitive: Any) -> Callable[..., Any] | None:
    """The Python function of a primitive that is none of `jax._src`."""
    fun = getattr(primitive, "impl", None)
    inner = fun
    while isinstance(inner, functools.partial):
        inner = inner.func
    code = getattr(inner, "__code__", None)
    if code is not None and not code.co_filename.startswith(_JAX_CORE):
        return fun
    kind = primitive.name.partition("_")[0]  # sparse products: only their lowering names it
    module = sys.modules.get(f"jax.experimental.sparse.{kind}")
    return getattr(module, f"_{primitive.name}_impl", None)


def _shape(aval: Any) -> tuple[Any, Any]:
    return getattr(aval, "shape", None), getattr(aval, "dtype", None)


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan equation."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def unsharded(aval: Any) -> Any:
    """The abstract value without the sharding that Explicit axis types give it."""
    if not is_array_aval(aval) or aval.sharding.mesh.empty:
        return aval
    return core.ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type)


def retyped(aval: Any, dtype: Any) -> Any:
    """The type of an array of this dtype."""
    return core.ShapedArray(aval.shape, dtype, weak_type=aval.weak_type)


def typeof(value: Any) -> Any:
    """The abstract value of an array, a scalar or anything with a shape and dtype, unsharded.

    Raises:
      TypeError: for anything else.
    """
    if isinstance(value, jax.ShapeDtypeStruct):
        weak = bool(getattr(value, "weak_type", False))
        return core.ShapedArray(value.shape, value.dtype, weak_type=weak)
    return unsharded(core.shaped_abstractify(value))


def known_value(x: Any) -> Any:
    """The array that a tracer stands for, as in `jax.grad` outside of `jax.jit`; or None."""
    return core.to_concrete_value(x)


def has_explicit_axes(value: Any) -> bool:
    """Whether an array's type carries a sharding, as arrays on meshes with Explicit axes do."""
    sharding = getattr(value, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and AxisType.Explicit in mesh.axis_types


def is_array_aval(aval: Any) -> bool:
    """Whether an abstract value is an array (not a token, not a mutable reference)."""
    return isinstance(aval, core.ShapedArray)


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices and axis names with every axis of type Auto."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def free_of_mesh() -> AbstractContextManager[Any]:
    """No mesh in the context, whatever the caller has set."""
    return mesh_lib.use_abstract_mesh(_NO_MESH)


def is_ordered_debugging(eqn: JaxprEqn) -> bool:
    """Whether the equation prints or calls back in order, which JAX allows on one device only."""
    return any(isinstance(e, debugging.OrderedDebugEffect) for e in eqn.effects)


def holds_shard_map(jaxpr: Any) -> bool:
    """Whether a `shard_map` stands at any depth, which needs the mesh that it was made for."""
    return any(
        eqn.primitive.name == "shard_map" or any(map(holds_shard_map, sub_jaxprs(eqn)))
        for eqn in opened(jaxpr).eqns
    )


def has_own_derivatives(jaxpr: Any) -> bool:
    """Whether an equation, at any depth, states how it is differentiated."""
    return any(
        eqn.primitive.name.startswith(("custom_jvp", "custom_vjp", "custom_linear_solve"))
        or any(map(has_own_derivatives, sub_jaxprs(eqn)))
        for eqn in opened(jaxpr).eqns
    )


def evaluate(jaxpr: ClosedJaxpr, args: Sequence[Any], consts: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr; `consts` begin with its own."""
    inner = opened(jaxpr)
    return core.eval_jaxpr(inner, consts[: len(inner.constvars)], *args)


def coordination_client() -> Any:
    """The client of the service that `jax.distributed` has started; None if it has not."""
    return distributed.global_state.client


def needs_devices(jaxpr: Any) -> bool:
    """Whether it holds a callback or the like, which JAX lowers for one mesh of one type only."""
    inner = opened(jaxpr)
    return dispatch.jaxpr_has_prim_requiring_devices(inner) or any(
        is_ordered_debugging(eqn) for eqn in inner.eqns
    )


def has_mesh(eqn: JaxprEqn) -> bool:
    """Whether the equation was traced with a mesh in the context."""
    return not eqn.ctx.cur_abstract_mesh.empty


def equation_context(eqn: JaxprEqn, name: str = "", *, again: bool = False) -> tuple[Any, Any]:
    """Two context managers: the equation's line and name stack; its settings but for the mesh.

    An equation without a line of the user's own keeps that of the call around it.

    Args:
      name: a scope to add.
      again: it runs again in the backward pass: marked as `jax.checkpoint` marks that.
    """
    stack = source_info_util.current_name_stack()
    if again:
        stack = stack.transform("transpose").extend("rematted_computation")
    stack = stack + eqn.source_info.name_stack
    if name:
        stack = stack.extend(name)
    line = eqn.source_info.traceback if source_line(eqn.source_info.traceback) else None
    where = source_info_util.user_context(line, name_stack=stack)
    return where, _without_mesh(eqn.ctx).manager


@functools.lru_cache(maxsize=256)  # contexts are interned
def _without_mesh(ctx: Any) -> Any:
    if ctx.cur_abstract_mesh.empty:
        return ctx
    with ctx.manager, free_of_mesh():
        return core.JaxprEqnContext()


def scopes_and_transforms(name_stack: Any) -> tuple[list[str], list[str]]:
    """The user's scopes and JAX's transformations in a name stack, outermost first.

    A transformed checkpoint repeats its scopes, `transpose(jvp(a))/jvp(a)`: once is enough.
    """
    scopes: list[str] = []
    transforms: list[str] = []
    group: list[str] = []  # the scopes since the last transformation
    for part in name_stack.stack:
        if isinstance(part, source_info_util.Scope):
            group.append(part.name)
        else:
            transforms.append(part.name)
            scopes, group = _joined(scopes, group), []
    return _joined(scopes, group), transforms


def _joined(scopes: list[str], group: list[str]) -> list[str]:
    return group if group[: len(scopes)] == scopes else scopes + group


@functools.cache
def is_user_file(filename: str) -> bool:
    """Whether code is the user's own: not JAX's, not xshard's, not a library's."""
    return not filename.startswith((_JAX, _XSHARD, "<frozen", *_LIBRARIES))


@functools.cache
def _frame_rank(filename: str) -> int:
    """2 for the user's code, 1 for a library's, 0 for JAX, xshard and the standard library."""
    if is_user_file(filename):
        return 2
    inside = filename.startswith((_JAX, _XSHARD)) or not source_info_util.is_user_filename(filename)
    return 0 if inside else 1


@functools.lru_cache(maxsize=1 << 16)
def source_line(traceback: Any) -> str:
    """ "file.py:123 (function)" of the innermost user's frame, else a library's frame, else ""."""
    if traceback is None:
        return ""
    codes, offsets = traceback.raw_frames()
    best, best_rank = -1, 0
    for i, code in enumerate(codes):
        rank = _frame_rank(code.co_filename)
        if rank > best_rank:
            best, best_rank = i, rank
            if rank == 2:
                break
    return _describe(codes[best], offsets[best]) if best_rank else ""


@functools.cache
def _describe(code: CodeType, offset: int) -> str:
    frame = source_info_util.raw_frame_to_frame(code, offset)
    function = frame.function_name.rsplit("<locals>.", 1)[-1]
    return f"{os.path.basename(frame.file_name)}:{frame.start_line} ({function})"
