"""One of JAX's own single-primitive programs, sharded and held against the unsharded run.

As a program (`python -m benchmarks.primitive_case 2x2x2`) it is a worker of
`benchmarks.primitives`: it reads the names of programs, one a line, and answers each with a line of
JSON. Behind the mesh may stand `uneven`: dimensions that do not divide are split at any size then.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.attractive import attractive_plan
from benchmarks.common import virtual_devices

Shape = tuple[int, ...]
TOLERANCE = {
    "float64": 1e-9, "complex128": 1e-9, "float32": 1e-4, "complex64": 1e-4, "float16": 1e-2,
    "bfloat16": 4e-2,
}  # fmt: skip
"""Of the largest element, by dtype: sums in another order. Narrower floats get one of their steps,
integers and booleans none."""
NARROW_FLOAT = 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program.

    Attributes:
      status: "ok", "wrong", "error", "timeout", or "skipped" where `jax.jit` itself fails.
      reason: why, where it is not "ok".
      divisible: whether some dimension of an argument or result is a multiple of an axis.
      sharded: whether an operand of some op is split.
      without_rule: primitives that ran whole for want of a rule.
    """

    name: str
    group: str
    status: str
    reason: str = ""
    divisible: bool = False
    sharded: bool = False
    without_rule: tuple[str, ...] = ()


def harnesses() -> dict[str, Any]:
    """The programs by name, without those that JAX says the CPU cannot run."""
    test_harnesses = importlib.import_module("jax._src.internal_test_util.test_harnesses")
    return {h.fullname: h for h in test_harnesses.all_harnesses if h.filter("cpu")}


def run(name: str, harness: Any, shape: Shape) -> Outcome:
    """Plans one program, runs it on all devices and on one, and compares."""
    import jax
    import numpy as np

    def made(status: str, reason: str = "", **more: Any) -> Outcome:
        return Outcome(name, harness.group_name, status, reason, **more)

    def program(*given: Any) -> Any:
        return harness.dyn_fun(*given)

    args = tuple(harness.dyn_args_maker(np.random.RandomState(0)))
    try:
        expected = jax.block_until_ready(jax.jit(program)(*args))
    except Exception as error:
        return made("skipped", _first_line(error))
    try:
        plan, actual = _sharded(program, args, shape)
        wrong = difference(actual, expected)
    except Exception as error:
        return made("error", f"{_first_line(error)} [{_where(error)}]")
    facts = {
        "divisible": divisible(shape, map(np.shape, jax.tree.leaves((args, expected)))),
        "sharded": any(any(spec) for op in plan.ops for spec in op.operands),
        "without_rule": tuple(sorted({op.prim for op in plan.ops if not op.known})),
    }
    return made("wrong" if wrong else "ok", wrong, **facts)


def _sharded(program: Any, args: tuple[Any, ...], shape: Shape) -> tuple[Any, Any]:
    import jax

    import xshard

    types = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, ("x", "y", "z")[: len(shape)], types)
    plan = attractive_plan(program, args, mesh, tight=True)
    step = xshard.auto_shard(program, mesh, plan=plan)
    return plan, jax.block_until_ready(step(*args))


def difference(actual: Any, expected: Any) -> str:
    """ "" if both trees are equal up to the dtypes' tolerances, else what differs first."""
    import jax

    (ours, tree), (theirs, other) = map(jax.tree.flatten, (actual, expected))
    if tree != other:
        return f"another tree: {tree}, not {other}"
    for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        if (x.shape, x.dtype, x.weak_type) != (y.shape, y.dtype, y.weak_type):
            return f"result {i} is {jax.typeof(x)}, not {jax.typeof(y)}"
        error, allowed = _error(x, y)
        if not error <= allowed:
            return f"result {i} is off by {error:.2g} of its largest element"
    return ""


def _error(x: Any, y: Any) -> tuple[float, float]:
    """The largest difference in units of the largest element, and how much is allowed."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    allowed = TOLERANCE.get(x.dtype.name, NARROW_FLOAT) if inexact else 0.0
    a, b = (_wide(v) for v in (x, y))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0, allowed
    with np.errstate(all="ignore"):
        finite = np.abs(b[np.isfinite(b)])
        error = np.abs(np.where(same, 0, a - b)).max() / max(finite.max(initial=0), 1e-30)
    return float(error), allowed


def _wide(x: Any) -> Any:
    import jax.numpy as jnp
    import numpy as np

    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return np.asarray(x).astype(np.complex128)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return np.asarray(x).astype(np.int64 if x.dtype.itemsize == 8 else np.float64)
    return np.asarray(x).astype(np.float64)


def divisible(mesh: Shape, shapes: Iterable[Shape]) -> bool:
    """Whether some dimension can be split evenly over an axis of the mesh."""
    return any(n and any(n % size == 0 for size in mesh) for shape in shapes for n in shape)


def _split_unevenly() -> None:
    """Lets plans split dimensions that do not divide, however few elements they have."""
    from xshard import spec

    spec.LEAST_PADDED = 1


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def _where(error: BaseException) -> str:
    """Our own innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "xshard" in f.filename]
    return f"{ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno}" if ours else ""


def main() -> None:
    shape = tuple(map(int, sys.argv[1].split("x")))
    virtual_devices(math.prod(shape))
    if "uneven" in sys.argv[2:]:
        _split_unevenly()
    known = harnesses()
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps(asdict(run(name, known[name], shape))), flush=True)


if __name__ == "__main__":
    main()
