"""A call's arguments in one row, as `jax.jit` understands them: by position, keyword or default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from xshard._jax import typeof
from xshard.errors import TraceError
from xshard.run.split import SplitArray

_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, _NAMED)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call.

    Attributes:
      row: the positional arguments, then those that have no position, by the order of `names`.
      names: keywords of the last arguments.
      static: places in the row that are compile-time constants.
      donated: places in the row whose memory may be reused.
    """

    row: tuple[Any, ...]
    names: tuple[str, ...]
    static: frozenset[int]
    donated: frozenset[int]

    @property
    def labels(self) -> tuple[str, ...]:
        """How paths name each argument: "args[0]", "kwargs['rate']"."""
        count = len(self.row) - len(self.names)
        return (*(f"args[{i}]" for i in range(count)), *(f"kwargs[{n!r}]" for n in self.names))

    def on_row(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """`fun` as a function of the row."""
        if not self.names:
            return fun
        count = len(self.row) - len(self.names)

        def takes_row(*row: Any) -> Any:
            return fun(*row[:count], **dict(zip(self.names, row[count:], strict=True)))

        takes_row.__name__ = name_of(fun)
        return takes_row

    def map(self, f: Callable[..., Any], *others: Sequence[Any]) -> tuple[Any, ...]:
        """The row with `f` applied to each argument that is not static.

        `f` also gets the argument's entry of `others`, which leave static arguments out.
        """
        entries = zip(*others, strict=True) if others else iter([()] * len(self.row))
        return tuple(
            arg if i in self.static else f(arg, *next(entries)) for i, arg in enumerate(self.row)
        )

    def without_arrays(self) -> Call:
        """The same with shapes in place of arrays, to be kept for longer than the call.

        An argument whose class holds nothing but arrays is a list of its leaves.
        """
        return replace(self, row=self.map(_shapes))

    def key(self, *, weak: bool = True) -> Hashable:
        """Equal for two calls that one plan and one compiled program serve.

        Without `weak`, also for two that differ in which types are weak.
        """
        dynamic = [arg for i, arg in enumerate(self.row) if i not in self.static]
        leaves, tree = jax.tree.flatten(dynamic)
        static = tuple((i, type(self.row[i]), self.row[i]) for i in sorted(self.static))
        try:
            hash(static)
        except TypeError:
            static = ()  # the trace says which argument it is
        kinds = map(kind, leaves)
        return tree, self.names, tuple(kinds if weak else map(_strong, kinds)), static


def each_leaf(f: Callable[..., Any], arg: Any, *others: Any) -> Any:
    """An argument with `f` applied to each leaf and those of `others` at its place.

    Each of `others` has as many leaves, in whatever tree: some classes hold nothing but arrays.
    """
    leaves, tree = jax.tree.flatten(arg)
    return tree.unflatten(map(f, leaves, *map(jax.tree.leaves, others)))


def as_tree(tree: Any, leaves: Sequence[Any]) -> Any:
    """The leaves as the pytree, or as a list where a class in it does not hold them as they are."""
    try:
        made = jax.tree.unflatten(tree, leaves)
    except Exception:  # whatever that class raises for what is no array
        return list(leaves)
    same = jax.tree.structure(made) == tree and all(
        a is b for a, b in zip(jax.tree.leaves(made), leaves, strict=True)
    )
    return made if same else list(leaves)


def _shapes(arg: Any) -> Any:
    leaves, tree = jax.tree.flatten(arg)
    return as_tree(tree, list(map(_shape, leaves)))


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray | SplitArray):
        return leaf
    weak = bool(getattr(leaf, "weak_type", False))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)


