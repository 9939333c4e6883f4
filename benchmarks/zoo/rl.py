"""Reinforcement learning: planning, off-policy targets, a replay buffer."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.steps import Program
from benchmarks.zoo.training import normal, trained

ROWS = 8


def tree_search() -> Program:
    """MuZero's search with a learnt model: a while loop over trees that are scattered into."""
    import haiku as hk
    import mctx

    actions, width = 4, 16

    def net(x: Any) -> Any:
        h = hk.nets.MLP([32, width])(x)
        return hk.Linear(actions)(h), hk.Linear(1)(h)[..., 0], h

    model = hk.without_apply_rng(hk.transform(net))

    def init(key: Any) -> Any:
        a, b = jax.random.split(key)
        move = model.init(b, jnp.ones((1, width + actions)))
        return {"root": model.init(a, jnp.ones((1, width))), "move": move, "key": key}

    def step(state: Any, x: Any) -> Any:
        key, mine = jax.random.split(state["key"])
        logits, value, hidden = model.apply(state["root"], x)

        def move(params: Any, _key: Any, action: Any, hidden: Any) -> Any:
            seen = jnp.concatenate([hidden, jax.nn.one_hot(action, actions)], -1)
            logits, value, new = model.apply(params["move"], seen)
            reward = jnp.tanh(new.sum(-1))
            discount = jnp.full_like(reward, 0.9)
            out = mctx.RecurrentFnOutput(
                reward=reward, discount=discount, prior_logits=logits, value=value
            )
            return out, new

        policy = mctx.gumbel_muzero_policy(
            params={"move": state["move"]}, rng_key=mine, recurrent_fn=move,
            num_simulations=8,
            root=mctx.RootFnOutput(prior_logits=logits, value=value, embedding=hidden),
        )  # fmt: skip
        return {**state, "key": key}, {"weights": policy.action_weights, "action": policy.action}

    return Program("Monte Carlo tree search", "mctx", step, init, normal(ROWS, width))


def off_policy() -> Program:
    """Off-policy targets by Retrace."""
    import haiku as hk
    import rlax

    length, actions = 6, 4
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, actions])(x)))

    def batch(key: Any) -> Any:
        a, b, c = jax.random.split(key, 3)
        return {
            "x": jax.random.normal(a, (ROWS, length + 1, 8)),
            "a": jax.random.randint(b, (ROWS, length + 1), 0, actions),
            "r": jax.random.normal(c, (ROWS, length)),
        }

    def loss(params: Any, rows: Any, _key: Any) -> Any:
        q = net.apply(params, rows["x"])
        pi = jax.nn.softmax(jax.lax.stop_gradient(q))
        discount = jnp.full((ROWS, length), 0.9)
        error = jax.vmap(rlax.retrace, (0,) * 8 + (None,))(
            q[:, :-1], jax.lax.stop_gradient(q)[:, 1:], rows["a"][:, :-1], rows["a"][:, 1:],
            rows["r"], discount, pi[:, 1:], jnp.full((ROWS, length), 1 / actions), 0.9,
        )  # fmt: skip
        return (error**2).mean()

    return trained("Retrace", "rlax", lambda key: net.init(key, jnp.ones((1, 8))), loss, batch)


def replay() -> Program:
    """Temporal differences of what a prioritised replay buffer, part of the state, draws."""
    import flashbax

    buffer = flashbax.make_prioritised_flat_buffer(
        max_length=64, min_length=8, sample_batch_size=8, add_batch_size=4, priority_exponent=0.6
    )

    def init(key: Any) -> Any:
        seen = {"seen": jnp.zeros(4), "reward": jnp.zeros(())}
        return {"buffer": buffer.init(seen), "w": jax.random.normal(key, (4, 2)), "key": key}

    def step(state: Any, new: Any) -> Any:
        key, mine = jax.random.split(state["key"])
        kept = buffer.add(state["buffer"], new)
        drawn = buffer.sample(kept, mine)

        def loss_of(w: Any) -> Any:
            before, after = drawn.experience.first, drawn.experience.second
            goal = jax.lax.stop_gradient((after["seen"] @ w).max(-1))
            off = before["reward"] + 0.9 * goal - (before["seen"] @ w).max(-1)
            return (off**2).mean(), jnp.abs(off)

        (loss, off), grad = jax.value_and_grad(loss_of, has_aux=True)(state["w"])
        kept = buffer.set_priorities(kept, drawn.indices, off + 1e-3)
        return {"buffer": kept, "w": state["w"] - 0.1 * grad, "key": key}, {"loss": loss}

    def batch(key: Any) -> Any:
        return {"seen": jax.random.normal(key, (4, 4)), "reward": jnp.ones(4)}

    return Program("prioritised replay", "flashbax", step, init, batch)


PROGRAMS = [tree_search, off_policy, replay]
