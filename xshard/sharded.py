"""`ShardedStep`: what `auto_shard` returns; it is called like the `jax.jit` of the function."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.core import Tracer

from xshard._jax import has_explicit_axes, known_value
from xshard.compare.check import Check, check_step
from xshard.errors import PlanError, TraceError
from xshard.ir.trace import trace
from xshard.plan.plan import Plan
from xshard.run.call import Arguments, Call, each_leaf, how_many, name_of
from xshard.run.split import SplitArray
from xshard.run.step import Runnable, StaleError
from xshard.run.watch import watch
from xshard.verify.audit import Audit


class ShardedStep:
    """A function that plans its sharding at the first call, and again for other shapes.

    Calls, `lower`, donation and static arguments behave as with `jax.jit`. Arguments that lie
    elsewhere are moved to where the plan wants them.
    """

    def __init__(
        self, fun: Callable[..., Any], arguments: Arguments, make: Callable[[Call], Runnable]
    ) -> None:
        functools.update_wrapper(self, fun, updated=())
        self._fun = fun
        self._arguments = arguments
        self._make = make
        self._made: dict[Hashable, Runnable] = {}
        self._current: Runnable | None = None
        self._direct = False  # the latest two calls were alike and nothing had to be moved

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one step; the first call with new shapes plans."""
        if self._direct and self._current is not None and not kwargs:
            try:
                return self._current(*args)
            except (StaleError, TypeError, ValueError):
                if self._is_current(self._arguments.call(args, kwargs)):
                    raise
        call, before = self._arguments.call(args, kwargs), self._current
        current = self._runnable(call)
        row = self._placed(current, call)
        result = current(*row)
        self._direct = current is before and not call.names and _all_same(row, call.row)
        return result

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Binds as a function does, so that methods can be decorated."""
        return self if instance is None else types.MethodType(self, instance)

    @property
    def plan(self) -> Plan:
        """The plan of the latest call, `lower` or `init`.

        Raises:
          PlanError: nothing was planned yet.
        """
        return self._planned().plan

    @property
    def in_shardings(self) -> Any:
        """NamedShardings of the arguments (static ones left out), as a tuple of pytrees."""
        return self._planned().in_shardings

    @property
    def out_shardings(self) -> Any:
        """NamedShardings of the result, as its pytree."""
        return self._planned().out_shardings

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """As `jax.jit(fun).lower`: arguments may be arrays or `jax.ShapeDtypeStruct`s."""
        return self.trace(*args, **kwargs).lower()

    def trace(self, *args: Any, **kwargs: Any) -> jax.stages.Traced:
        """As `jax.jit(fun).trace`: of the planned program, with the plan's constraints."""
        call = self._arguments.call(args, kwargs)
        current = self._runnable(call)
        traced = current.trace(call)
        if not kwargs and not current.lead and current.takes_row:
            return traced

        def row(*given: Any) -> tuple[Any, ...]:
            return *current.lead, *current.taken(self._arguments.again(call, *given), static=())

        return _AsCalled(traced, row, current.returned)  # type: ignore[return-value]

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """As `jax.jit(fun).eval_shape`: the shapes and types of the result; nothing is planned."""
        call = self._arguments.call(args, kwargs)
        return jax.jit(call.on_row(self._fun), static_argnums=tuple(call.static)).eval_shape(
            *call.row
        )

    def clear_cache(self) -> None:
        """As `jax.jit(fun).clear_cache`: forgets all plans and compiled programs."""
        self._made.clear()
        self._current, self._direct = None, False

    def init(self, init_fn: Callable[..., Any], *args: Any) -> Any:
        """The state that `init_fn` makes, created in its planned sharding, never on one device.

        `init_fn` gets as many of `args` as it takes. The step's first argument is the state; the
        others are the last of `args`, arrays or shapes: `step.init(init_fn, rng, batch)`. They are
        needed only if nothing was planned yet.
        """
        mine = args[: how_many(init_fn, len(args))]
        state = jax.eval_shape(init_fn, *mine)
        known = [self._current, *self._made.values()]
        self._current = next((r for r in known if r is not None and _takes(r, state)), None)
        if self._current is None:
            self._runnable(self._arguments.call((state, *self._rest(args)), {}))
        return self._created(init_fn, mine)

    def _created(self, init_fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        shardings = self.in_shardings[0]
        tree = self._planned().traced.in_tree.children()[0]
        if jax.tree.structure(shardings) == tree:
            return jax.jit(init_fn, out_shardings=shardings)(*args)
        leaves = jax.jit(lambda *a: jax.tree.leaves(init_fn(*a)), out_shardings=shardings)(*args)
        return jax.tree.unflatten(tree, leaves)

    def portable(self, state: Any) -> Any:
        """The state as arrays over all devices, which any checkpoint and any jit takes.

        That is how it lies, but for a pipeline, each of whose arrays lies on some of the devices.
        Of `jax.ShapeDtypeStruct`s these with shardings, for what restores: a step takes it back.
        """

        def portable(x: Any, sharding: Any) -> Any:
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            return x

        return each_leaf(portable, state, self.in_shardings[0])

    def audit(self, *args: Any, **kwargs: Any) -> Audit:
        """Compares the plan's collectives with those that XLA compiled.

        Without arguments: for the latest planned shapes (static arguments need them again).
        """
        from xshard.verify.step import audit_step

        if not args and not kwargs:
            traced = self._planned().traced
            args = tuple(jax.tree.unflatten(traced.in_tree, traced.in_avals))
        compiled = self.lower(*args, **kwargs).compile()
        return audit_step(self.plan, compiled.as_text() or "", jax.default_backend())

    def check(self, *args: Any, **kwargs: Any) -> Check:
        """Compares what the sharded step computes with the same step on one device.

        Each array of the result is held against how far it moves on one device when every number
        of the input changes by 1e-6 of itself; more than ten times as much is no rounding, and then
        the first equation that computes something else is looked for. A step that computes with
        floats of 16 bits is compared in float32, and then as it is. The arguments, which are
        arrays, must fit on one device: smaller ones than in training do (they get a plan of their
        own). Nothing is donated. The step runs several times, with its callbacks.

        Raises:
          PlanError: an argument is a shape, or the mesh is of several processes.
        """
        call = self._arguments.call(args, kwargs)
        current = self._runnable(call)
        original = current.traced
        if current.plan.microbatches > 1:
            original = trace(call.on_row(self._fun), call.row, call.static, call.labels)
        return check_step(current, call, original)

    def _planned(self) -> Runnable:
        if self._current is None:
            raise PlanError(
                "nothing is planned yet: call the step, its lower() or its init() first"
            )
        return self._current

    def _runnable(self, call: Call) -> Runnable:
        key = call.key()
        if key not in self._made:
            watch()
            self._made[key] = self._make(call)
        self._current = self._made[key]
        return self._current

    def _is_current(self, call: Call) -> bool:
        """Whether the current plan serves a call as it is, so that an error is not of ours."""
        current = self._made.get(call.key())
        if current is None or current is not self._current:
            return False
        return _all_same(self._placed(current, call), call.row)

    def _placed(self, current: Runnable, call: Call) -> tuple[Any, ...]:
        """The row, with arrays that lie elsewhere moved."""
        place = functools.partial(each_leaf, _put)
        return call.map(place, current.in_shardings, current.returns)

    def _rest(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = how_many(self._fun, len(args) + 1) - 1
        if wanted > len(args):
            raise TraceError(
                f"init needs the other {wanted} arguments of {name_of(self._fun)} behind init_fn's "
                "own, arrays or shapes, to plan for: step.init(init_fn, rng, batch)"
            )
        return args[len(args) - wanted :]


class _AsCalled:
    """A traced, lowered or compiled step that is used as the function is called.

    Keywords and captured constants are put where the jitted row has them.
    """

    def __init__(
        self, inner: Any, row: Callable[..., tuple[Any, ...]], returned: Callable[[Any], Any]
    ) -> None:
        self._inner = inner
        self._row = row
        self._returned = returned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._returned(self._inner(*self._row(args, kwargs)))

    def lower(self, *args: Any, **kwargs: Any) -> _AsCalled:
        """As of `jax.stages.Traced`."""
        return _AsCalled(self._inner.lower(*args, **kwargs), self._row, self._returned)

    def compile(self, *args: Any, **kwargs: Any) -> _AsCalled:
        """As of `jax.stages.Lowered`."""
        return _AsCalled(self._inner.compile(*args, **kwargs), self._row, self._returned)


def _all_same(a: Any, b: Any) -> bool:
    return all(x is y for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _put(x: Any, sharding: jax.sharding.NamedSharding, returns: bool) -> Any:
    x = x.whole() if isinstance(x, SplitArray) else x
    value = known_value(x) if isinstance(x, Tracer) else x
    if isinstance(value, jax.Array) and value.committed:
        return jax.device_put(x, sharding) if _is_elsewhere(value, sharding) else x
    here = returns and sharding.is_fully_addressable and value is x
    return jax.device_put(x, sharding) if here else x


def _is_elsewhere(x: jax.Array, sharding: jax.sharding.NamedSharding) -> bool:
    typed = has_explicit_axes(x) and getattr(x.sharding, "mesh", None) != sharding.mesh
    return typed or not x.sharding.is_equivalent_to(sharding, x.ndim)


def _takes(current: Runnable, state: Any) -> bool:
    """Whether `state` has the structure and shapes of the step's first argument."""
    trees, avals = current.traced.in_tree.children(), current.traced.in_avals
    leaves, tree = jax.tree.flatten(state)
    return (
        bool(trees)
        and trees[0] == tree
        and all(
            x.shape == a.shape and x.dtype == a.dtype for x, a in zip(leaves, avals, strict=False)
        )
    )
