"""`ShardedStep`: what `auto_shard` returns; it is called like the `jax.jit` of the function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from xshard.errors import PlanError, TraceError
from xshard.plan.plan import Plan
from xshard.run.step import Runnable
from xshard.verify.audit import Audit

MakeRunnable = Callable[[tuple[Any, ...]], Runnable]


class ShardedStep:
    """A function that plans its sharding at the first call, and again for other shapes.

    Calls, `lower`, donation and static arguments behave as with `jax.jit`. Arguments that lie
    elsewhere are moved to where the plan wants them.
    """

    def __init__(
        self, fun: Callable[..., Any], static_argnums: Sequence[int], make: MakeRunnable
    ) -> None:
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._static = frozenset(static_argnums)
        self._make = make
        self._made: dict[Hashable, Runnable] = {}
        self._current: Runnable | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one step; the first call with new shapes plans."""
        if kwargs:
            args = self._positional(args, kwargs)
        current = self._current
        if current is not None and len(self._made) == 1:
            try:
                return current.jitted(current.consts, *args)
            except Exception:
                if self._key(args) in self._made and self._lie_right(current, args):
                    raise
        current = self._runnable(args)
        return current.jitted(current.consts, *self._placed(current, args))

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
        args = self._positional(args, kwargs)
        current = self._runnable(args)
        return current.jitted.lower(current.consts, *map(_abstract, args))  # type: ignore[attr-defined]

    def init(self, init_fn: Callable[..., Any], *args: Any) -> Any:
        """The state that `init_fn` makes, created in its planned sharding, never on one device.

        `init_fn` gets as many of `args` as it takes. The step's first argument is the state; the
        others are the last of `args`, arrays or shapes: `step.init(init_fn, rng, batch)`. They are
        needed only if nothing was planned yet.
        """
        taken = _how_many(init_fn, len(args))
        state = jax.eval_shape(init_fn, *args[:taken])
        current = self._current
        if current is None or not _like(state, current.traced.in_tree, current.traced.in_avals):
            current = self._runnable((state, *self._rest(args)))
        shardings = current.in_shardings[0]
        return jax.jit(init_fn, out_shardings=shardings)(*args[:taken])

    def audit(self, *args: Any, **kwargs: Any) -> Audit:
        """Compares the plan's collectives with those that XLA compiled.

        Without arguments: for the latest planned shapes (static arguments need them again).
        """
        from xshard.verify.step import audit_step

        if not args and not kwargs:
            current = self._planned()
            args = tuple(jax.tree.unflatten(current.traced.in_tree, current.traced.in_avals))
        compiled = self.lower(*args, **kwargs).compile()
        return audit_step(self.plan, compiled.as_text() or "", jax.default_backend())

    def _planned(self) -> Runnable:
        if self._current is None:
            raise PlanError("nothing is planned yet: call the step, its lower() or its init() first")
        return self._current

    def _runnable(self, args: tuple[Any, ...]) -> Runnable:
        key = self._key(args)
        if key not in self._made:
            self._made[key] = self._make(args)
        self._current = self._made[key]
        return self._current

    def _key(self, args: tuple[Any, ...]) -> Hashable:
        dynamic = [arg for i, arg in enumerate(args) if i not in self._static]
        leaves, tree = jax.tree.flatten(dynamic)
        try:
            static = tuple((i, args[i]) for i in sorted(self._static) if i < len(args))
            hash(static)
        except TypeError:
            static = ()  # the trace says which argument it is
        return tree, tuple(map(_kind, leaves)), static

    def _placed(self, current: Runnable, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with arrays that lie elsewhere moved."""
        shardings = iter(current.in_shardings)
        return tuple(
            arg if i in self._static else jax.tree.map(_put, arg, next(shardings))
            for i, arg in enumerate(args)
        )

    def _lie_right(self, current: Runnable, args: tuple[Any, ...]) -> bool:
        placed = self._placed(current, args)
        return all(a is b for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(args), strict=True))

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if not kwargs:
            return args
        try:
            bound = inspect.signature(self._fun).bind(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self._name}: {error}") from error
        if bound.kwargs:
            raise TraceError(
                f"{self._name} has keyword-only arguments ({', '.join(bound.kwargs)}), which have "
                "no position that in_specs could name; wrap it in a function that takes them by "
                "position."
            )
        return bound.args

    @property
    def _name(self) -> str:
        return getattr(self._fun, "__name__", type(self._fun).__name__)

    def _rest(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = _how_many(self._fun, len(args) + 1) - 1
        if wanted > len(args):
            raise TraceError(
                f"init needs the other {wanted} arguments of {self._name} behind init_fn's own, "
                "arrays or shapes, to plan for: step.init(init_fn, rng, batch)"
            )
        return args[len(args) - wanted :]


def _how_many(fun: Callable[..., Any], most: int) -> int:
    """How many positional arguments `fun` takes, at most `most` if it takes any number."""
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):
        return most
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return most
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def _kind(leaf: Any) -> Hashable:
    try:
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)
    except AttributeError:
        return type(leaf)


def _abstract(arg: Any) -> Any:
    """Shapes only, so that arrays that lie elsewhere can be lowered too."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x, arg
    )


def _put(x: Any, sharding: jax.sharding.NamedSharding) -> Any:
    if isinstance(x, jax.Array) and x.committed and not x.sharding.is_equivalent_to(sharding, x.ndim):
        return jax.device_put(x, sharding)
    return x


def _like(state: Any, in_tree: Any, in_avals: tuple[Any, ...]) -> bool:
    """Whether `state` has the structure and shapes of the first argument."""
    first = in_tree.children()[0] if in_tree.num_leaves or in_tree.children() else None
    leaves, tree = jax.tree.flatten(state)
    return first == tree and all(
        x.shape == a.shape and x.dtype == a.dtype for x, a in zip(leaves, in_avals, strict=False)
    )
