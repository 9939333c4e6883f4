"""Routes against the compiler: what `jit` makes of a change of sharding, kinds and bytes."""

import itertools
import math
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xshard.cost.reshard import route
from xshard.spec import MeshShape

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
OP = re.compile(rf"= (\(?f32\[.*?) ({KINDS})(?:-start)?\(")
SIDE = 12


def all_specs(ndim, naxes):
    for places in itertools.product(range(-1, ndim), repeat=naxes):
        yield tuple(tuple(a for a in range(naxes) if places[a] == d) for d in range(ndim))


def compiled(src, dst, sizes, shape):
    """(kind, result's part of the whole) of every collective in the compiled program, sorted."""
    names = "abc"[: len(sizes)]
    mesh = Mesh(np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes), tuple(names))
    source, target = (
        NamedSharding(mesh, PartitionSpec(*(tuple(names[a] for a in axes) for axes in spec)))
        for spec in (src, dst)
    )
    program = jax.jit(
        lambda x: jax.lax.with_sharding_constraint(x, target),
        in_shardings=source,
        out_shardings=target,
    )
    text = program.lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text() or ""
    return sorted(
        (kind.replace("collective-", ""), elements(result) / math.prod(shape))
        for result, kind in OP.findall(text)
    )


def elements(result):
    """Elements of an HLO result type; the parts of a tuple together."""
    shapes = re.findall(r"f32\[([\d,]*)\]", result)
    return sum(math.prod(int(n) for n in dims.split(",") if n) for dims in shapes)


CASES = [
    pytest.param(sizes, ndim, count, id=f"{sizes}-{ndim}d")
    for sizes, ndim, count in [
        ((8,), 2, 6), ((8,), 3, 6), ((2, 4), 2, 30), ((4, 2), 2, 12), ((2, 2, 2), 2, 30),
        ((2, 4), 3, 25), ((2, 2, 2), 3, 40), ((3, 2), 2, 10),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "ndim", "count"), CASES)
def test_routes_are_what_the_compiler_makes(sizes, ndim, count):
    pairs = list(itertools.permutations(all_specs(ndim, len(sizes)), 2))
    random.Random(7).shuffle(pairs)
    shape = (SIDE if 3 in sizes else 16,) * ndim
    mesh = MeshShape(tuple("abc"[: len(sizes)]), sizes)
    for src, dst in pairs[:count]:
        planned = sorted((s.kind, s.nbytes) for s in route(src, dst, mesh))
        found = compiled(src, dst, sizes, shape)
        assert [k for k, _ in planned] == [k for k, _ in found], (src, dst)
        assert [b for _, b in planned] == pytest.approx([b for _, b in found]), (src, dst)
