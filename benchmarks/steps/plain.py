"""Steps of plain JAX: adapters, a graph, a state space, experts, a critic, decoding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks.steps import Program

WIDTH, LENGTH, ROWS = 16, 8, 16
ADAM = optax.adam(1e-2, eps=1e-3)


def _weight(key: Any, *shape: int) -> Any:
    return jax.random.normal(key, shape) * shape[-2] ** -0.5


def _trained(key: Any, params: Any, **more: Any) -> Any:
    return {"params": params, "adam": ADAM.init(params), "key": key, **more}


def _updated(state: Any, grads: Any, **more: Any) -> Any:
    updates, adam = ADAM.update(grads, state["adam"])
    params = optax.apply_updates(state["params"], updates)
    return {**state, "params": params, "adam": adam, **more}


def _rows(key: Any) -> Any:
    return jax.random.normal(key, (ROWS, LENGTH, WIDTH))


def low_rank_adapters() -> Program:
    """Frozen weights in bfloat16, trained adapters of rank 4 over a scan of layers."""

    def init(key: Any) -> Any:
        frozen, a = jax.random.split(key)
        weights = _weight(frozen, 3, WIDTH, WIDTH).astype(jnp.bfloat16)
        adapters = {"a": _weight(a, 3, WIDTH, 4), "b": jnp.full((3, 4, WIDTH), 0.01)}
        return _trained(key, adapters, frozen=weights)

    def step(state: Any, x: Any) -> Any:
        def layer(h: Any, w: Any) -> Any:
            frozen, adapter = w
            return jnp.tanh(h @ frozen.astype(h.dtype) + h @ adapter["a"] @ adapter["b"]), None

        def loss_of(adapters: Any) -> Any:
            h, _ = lax.scan(jax.checkpoint(layer), x, (state["frozen"], adapters))
            return ((h - x) ** 2).mean()

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        return _updated(state, grads), loss

    return Program("low-rank adapters, frozen weights", "JAX", step, init, _rows)


def graph_network() -> Program:
    """Messages along edges, summed, averaged and maximised at their receivers."""
    nodes, edges = 24, 64

    def init(key: Any) -> Any:
        a, b = jax.random.split(key)
        return _trained(
            key, {"edge": _weight(a, 2 * WIDTH, WIDTH), "node": _weight(b, 3 * WIDTH, 4)}
        )

    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            sent, got = batch["x"][batch["from"]], batch["x"][batch["to"]]
            message = jax.nn.silu(jnp.concatenate([sent, got], -1) @ params["edge"])
            total = jax.ops.segment_sum(message, batch["to"], nodes)
            count = jax.ops.segment_sum(jnp.ones(edges), batch["to"], nodes)
            most = jax.ops.segment_max(message, batch["to"], nodes)
            most = jnp.where(count[:, None] > 0, most, 0.0)
            mean = total / jnp.maximum(count, 1)[:, None]
            logits = jnp.concatenate([total, mean, most], -1) @ params["node"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        return _updated(state, grads), loss

    def batch(key: Any) -> Any:
        x, a, b, y = jax.random.split(key, 4)
        pick = jax.random.randint
        return {"x": jax.random.normal(x, (nodes, WIDTH)), "y": pick(y, (nodes,), 0, 4),
                "from": pick(a, (edges,), 0, nodes), "to": pick(b, (edges,), 0, nodes)}  # fmt: skip

    return Program("graph network, scatter", "JAX", step, init, batch)


def state_space() -> Program:
    """A diagonal linear recurrence by `associative_scan`, gated."""

    def init(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        params = {"decay": jnp.linspace(-2.0, 2.0, WIDTH), "in": _weight(a, WIDTH, WIDTH),
                  "gate": _weight(b, WIDTH, WIDTH), "out": _weight(c, WIDTH, WIDTH)}  # fmt: skip
        return _trained(key, params)

    def step(state: Any, x: Any) -> Any:
        def loss_of(params: Any) -> Any:
            decay = jnp.broadcast_to(jax.nn.sigmoid(params["decay"]), x.shape)

            def join(a: Any, b: Any) -> Any:
                return a[0] * b[0], b[0] * a[1] + b[1]

            _, h = lax.associative_scan(join, (decay, x @ params["in"]), axis=1)
            y = h * jax.nn.silu(x @ params["gate"]) @ params["out"]
            return ((y[:, :-1] - x[:, 1:]) ** 2).mean()

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        return _updated(state, grads), loss

    return Program("state space, associative scan", "JAX", step, init, _rows)


def experts() -> Program:
    """Top-2 routing with a capacity, dispatch by scatter, and a load-balancing loss."""
    count, capacity = 4, 80

    def init(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        params = {"router": _weight(a, WIDTH, count), "up": _weight(b, count, WIDTH, 2 * WIDTH),
                  "down": _weight(c, count, 2 * WIDTH, WIDTH)}  # fmt: skip
        return _trained(key, params)

    def step(state: Any, batch: Any) -> Any:
        tokens = batch.reshape(-1, WIDTH)

        def loss_of(params: Any) -> Any:
            share = jax.nn.softmax(tokens @ params["router"])
            weight, expert = lax.top_k(share, 2)
            chosen = jax.nn.one_hot(expert.reshape(-1), count, dtype=jnp.int32)
            place = (jnp.cumsum(chosen, 0) * chosen).max(-1) - 1
            slot = expert.reshape(-1) * capacity + jnp.where(
                place < capacity, place, count * capacity
            )
            sent = (
                jnp.zeros((count * capacity, WIDTH))
                .at[slot]
                .add(jnp.repeat(tokens, 2, 0), mode="drop")
            )
            hidden = jax.nn.gelu(
                jnp.einsum("ecd,edf->ecf", sent.reshape(count, capacity, WIDTH), params["up"])
            )
            back = jnp.einsum("ecf,efd->ecd", hidden, params["down"]).reshape(-1, WIDTH)
            mixed = back.at[slot].get(mode="fill", fill_value=0).reshape(-1, 2, WIDTH)
            y = (mixed * weight[..., None]).sum(1)
            balance = count * (share.mean(0) * chosen.mean(0)).sum()
            return ((y - tokens[:, ::-1]) ** 2).mean() + 0.01 * balance

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        return _updated(state, grads), loss

    return Program("mixture of experts, top 2", "JAX", step, init, _rows)


def critic() -> Program:
    """A critic with a gradient penalty (second derivatives) and two losses."""

    def init(key: Any) -> Any:
        a, b = jax.random.split(key)
        return _trained(key, {"up": _weight(a, WIDTH, 32), "down": _weight(b, 32, 1)})

    def step(state: Any, x: Any) -> Any:
        key, noise = jax.random.split(state["key"])
        real = x[:, 0]
        fake = jax.random.normal(noise, real.shape)

        def score(params: Any, row: Any) -> Any:
            return (jnp.tanh(row @ params["up"]) @ params["down"])[0]

        def loss_of(params: Any) -> Any:
            scores = jax.vmap(score, (None, 0))
            slopes = jax.vmap(jax.grad(score, 1), (None, 0))(params, (real + fake) / 2)
            penalty = ((jnp.linalg.norm(slopes, axis=-1) - 1) ** 2).mean()
            gap = scores(params, fake).mean() - scores(params, real).mean()
            return gap + 10 * penalty, (gap, penalty)

        (_, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        return _updated(state, grads, key=key), losses

    return Program("critic with a gradient penalty", "JAX", step, init, _rows)


def fourier_operator() -> Program:
    """Complex weights on the low frequencies of two-dimensional transforms."""
    side, width, modes = 16, 8, 4

    def init(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        shape = (2, width, width, modes, modes)
        weights = jax.random.normal(b, shape) + 1j * jax.random.normal(c, shape)
        return {"in": _weight(a, 3, width), "weights": 0.1 * weights, "out": _weight(c, width, 1)}

    def step(params: Any, fields: Any) -> Any:
        def loss_of(params: Any) -> Any:
            at = jnp.linspace(0, 1, side)
            grid = jnp.broadcast_to(jnp.stack(jnp.meshgrid(at, at), -1), (4, side, side, 2))
            x = jnp.concatenate([fields[..., None], grid], -1) @ params["in"]
            for weights in params["weights"]:
                seen = jnp.fft.rfft2(x, axes=(1, 2))
                low = jnp.einsum("bxyi,ioxy->bxyo", seen[:, :modes, :modes], weights)
                kept = jnp.zeros_like(seen).at[:, :modes, :modes].set(low)
                x = x + jax.nn.gelu(jnp.fft.irfft2(kept, (side, side), axes=(1, 2)))
            return (((x @ params["out"])[..., 0] - fields) ** 2).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * jnp.conj(g), params, grads), loss

    def batch(key: Any) -> Any:
        return jax.random.normal(key, (4, side, side))

    return Program("Fourier operator", "JAX", step, init, batch)


def decoder() -> Program:
    """Greedy decoding of one token with a cache of keys and values; nothing is trained."""
    slots, vocabulary = 8, 32

    def init(key: Any) -> Any:
        e, q = jax.random.split(key)
        cache = jnp.zeros((2, ROWS, slots, WIDTH))
        weights = {"embed": _weight(e, vocabulary, WIDTH), "qkv": _weight(q, WIDTH, 3 * WIDTH)}
        return {"params": weights, "cache": cache, "at": jnp.int32(0)}

    def step(state: Any, token: Any) -> Any:
        params, at = state["params"], state["at"]
        q, k, v = jnp.split(params["embed"][token] @ params["qkv"], 3, -1)
        new = jnp.stack([k, v])[:, :, None]
        cache = lax.dynamic_update_slice(state["cache"], new, (0, 0, at, 0))
        scores = jnp.einsum("bd,bsd->bs", q, cache[0]) * WIDTH**-0.5
        weights = jax.nn.softmax(jnp.where(jnp.arange(slots) <= at, scores, -jnp.inf))
        logits = jnp.einsum("bs,bsd->bd", weights, cache[1]) @ params["embed"].T
        return {**state, "cache": cache, "at": at + 1}, (logits.argmax(-1), logits)

    def batch(key: Any) -> Any:
        return jax.random.randint(key, (ROWS,), 0, vocabulary)

    return Program("decoding with a cache", "JAX", step, init, batch)


PROGRAMS = [
    low_rank_adapters(), graph_network(), state_space(), experts(), critic(), decoder(),
    fourier_operator(),
]  # fmt: skip
