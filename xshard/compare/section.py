"""Part of a program, the whole or one body, run with the plan's constraints and without.

Every value that it makes is returned beside its results, so that two runs can be held against each
other value by value, in program order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import JaxprEqn, free_of_mesh, is_array_aval
from xshard.compare.difference import Difference, difference, perturbed
from xshard.compare.rounding import rounding_otherwise
from xshard.ir.graph import Address
from xshard.run.annotate import AS_TRACED, Constraints, Frame, Key, Numbers
from xshard.run.bodies import entered

WATCHED_BYTES = 1 << 28
"""How much of a program's values one run returns."""


@dataclass(slots=True)
class Watch:
    """What an evaluation meets, in program order.

    Attributes:
      made: each value by the equation that makes it and its place among the results.
      reads: each equation with what it reads.
    """

    made: dict[Key, Any] = field(default_factory=dict)
    reads: dict[Address, tuple[JaxprEqn, list[Any]]] = field(default_factory=dict)

    def __call__(self, at: Address, eqn: JaxprEqn, ins: list[Any], outs: Sequence[Any]) -> None:
        self.reads[at] = eqn, ins
        self.made.update({(at, r): x for r, x in enumerate(outs)})


@dataclass(frozen=True, eq=False)
class Section:
    """A jaxpr of the traced program, open or closed, whose inputs are its own constants and `args`.

    Attributes:
      jaxpr: what is run.
      at: its address; () is the whole program.
      sharded, plain: the plan's constraints; and none, over one device.
      consts: by the id of an array that the program holds, what to use for it.
      place: puts the inputs where the sharded run wants them.
      numbers: what both compute with.
    """

    jaxpr: Any
    at: Address
    sharded: Constraints
    plain: Constraints
    consts: Mapping[int, Any] = field(default_factory=dict)
    place: Callable[[Sequence[Any]], Sequence[Any]] = list
    numbers: Numbers = AS_TRACED
    _runs: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def below(self, jaxpr: Any, at: Address) -> Section:
        """The section of a body."""
        return Section(jaxpr, at, self.sharded, self.plain, numbers=self.numbers)

    def first_wrong(self, args: Sequence[Any]) -> tuple[Key, Difference] | None:
        """The first value, in program order, that is apart by more than rounding explains."""
        near = [[perturbed(x, seed + 2 * i) for i, x in enumerate(args)] for seed in (0, 1)]
        for keys in self._chunks(args):
            plain = self._returning(self.plain, keys)
            otherwise = self._returning(self.plain, keys, otherwise=True)
            expected, others = plain(args), [*map(plain, near), otherwise(args)]
            actual = self._returning(self.sharded, keys)(self.place(args))
            for key, a, e, *p in zip(keys, actual, expected, *others, strict=True):
                found = difference("", a, e, p)
                if not found.ok:
                    return key, found
        return None

    def results(self, args: Sequence[Any]) -> list[Any]:
        """The unsharded results."""
        if "results" not in self._runs:
            self._runs["results"] = jax.jit(lambda args: self._evaluate(self.plain, args))
        return self._runs["results"](list(args))

    def reads(self, at: Address, args: Sequence[Any]) -> tuple[JaxprEqn, list[Any]]:
        """The equation at an address, and the unsharded values that it reads."""
        found: list[JaxprEqn] = []

        def run(args: Sequence[Any]) -> list[Any]:
            watch = Watch()
            self._evaluate(self.plain, args, watch)
            eqn, ins = watch.reads[at]
            found.append(eqn)
            return ins

        values = jax.jit(run)(list(args))
        return found[0], values

    def _evaluate(
        self, told: Constraints, args: Sequence[Any], watch: Watch | None = None,
        *, otherwise: bool = False,
    ) -> list[Any]:  # fmt: skip
        numbers = rounding_otherwise(self.numbers) if otherwise else self.numbers
        frame = replace(Frame.of(told, self.consts, numbers), watch=watch)
        with free_of_mesh():
            return frame.evaluate(self.jaxpr, entered(frame, args, self.at), self.at)

    def _returning(
        self, told: Constraints, keys: tuple[Key, ...], *, otherwise: bool = False
    ) -> Callable[..., list[Any]]:
        def run(args: Sequence[Any]) -> list[Any]:
            watch = Watch()
            self._evaluate(told, args, watch, otherwise=otherwise)
            return [watch.made[key] for key in keys]

        return self._runs.setdefault((id(told), keys, otherwise), jax.jit(run))

    def _chunks(self, args: Sequence[Any]) -> Iterator[tuple[Key, ...]]:
        """Keys of all values, in program order, as many at a time as a run returns."""
        chunk, size = list[Key](), 0
        for key, nbytes in self._sizes(args):
            if chunk and size + nbytes > WATCHED_BYTES:
                yield tuple(chunk)
                chunk, size = [], 0
            chunk.append(key)
            size += nbytes
        if chunk:
            yield tuple(chunk)

    def _sizes(self, args: Sequence[Any]) -> list[tuple[Key, int]]:
        """Each value that can be compared, once, with its bytes."""
        watch, once = Watch(), dict[int, tuple[Key, int]]()

        def run(args: Sequence[Any]) -> None:
            self._evaluate(self.plain, args, watch)
            for key, x in watch.made.items():
                aval = jax.typeof(x)
                if is_array_aval(aval) and aval.dtype != jax.dtypes.float0:
                    once.setdefault(id(x), (key, _nbytes(aval)))

        jax.eval_shape(run, list(args))
        return list(once.values())


def _nbytes(aval: Any) -> int:
    extended = jnp.issubdtype(aval.dtype, jax.dtypes.extended)
    return aval.size * (8 if extended else aval.dtype.itemsize)
