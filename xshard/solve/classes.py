"""Choices that a matrix cannot tell apart.

The resharding matrix of an edge has one row a strategy, but only as many *distinct* rows as the
tensor has specs. Everything that is more than linear in the choices works on these classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xshard.solve.problem import Ints


class Classes(NamedTuple):
    """`labels[choice]` is the class of a choice, `firsts[class]` the first choice in the class."""

    labels: NDArray[np.intp]
    firsts: NDArray[np.intp]


def slices(values: Ints, axis: int) -> Classes:
    """The classes of equal slices along `axis`: a hash finds them, a comparison proves them."""
    flat = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    found = _unique(flat @ _salt(flat.shape[1]))
    if (flat == flat[found.firsts][found.labels]).all():
        return found
    _, firsts, labels = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    return Classes(labels.reshape(-1), firsts)


@lru_cache(maxsize=64)
def _salt(size: int) -> Ints:
    return np.random.default_rng(7).integers(2**62, size=size, dtype=np.int64)


def joint(parts: Sequence[NDArray[np.intp]], size: int) -> Classes:
    """The coarsest classes that respect all the labellings of `size` choices."""
    keys = np.zeros(size, np.intp)
    for labels in parts:
        keys = _unique(keys * (int(labels.max()) + 1) + labels).labels
    return _unique(keys)


def _unique(keys: NDArray[np.intp] | Ints) -> Classes:
    _, firsts, labels = np.unique(keys, return_index=True, return_inverse=True)
    return Classes(labels.reshape(-1), firsts)