def kind(leaf: Any) -> Hashable:
    """(shape, dtype, whether weak) of a leaf, as JAX sees it; its type if it is no array."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | SplitArray):
        return leaf.shape, leaf.dtype, bool(getattr(leaf, "weak_type", False))
    try:
        aval = typeof(leaf)
    except TypeError:
        return type(leaf)
    return aval.shape, aval.dtype, aval.weak_type


def _strong(kind: Hashable) -> Hashable:
    return kind[:2] if isinstance(kind, tuple) else kind


class Arguments:
    """How a function takes its arguments, and which of them are static or donated."""

    def __init__(
        self,
        fun: Callable[..., Any],
        static: int | Sequence[int] = (),
        donated: int | Sequence[int] = (),
        static_names: str | Sequence[str] = (),
        donated_names: str | Sequence[str] = (),
    ) -> None:
        """Static and donated arguments by number, and by name.

        Raises:
          TraceError: the function has no parameter of such a name.
        """
        self._fun = fun
        self._parameters = parameters = _parameters(fun)
        self._names, self._most = _names(parameters), _most(parameters)
        self._static = self._chosen("static_argnames", static, static_names)
        self._donated = self._chosen("donate_argnames", donated, donated_names)

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The call with these arguments; keywords go to their positions as far as these are known.

        Raises:
          TraceError: a static or donated argument by a number that the function does not have.
        """
        row, rest = list(args), dict(kwargs)
        for name in self._names[len(args) :] if rest else ():
            if name not in rest:
                break
            row.append(rest.pop(name))
        names = tuple(sorted(rest))
        place = {i: i for i in range(len(row))}
        place |= {self._names.index(n): len(row) + i for i, n in enumerate(names)
                  if n in self._names}  # fmt: skip
        by_name = {n: len(row) + i for i, n in enumerate(names)}
        most = max(len(row) if self._most is None else self._most, len(place))
        return Call(
            (*row, *(rest[n] for n in names)), names,
            self._places("static_argnums", self._static, place, by_name, most),
            self._places("donate_argnums", self._donated, place, by_name, most),
        )  # fmt: skip

    def again(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The row, without its static arguments, of another call that leaves these out as well."""
        given, named = list(args), dict(kwargs)
        for i in sorted(call.static):
            by_name = i - len(call.row) + len(call.names)
            if by_name >= 0:
                named[call.names[by_name]] = call.row[i]
            elif i <= len(given):
                given.insert(i, call.row[i])
            else:
                named[self._names[i]] = call.row[i]
        row = self.call(tuple(given), named).row
        return [arg for i, arg in enumerate(row) if i not in call.static]

    def _chosen(
        self, option: str, numbers: int | Sequence[int], names: str | Sequence[str]
    ) -> tuple[int | str, ...]:
        """Parameters by number, and by name those that have none."""
        names = (names,) if isinstance(names, str) else tuple(names)
        known = [p.name for p in self._parameters or ()]
        any_name = self._parameters is None or any(
            p.kind is p.VAR_KEYWORD for p in self._parameters
        )
        wrong = [] if any_name else [n for n in names if n not in known]
        if wrong:
            raise TraceError(
                f"{option} has {wrong[0]!r}, but {name_of(self._fun)} has no such parameter: it "
                f"takes {', '.join(known) or 'none'}"
            )
        numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
        return *numbers, *(self._names.index(n) if n in self._names else n for n in names)

    def _places(
        self, option: str, chosen: tuple[int | str, ...], place: dict[int, int],
        by_name: dict[str, int], most: int,
    ) -> frozenset[int]:  # fmt: skip
        """Where parameters stand in the row; those left to their defaults do not."""
        numbers = [n for n in chosen if isinstance(n, int)]
        wrong = [n for n in numbers if not -most <= n < most]
        if wrong:
            raise TraceError(
                f"{option} has {wrong[0]}, but {name_of(self._fun)} takes {most} positional "
                "arguments; number them from 0"
            )
        named = (by_name[n] for n in chosen if isinstance(n, str) and n in by_name)
        return frozenset((*(place[n % most] for n in numbers if n % most in place), *named))


def name_of(fun: Any) -> str:
    """The name of a function, or of a callable object's type."""
    return getattr(fun, "__name__", type(fun).__name__)


def how_many(fun: Callable[..., Any], most: int) -> int:
    """How many positional arguments `fun` needs; `most` if it takes any number or does not say."""
    parameters = _parameters(fun)
    if _most(parameters) is None:
        return most
    return sum(p.kind in _POSITIONAL and p.default is p.empty for p in parameters or ())


def _parameters(fun: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return None


def _names(parameters: list[inspect.Parameter] | None) -> list[str]:
    """Names of the positional parameters; "" for those that keywords do not reach."""
    found = [p for p in parameters or () if p.kind in _POSITIONAL]
    return [p.name if p.kind is _NAMED else "" for p in found]


def _most(parameters: list[inspect.Parameter] | None) -> int | None:
    """The largest number of positional arguments; None if there is no such number or not known."""
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in _POSITIONAL for p in parameters)
