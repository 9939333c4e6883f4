"""A pipeline computes what the step computes, and holds what its schedule says."""

from __future__ import annotations

import gc
from typing import Any

import jax
import numpy as np
import pytest

from tests.api.oracles import assert_close
from tests.mpmd import programs
from tests.mpmd.pipelines import pipeline, run
from xshard.errors import MeshError
from xshard.mpmd.held import live_bytes
from xshard.mpmd.layout import submeshes
from xshard.mpmd.step import Pipeline
from xshard.mpmd.tape import Held

CASES = [
    # loss, schedule, groups, microbatches, chunks, devices
    (programs.tied, "1f1b", 2, 8, 1, 8),
    (programs.tied, "zero_bubble", 4, 4, 1, 4),
    (programs.skips, "gpipe", 4, 2, 1, 4),
    (programs.skips, "interleaved", 2, 4, 2, 2),
    (programs.encoder_decoder, "interleaved", 2, 2, 2, 4),
    (programs.encoder_decoder, "zero_bubble", 2, 8, 1, 2),
]


@pytest.mark.parametrize(("loss", "name", "groups", "microbatches", "chunks", "devices"), CASES)
def test_results_are_those_of_the_step(
    loss: Any, name: str, groups: int, microbatches: int, chunks: int, devices: int
) -> None:
    fun, args = programs.train(loss), programs.args()
    found = pipeline(fun, args, name, groups, microbatches, chunks=chunks, devices=devices)
    assert_close(run(found, args), jax.tree.leaves(jax.jit(fun)(*args)), 4.0)


def test_each_stage_has_its_own_parameters() -> None:
    fun, args = programs.train(programs.skips), programs.args()
    found = pipeline(fun, args, "1f1b", 4, 2)
    state, _ = jax.tree.unflatten(jax.tree.structure(args), found.in_shardings)
    lies = [_device(p["up"]) for p in state[0]["layers"]]
    assert lies == sorted(lies)
    assert len(set(lies)) > 2
    assert [_device(m["up"]) for m in state[1][1][0].mu["layers"]] == lies


def _device(sharding: Any) -> int:
    [device] = sharding.device_set
    return device.id


def _nbytes(found: Pipeline, h: Held) -> int:
    aval = found.staged.avals[h.value]
    return aval.size * aval.dtype.itemsize


def _live(found: Pipeline) -> list[int]:
    """Bytes on the device of each group."""
    devices = [mesh.devices.flat[0] for mesh in found.layout.meshes]
    arrays = [(x.nbytes, x.sharding.device_set) for x in jax.live_arrays()]
    return [sum(n for n, on in arrays if on == {d}) for d in devices]


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zero_bubble"])
def test_live_memory_is_what_the_tape_says(name: str) -> None:
    """After each action every group holds what is still to be read, to the byte."""
    fun, args = programs.train(programs.skips), programs.args()
    flat = jax.tree.map(np.asarray, jax.tree.leaves(args))
    found = pipeline(fun, args, name, 2, 4, donated=len(flat))
    found(*found.placed(flat))  # constants are on their devices
    gc.collect()
    before = _live(found)
    seen: list[list[int]] = []
    found.observer = lambda _action, _made: seen.append(_live(found))
    found(*found.placed(flat))
    consts = [h for h in found.tape.first if h.value in found.staged.consts]  # there before, too
    other = [
        b - sum(_nbytes(found, h) for h in consts if h.group == g) for g, b in enumerate(before)
    ]
    planned = live_bytes(found.tape, lambda h: _nbytes(found, h))
    assert [[n - o for n, o in zip(now, other, strict=True)] for now in seen] == [
        [held[0], held[1]] for held in planned
    ]


def test_1f1b_holds_less_than_gpipe() -> None:
    fun, args = programs.train(programs.skips), programs.args()

    def peak(name: str) -> int:
        found = pipeline(fun, args, name, 2, 8)
        return max(held[0] for held in live_bytes(found.tape, lambda h: _nbytes(found, h)))

    assert peak("1f1b") < peak("gpipe")


def test_a_mesh_that_does_not_divide_is_refused() -> None:
    with pytest.raises(MeshError, match="mesh d=2 cannot be cut into 4 equal groups"):
        submeshes(np.array(jax.devices()[:2]), ("d",), 4)
