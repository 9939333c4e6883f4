"""GPT-3 sharded by hand, as an expert would: PartitionSpecs of the state, batch and activations.

  data parallel   everything replicated, the batch over all axes
  ZeRO-1          the same, with Adam's moments sharded
  FSDP (ZeRO-3)   parameters too, each by its largest dimension that divides; activations stay put
  Megatron        heads, MLP width and vocabulary over the last axis; the batch over the others

Sources: Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054); Shoeybi et al. 2019, "Megatron-LM"
(arXiv:1909.08053).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import jax
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from models.gpt3 import model as gpt3_model
from models.gpt3.config import GPT3Config
from models.gpt3.layers import Block
from models.gpt3.model import GPT3
from models.gpt3.step import make_train_step, state_avals

Specs = Any
"""A pytree of PartitionSpecs."""

_SPLIT_DIM = {
    ("query", "kernel"): (3, 1), ("query", "bias"): (2, 0),
    ("key", "kernel"): (3, 1), ("key", "bias"): (2, 0),
    ("value", "kernel"): (3, 1), ("value", "bias"): (2, 0),
    ("out", "kernel"): (3, 0),
    ("up", "kernel"): (2, 1), ("up", "bias"): (1, 0), ("down", "kernel"): (2, 0),
    ("embed", "embedding"): (2, 0),
}  # fmt: skip
"""Megatron: a parameter's (rank, the dimension that is split)."""


@dataclass(frozen=True)
class Baseline:
    """One way to shard the step by hand.

    Attributes:
      state: specs of the state, in and out.
      batch: spec of tokens [B, S].
      stream: of the activations between layers [B, S, D].
      logits: of the logits [B, S, V].
    """

    name: str
    state: Specs
    batch: P
    stream: P
    logits: P

    @property
    def out_specs(self) -> Any:
        """What to pin of the results to price this: the update runs where the parameters lie.

        Nothing where moments and parameters lie apart, as in ZeRO-1: there the update follows the
        moments, and the parameters are gathered.
        """
        state = self.state
        apart = jax.tree.leaves(state["params"]) != jax.tree.leaves(state["adam"].mu)
        return None if apart else (state, None)

    def jit(self, config: GPT3Config, mesh: Mesh) -> Callable[..., Any]:
        """The step as a `jax.jit` with these shardings, state donated."""
        state, batch = self._placed(mesh, self.state), NamedSharding(mesh, self.batch)
        return jax.jit(
            self.step(config, mesh),
            in_shardings=(state, batch),
            out_shardings=(state, NamedSharding(mesh, P())),
            donate_argnums=0,
        )

    def step(self, config: GPT3Config, mesh: Mesh) -> Callable[..., Any]:
        """The step with this baseline's constraints on activations."""
        named = config.replace(name=f"{config.name} {self.name} {mesh.shape}")  # traced anew
        train = make_train_step(named).train

        def train_step(state: Any, batch: Any) -> Any:
            with self._constrained(mesh):
                return train(state, batch)

        return train_step

    def state_of(self, config: GPT3Config, mesh: Mesh) -> Any:
        """A first state in its place."""
        init = make_train_step(config).init
        return jax.jit(init, out_shardings=self._placed(mesh, self.state))(jax.random.key(0))

    @contextmanager
    def _constrained(self, mesh: Mesh) -> Iterator[None]:
        """Layers keep their activations in `stream`, the model its result in `logits`."""
        layer, model = Block.__call__, GPT3.__call__

        def put(x: Any, spec: P) -> Any:
            return with_sharding_constraint(x, NamedSharding(mesh, spec))

        def block(self_: Block, x: Any, key: Any = None) -> Any:
            return put(layer(self_, put(x, self.stream), key), self.stream)

        def gpt3(self_: GPT3, tokens: Any, key: Any = None) -> Any:
            return put(model(self_, tokens, key), self.logits)

        def apply(*args: Any) -> Any:  # a function of its own: JAX keeps traces by function
            return gpt3_model._apply_block(*args)

        rematted = jax.checkpoint(apply, static_argnums=(0,))
        with (
            patch.object(Block, "__call__", block),
            patch.object(GPT3, "__call__", gpt3),
            patch.object(gpt3_model, "_apply", jax.jit(apply, static_argnums=0)),
            patch.object(gpt3_model, "_rematted", jax.jit(rematted, static_argnums=0)),
        ):
            yield

    def _placed(self, mesh: Mesh, specs: Specs) -> Any:
        is_spec = {"is_leaf": lambda x: isinstance(x, P)}
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, **is_spec)


def baselines(config: GPT3Config, mesh: Mesh) -> list[Baseline]:
    """All that make sense for the model on the mesh."""
    avals = state_avals(config)
    every = tuple(mesh.axis_names)
    whole = jax.tree.map(lambda _: P(), avals)
    sharded = jax.tree.map(lambda x: _largest(x.shape, every, mesh.size), avals)
    rows = every if config.batch % mesh.size == 0 else every[:1]
    data = {"batch": P(rows), "stream": P(rows), "logits": P(rows)}
    moments = {**whole, "adam": sharded["adam"]}
    megatron = _megatron(config, mesh, avals)
    return [
        Baseline("data parallel", whole, **data),
        Baseline("ZeRO-1", moments, **data),
        Baseline("FSDP", {**sharded, "rng": P()}, **data),
        megatron,
        # the batch split over all devices, weights as Megatron has them: each layer gathers its own
        Baseline("FSDP of Megatron's weights", megatron.state, **data),
    ]


def _megatron(config: GPT3Config, mesh: Mesh, avals: Any) -> Baseline:
    *data, model = mesh.axis_names
    rows = tuple(data) or None
    width = mesh.shape[model]

    def spec(path: Any, x: Any) -> P:
        names = [getattr(k, "key", getattr(k, "name", "")) for k in path]
        rank, dim = _SPLIT_DIM.get((names[-2], names[-1]) if len(names) > 1 else ("", ""), (0, 0))
        dim += x.ndim - rank  # behind the axis of scanned layers
        if not rank or x.shape[dim] % width:
            return P()
        return P(*[None] * dim, model)

    vocab = model if config.vocab % width == 0 else None
    state = jax.tree_util.tree_map_with_path(spec, avals)
    return Baseline("Megatron", state, P(rows), P(rows), P(rows, None, vocab))


def _largest(shape: tuple[int, ...], axes: tuple[str, ...], size: int) -> P:
    """The largest dimension that divides over all axes; small arrays stay whole."""
    dims = [d for d, n in enumerate(shape) if n % size == 0]
    if not dims or math.prod(shape) < 1024:
        return P()
    best = max(dims, key=lambda d: shape[d])
    return P(*[None] * best, axes)
