"""Dimensions that do not divide are padded where that pays, and arguments never are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import xshard
from benchmarks.attractive import attractive_plan
from tests.api.oracles import assert_same

WORDS, WIDTH = 4097, 64
ADAM = optax.adamw(1e-2, eps=1e-3)


def state_and_tokens() -> tuple[Any, Any]:
    embed, mix = jax.random.split(jax.random.key(0))
    params = {
        "embed": jax.random.normal(embed, (WORDS, WIDTH)) * WIDTH**-0.5,
        "mix": jax.random.normal(mix, (WIDTH, WIDTH)) * WIDTH**-0.5,
    }
    return (params, ADAM.init(params)), jax.random.randint(jax.random.key(1), (4, 8), 0, WORDS)


def logits_of(params: Any, tokens: Any) -> Any:
    return jnp.tanh(params["embed"][tokens] @ params["mix"]) @ params["embed"].T


def train_step(state: Any, tokens: Any) -> Any:
    """Returns logits too, which are kept in padded shards and returned in even ones."""

    def loss_of(params: Any) -> Any:
        logits = logits_of(params, tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return losses.mean(), logits

    params, adam = state
    (loss, logits), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, adam = ADAM.update(grads, adam, params)
    return (optax.apply_updates(params, updates), adam), (loss, logits.argmax(-1), logits)


@pytest.mark.parametrize("shape", [(8,), (3, 2)])
def test_a_vocabulary_that_does_not_divide_is_split(shape: tuple[int, ...], mesh: Any) -> None:
    """The batch of four does not divide either: words are all that can be split so often."""
    args, where = state_and_tokens(), mesh(*shape)
    plan = attractive_plan(train_step, args, where)
    step = assert_same(train_step, args, where, 10.0, plan=plan)
    [softmax] = [op for op in step.plan.ops if op.prim == "exp" and op.phase == "fwd"]
    assert softmax.operands[0][-1] != ()
    assert all(a.spec[0] == () for a in step.plan.arguments if a.shape[:1] == (WORDS,))
    audit = step.audit()
    assert audit.ok(), str(audit)


def test_logits_of_fifty_thousand_words_are_split_over_eight_gpus() -> None:
    """One sequence: words are what the last product can be split by, and each GPU has an eighth."""
    array = jax.ShapeDtypeStruct
    params = {"embed": array((50257, 768), jnp.float32), "mix": array((768, 768), jnp.float32)}
    args = params, array((1, 1024), jnp.int32)
    plan = xshard.plan(
        jax.grad(lambda p, t: jax.nn.logsumexp(logits_of(p, t), -1).mean()), *args,
        cluster="a100-sxm4-80gb:1x8", mesh=(8,), donate_argnums=(),
    )  # fmt: skip
    [softmax] = [op for op in plan.ops if op.prim == "exp" and op.phase == "fwd"]
    assert softmax.operands[0] == ((), (), (0,))


def test_a_constraint_of_the_users_need_not_divide(mesh: Any) -> None:
    """As in `jax.jit`: of many elements to a shard, or of few, where XLA alone decides."""

    words = NamedSharding(mesh(8), P(None, None, "x"))

    def step(params: Any, tokens: Any) -> Any:
        logits = jax.lax.with_sharding_constraint(logits_of(params, tokens), words)
        few = jax.lax.with_sharding_constraint(logits[..., :3], words)
        return logits.max(-1), few * 2

    (params, _), tokens = state_and_tokens()
    found = assert_same(step, (params, tokens), mesh(8))
    [pinned] = [op for op in found.plan.ops if op.prim == "sharding_constraint"][:1]
    assert pinned.results == (((), (), (0,)),)


def test_arguments_that_are_pinned_must_divide(mesh: Any) -> None:
    (params, _), tokens = state_and_tokens()
    step = xshard.auto_shard(logits_of, mesh(8), in_specs=({"embed": P("x"), "mix": None}, None))
    with pytest.raises(xshard.PinError, match=r"splits dimension 0 of 4097 elements over 8 shards"):
        step(params, tokens)
