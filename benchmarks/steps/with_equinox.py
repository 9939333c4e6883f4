"""Steps of equinox: models that are pytrees, some of whose leaves are no arrays."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from benchmarks.steps import Program

ROWS, WIDTH = 16, 8
OPTIMIZER = optax.adabelief(1e-2, eps=1e-3)


class Denoiser(eqx.Module):
    """A mixer of a convolution and attention, told how much noise there is."""

    embed: eqx.nn.MLP
    mix: eqx.nn.Conv1d
    attend: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        a, b, c, d = jax.random.split(key, 4)
        self.embed = eqx.nn.MLP(1, WIDTH, 16, 2, jax.nn.gelu, key=a)
        self.mix = eqx.nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2, key=b)
        self.attend = eqx.nn.MultiheadAttention(2, WIDTH, key=c)
        self.norm, self.out = eqx.nn.LayerNorm(WIDTH), eqx.nn.Linear(WIDTH, WIDTH, key=d)

    def __call__(self, x: Any, level: Any) -> Any:
        h = self.mix((x + self.embed(level[None])).T).T
        h = jax.vmap(self.norm)(h)
        return jax.vmap(self.out)(h + self.attend(h, h, h))


def diffusion() -> Program:
    """Denoising at random levels of noise, per example under `vmap`."""
    static = eqx.partition(Denoiser(jax.random.key(0)), eqx.is_array)[1]

    def init(key: Any) -> Any:
        params = eqx.filter(Denoiser(key), eqx.is_array)
        return {"params": params, "opt": OPTIMIZER.init(params), "key": key}

    def step(state: Any, x: Any) -> Any:
        key, a, b = jax.random.split(state["key"], 3)
        level, noise = jax.random.uniform(a, (ROWS,)), jax.random.normal(b, x.shape)

        @eqx.filter_value_and_grad
        def loss_of(params: Any) -> Any:
            net = eqx.combine(params, static)
            noisy = jnp.sqrt(1 - level)[:, None, None] * x + jnp.sqrt(level)[:, None, None] * noise
            return ((jax.vmap(net)(noisy, level) - noise) ** 2).mean()

        loss, grads = loss_of(state["params"])
        updates, opt = OPTIMIZER.update(grads, state["opt"])
        params = eqx.apply_updates(state["params"], updates)
        return {"params": params, "opt": opt, "key": key}, loss

    def batch(key: Any) -> Any:
        return jax.random.normal(key, (ROWS, 6, WIDTH))

    return Program("denoising diffusion", "equinox", step, init, batch)


def policy() -> Program:
    """Clipped policy gradients with advantages from a reverse scan."""
    actions = 4

    def nets(key: Any) -> Any:
        a, b = jax.random.split(key)
        return (
            eqx.nn.MLP(WIDTH, actions, 16, 1, jnp.tanh, key=a),
            eqx.nn.MLP(WIDTH, "scalar", 16, 1, jnp.tanh, key=b),
        )

    static = eqx.partition(nets(jax.random.key(0)), eqx.is_array)[1]

    def init(key: Any) -> Any:
        params = eqx.filter(nets(key), eqx.is_array)
        return {"params": params, "opt": OPTIMIZER.init(params)}

    def step(state: Any, batch: Any) -> Any:
        def values_of(params: Any) -> Any:
            actor, judge = eqx.combine(params, static)
            logits = jax.vmap(jax.vmap(actor))(batch["x"])
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["action"][..., None], -1)
            return chosen[..., 0], jax.vmap(jax.vmap(judge))(batch["x"]), logits

        old, before, _ = jax.lax.stop_gradient(values_of(state["params"]))
        delta = batch["reward"][:, :-1] + 0.9 * before[:, 1:] - before[:, :-1]
        gain = jax.lax.scan(lambda c, d: (d + 0.8 * c,) * 2, delta[:, 0] * 0, delta.T, reverse=True)
        gain = gain[1].T

        def loss_of(params: Any) -> Any:
            new, after, logits = values_of(params)
            ratio = jnp.exp(new - old)[:, :-1]
            kept = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain).mean()
            miss = ((after[:, :-1] - before[:, :-1] - gain) ** 2).mean()
            spread = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()
            return 0.5 * miss - kept - 0.01 * spread

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, opt = OPTIMIZER.update(grads, state["opt"])
        return {"params": eqx.apply_updates(state["params"], updates), "opt": opt}, loss

    def batch(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        reward, action = (
            jax.random.normal(b, (ROWS, 6)),
            jax.random.randint(c, (ROWS, 6), 0, actions),
        )
        return {"x": jax.random.normal(a, (ROWS, 6, WIDTH)), "reward": reward, "action": action}

    return Program("policy gradients", "equinox", step, init, batch)


PROGRAMS = [diffusion(), policy()]
