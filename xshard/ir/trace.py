"""`trace`: a Python function and its arguments -> its jaxpr, its `Graph`, and their names."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from xshard._jax import (
    ClosedJaxpr,
    consts_of,
    expanded,
    has_explicit_axes,
    is_user_file,
    lowered,
    opened,
    typeof,
    without_dead_code,
)
from xshard.errors import TraceError
from xshard.ir.flatten import Frame, GraphBuilder
from xshard.ir.graph import Graph
from xshard.ir.ports import CONTROL_FLOW
from xshard.ir.prune import finish

WHILE_TRACING = "xshard was tracing"
"""How the note begins that is added to an error of the user's function."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced function.

    Attributes:
      closed_jaxpr: without dead code; takes the flattened arguments, all of them.
      graph: the same program, flat; `Op.address` points into `closed_jaxpr`.
      in_tree: of the tuple of arguments that are not static.
      out_tree: of the result.
      in_avals, out_avals: abstract values, flattened, without shardings.
      in_paths: "args[0]['params']['w']", numbered as the caller passed them; also `Value.name`.
      out_paths: "['loss']"; "" when the result is one array.
      consts: arrays captured by closure, in the order of `graph.consts`: those of `closed_jaxpr`,
        then those that only an inner jaxpr holds.
    """

    closed_jaxpr: ClosedJaxpr
    graph: Graph
    in_tree: Any
    out_tree: Any
    in_avals: tuple[Any, ...]
    out_avals: tuple[Any, ...]
    in_paths: tuple[str, ...]
    out_paths: tuple[str, ...]
    consts: tuple[Any, ...]


def trace(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    static_argnums: int | Iterable[int] = (),
    labels: Sequence[str] = (),
) -> Traced:
    """Traces `fun(*args)`; arguments may be arrays or anything with a shape and a dtype.

    Args:
      labels: what paths call the arguments, if not "args[0]" and so on.

    Raises:
      TraceError: `fun` is not callable, an argument is neither an array nor static, or a static
        argument is not hashable.
      Exception: what `jax.jit` raises where `fun` itself fails or JAX cannot trace it, with a note
        that begins with `WHILE_TRACING`.
    """
    if not callable(fun):
        raise TraceError(f"xshard needs a function to shard, but got {fun!r} ({_kind(fun)})")
    static = _static(static_argnums, args)
    labels = labels or [f"args[{i}]" for i in range(len(args))]
    dynamic = {labels[i]: arg for i, arg in enumerate(args) if i not in static}
    leaves, in_tree = jax.tree.flatten(tuple(dynamic.values()))
    paths = [name + path for name, arg in dynamic.items() for path in _paths(arg)]
    avals = tuple(_aval(leaf, path) for leaf, path in zip(leaves, paths, strict=True))
    returned = list[Any]()
    flat = _flat(fun, static, in_tree, paths, returned)
    jaxpr = _make_jaxpr(flat, leaves, avals, _kind_name(fun))
    jaxpr = without_dead_code(expanded(lowered(jaxpr)))
    graph, consts = build_graph(jaxpr, paths)
    out_paths, out_tree = returned[-1]
    return Traced(
        jaxpr, graph, in_tree, out_tree, avals,
        tuple(jaxpr.out_avals), tuple(paths), tuple(out_paths), consts,
    )  # fmt: skip


def build_graph(jaxpr: ClosedJaxpr, names: Iterable[str] = ()) -> tuple[Graph, tuple[Any, ...]]:
    """The verified graph of a closed jaxpr, whose inputs carry these names; and its constants."""
    b = GraphBuilder(CONTROL_FLOW)
    invars = opened(jaxpr).invars
    labels = tuple(names) or ("",) * len(invars)
    inputs = [b.value(var.aval, name) for var, name in zip(invars, labels, strict=True)]
    for array in consts_of(jaxpr):
        b.const(array)
    outputs = b.inline(jaxpr, list(inputs), Frame())
    return finish(b, inputs, outputs).verify(), tuple(array for _, array in b.consts.values())


def _static(static_argnums: int | Iterable[int], args: tuple[Any, ...]) -> dict[int, Any]:
    """Static arguments by position."""
    numbers = [static_argnums] if isinstance(static_argnums, int) else list(static_argnums)
    static: dict[int, Any] = {}
    for n in numbers:
        if not -len(args) <= n < len(args):
            raise TraceError(f"static_argnums has {n}, but the function got {len(args)} arguments")
        static[n % len(args)] = args[n]
    for n, arg in static.items():
        _check_hashable(n, arg)
    return static


def _check_hashable(n: int, arg: Any) -> None:
    try:
        hash(arg)
    except TypeError:
        raise TraceError(
            f"static argument args[{n}] is a {_kind(arg)}, which is not hashable; "
            f"pass a hashable value (a tuple, a frozen dataclass), or drop {n} from static_argnums"
        ) from None


def _aval(leaf: Any, path: str) -> Any:
    try:
        return typeof(leaf)
    except TypeError:
        raise TraceError(
            f"{path} is a {_kind(leaf)}, which is not a JAX array; "
            "pass an array, or name the argument in static_argnums"
        ) from None


def _flat(
    fun: Callable[..., Any],
    static: dict[int, Any],
    in_tree: Any,
    paths: Sequence[str],
    returned: list[Any],
) -> Callable[..., Any]:
    """`fun` as a function of its leaves, which JAX's messages call by their paths.

    Each trace adds to `returned` the paths and the structure of the result.
    """

    def flat_fun(*leaves: Any) -> Any:
        args = list(jax.tree.unflatten(in_tree, leaves))
        for n in sorted(static):
            args.insert(n, static[n])
        out = fun(*args)
        returned.append((_paths(out), jax.tree.structure(out)))
        return out

    named: Any = flat_fun
    named.__wrapped__ = fun
    named.__signature__ = inspect.Signature(
        [inspect.Parameter(_Path(p), inspect.Parameter.POSITIONAL_ONLY) for p in paths]
    )
    return flat_fun


class _Path(str):
    """A path as the name of a parameter, which `inspect` wants to be an identifier."""

    __slots__ = ()

    def isidentifier(self) -> bool:
        return True


def _make_jaxpr(
    fun: Callable[..., Any], leaves: list[Any], avals: tuple[Any, ...], name: str
) -> ClosedJaxpr:
    """Traces with shardings forgotten; a function that needs its Explicit axes gets them."""
    make = jax.make_jaxpr(fun)
    try:
        try:
            return make(*avals)
        except Exception:
            if not any(map(has_explicit_axes, leaves)):
                raise
            return make(*leaves)
    except Exception as error:
        error.add_note(f"{WHILE_TRACING} {name}{_where(error)}")
        raise


def _where(error: Exception) -> str:
    """The user's innermost line in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if is_user_file(f.filename)]
    return f" (at {mine[-1].filename}:{mine[-1].lineno}, in {mine[-1].name})" if mine else ""


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _kind(value: Any) -> str:
    return type(value).__name__


def _kind_name(fun: Any) -> str:
    return getattr(fun, "__name__", None) or _kind(fun)
