"""Training steps whose batch is cut in different ways, with what they are called on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH, WIDTH, CLASSES = 16, 8, 4
Loss = Callable[[Any, Any], Any]


def params() -> Any:
    """Two layers."""
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((WIDTH, 16)), rng.standard_normal((16, CLASSES))
    return {"up": jnp.asarray(up, jnp.float32), "down": jnp.asarray(down, jnp.float32)}


def batch() -> Any:
    """Inputs, targets, labels and weights."""
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((BATCH, WIDTH)).astype(np.float32),
        "y": rng.standard_normal((BATCH, CLASSES)).astype(np.float32),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "weight": rng.uniform(0.1, 1, BATCH).astype(np.float32),
    }


def args(optimizer: Any = None) -> tuple[Any, Any]:
    """(state, batch) of `train`'s step."""
    optimizer = optimizer or ADAM
    return (params(), optimizer.init(params())), batch()


ADAM = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))


def train(loss: Loss, optimizer: Any = ADAM) -> Callable[[Any, Any], Any]:
    """A step on `loss(params, batch) -> (loss, aux)`; hands back the gradients too."""

    def step(state: Any, batch: Any) -> Any:
        params, opt = state
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt = optimizer.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), (value, aux, grads)

    return step


def forward(p: Any, x: Any) -> Any:
    """Logits."""
    return jax.nn.gelu(x @ p["up"]) @ p["down"]


def errors(p: Any, b: Any) -> Any:
    """The squared error of each row."""
    return ((forward(p, b["x"]) - b["y"]) ** 2).sum(-1)


def mean(p: Any, b: Any) -> Any:
    """A plain mean, and nothing else."""
    return errors(p, b).mean(), None


def joined(p: Any, b: Any) -> Any:
    """Weights side by side in one product: shares of their gradient are split again."""
    both = jnp.concatenate([p["up"], 2 * p["up"][:, :4]], 1)
    return ((b["x"] @ both).reshape(BATCH, 2, 10).mean(1) ** 2).mean(), None


def solved(p: Any, b: Any) -> Any:
    """A linear system for each row, and a print of what it sums up to."""
    rows = forward(p, b["x"])
    systems = rows[:, :, None] * rows[:, None] + jnp.eye(CLASSES)
    loss = (jnp.linalg.solve(systems, b["y"][..., None]) ** 2).mean()
    jax.debug.print("{}", loss)
    return loss, None


def weighted(p: Any, b: Any) -> Any:
    """A ratio of two sums: its gradient needs the sum of the weights."""
    e = errors(p, b)
    return (e * b["weight"]).sum() / b["weight"].sum(), None


def with_aux(p: Any, b: Any) -> Any:
    """Outputs for each row, the largest and smallest, an accuracy, and a sorted copy."""
    out, e = forward(p, b["x"]), errors(p, b)
    hits = out.argmax(-1) == b["label"]
    aux = {"each": e, "most": e.max(), "least": e.min(), "all": hits.all(), "any": hits.any()}
    aux |= {"accuracy": hits.mean(), "worst": e.argmax(), "sorted": jnp.sort(e), "norm": e @ e}
    return e.mean(), aux


def classified(p: Any, b: Any) -> Any:
    """Picks each row's label."""
    logits = jax.nn.log_softmax(forward(p, b["x"]))
    return -jnp.take_along_axis(logits, b["label"][:, None], 1).mean(), None


def dropped(p: Any, b: Any) -> Any:
    """Random bits for the whole batch, in each way that they are drawn."""
    key = jax.random.key(3)
    h = jax.nn.gelu(b["x"] @ p["up"])
    h = jnp.where(jax.random.bernoulli(key, 0.7, h.shape), h / 0.7, 0)
    h = h + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), h.shape)
    rows = jax.vmap(jax.random.uniform)(jax.random.split(key, BATCH))
    first = jax.random.bits(key, (3, BATCH), jnp.uint8)[1]
    e = ((h @ p["down"] - b["y"]) ** 2).sum(-1) * rows
    return e.mean(), {"first": first, "place": jnp.arange(BATCH) * e}


def normalised(p: Any, b: Any) -> Any:
    """Statistics of the inputs over the batch: two sums, one after the other."""
    x = b["x"]
    x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
    return mean(p, {**b, "x": x})


def scanned(p: Any, b: Any) -> Any:
    """Checkpointed layers in a loop, a branch, and a loop whose carry starts from zeros."""

    @jax.checkpoint
    def layer(x: Any, w: Any) -> Any:
        return jax.lax.cond(w[0, 0] > 0, jnp.tanh, jnp.sin, x @ w), x.sum(-1)

    def walk(carry: Any, column: Any) -> Any:
        return 0.5 * carry + column[:, None] * p["up"][:, 0], None

    stack = jnp.stack([p["up"][:, :8], p["up"][:, 8:]])
    x, sums = jax.lax.scan(layer, b["x"], stack)
    total, _ = jax.lax.scan(walk, jnp.zeros_like(x), b["x"].T)
    x = jax.lax.fori_loop(0, 3, lambda i, x: x * 0.9 + i, x + total)
    return mean(p, {**b, "x": x})[0] + 0.01 * (sums**2).mean(), {"sums": sums}


def tied(p: Any, b: Any) -> Any:
    """A table that is looked up and multiplied by: its gradient has two parts."""
    x = p["down"].T[b["label"]]
    return ((jnp.tanh(x @ p["down"]) @ p["down"].T) ** 2).mean(), None


def batch_norm(p: Any, b: Any) -> Any:
    """Rows meet behind a matmul."""
    h = b["x"] @ p["up"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
    return ((h @ p["down"] - b["y"]) ** 2).mean(), None


def contrastive(p: Any, b: Any) -> Any:
    """Every row is compared with every other."""
    h = forward(p, b["x"])
    return -jnp.diag(jax.nn.log_softmax(h @ h.T)).mean(), None


def ranked(p: Any, b: Any) -> Any:
    """The loss is over sorted rows."""
    h = jnp.sort(b["x"] @ p["up"], axis=0)
    return ((h @ p["down"] - b["y"]) ** 2).mean(), None


def recurrent(p: Any, b: Any) -> Any:
    """One row after the other."""
    h, _ = jax.lax.scan(lambda h, x: (jnp.tanh(h + x @ p["up"]), None), jnp.zeros(16), b["x"])
    return (h @ p["down"]).sum(), None
