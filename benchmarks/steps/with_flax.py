"""Steps of flax: linen with batch statistics, nnx with dropout and moving averages."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.steps import Program

ROWS, SIDE, CLASSES = 16, 8, 4
SGD = optax.sgd(1e-1, momentum=0.9)


def _images(key: Any) -> Any:
    x, y = jax.random.split(key)
    return {
        "x": jax.random.normal(x, (ROWS, SIDE, SIDE, 3)),
        "y": jax.random.randint(y, (ROWS,), 0, CLASSES),
    }


class Residual(nn.Module):
    """Convolutions with batch statistics, pooling, a grouped and a strided convolution."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Conv(8, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        y = nn.Conv(8, (3, 3), feature_group_count=4)(y)
        x = nn.max_pool(x + y, (2, 2), (2, 2))
        x = nn.GroupNorm(4)(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(CLASSES)(nn.Dropout(0.1, deterministic=not train)(x.mean((1, 2))))


def _residual(train: bool) -> Program:
    net = Residual()

    def init(key: Any) -> Any:
        variables = net.init(key, jnp.zeros((1, SIDE, SIDE, 3)), train=False)
        return {**variables, "opt": SGD.init(variables["params"]), "key": key}

    def step(state: Any, batch: Any) -> Any:
        key, dropout = jax.random.split(state["key"])

        def loss_of(params: Any) -> Any:
            logits, new = net.apply(
                {"params": params, "batch_stats": state["batch_stats"]}, batch["x"], train=True,
                mutable=["batch_stats"], rngs={"dropout": dropout},
            )  # fmt: skip
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
            return losses.mean(), new["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt = SGD.update(grads, state["opt"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "batch_stats": stats, "opt": opt, "key": key}, loss

    def evaluate(state: Any, batch: Any) -> Any:
        variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
        logits: Any = net.apply(variables, batch["x"], train=False)
        return state, {"right": (logits.argmax(-1) == batch["y"]).sum(), "logits": logits}

    name = "residual net, batch statistics" if train else "residual net, evaluation"
    return Program(name, "flax.linen", step if train else evaluate, init, _images)


class Attention(nnx.Module):
    """Patches, attention, dropout, and a head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, 16, (4, 4), strides=4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.norm, self.dropout = nnx.LayerNorm(16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.patches(x).reshape(x.shape[0], -1, 16)
        x = x + self.dropout(self.attention(self.norm(x)))
        return self.head(x.mean(1))


def _attention() -> Program:
    graph, _, _ = nnx.split(Attention(nnx.Rngs(0)), nnx.Param, ...)

    def init(key: Any) -> Any:
        _, params, rest = nnx.split(Attention(nnx.Rngs(key)), nnx.Param, ...)
        return {"params": params, "average": params, "rest": rest, "opt": SGD.init(params)}

    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            net = nnx.merge(graph, params, state["rest"], copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(net(batch["x"]), batch["y"])
            return losses.mean(), nnx.split(net, nnx.Param, ...)[2]

        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt = SGD.update(grads, state["opt"])
        params = optax.apply_updates(state["params"], updates)
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, state["average"], params)
        return {"params": params, "average": average, "rest": rest, "opt": opt}, loss

    return Program("vision transformer, moving average", "flax.nnx", step, init, _images)


PROGRAMS = [_residual(train=True), _residual(train=False), _attention()]
