"""The train step on one device: it learns, and its variants compute the same thing."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from models.gpt3.config import GPT3Config
from models.gpt3.data import Text
from models.gpt3.layers import Block
from models.gpt3.loss import cross_entropy, init_loss_scale, next_loss_scale
from models.gpt3.model import init_params, logits, stack_layers
from models.gpt3.step import Steps, batch_avals, make_train_step
from tests.models.helpers import SMALL, assert_trees_close, batches
from tests.models.linen_block import LinenBlock, make_linen_step


@pytest.fixture(scope="module")
def text() -> Text:
    return Text.read()


def losses(steps: Steps, config: GPT3Config, text: Text, count: int) -> list[float]:
    train, state = jax.jit(steps.train), jax.jit(steps.init)(jax.random.key(0))
    found = []
    for batch in batches(text, config, count):
        state, metrics = train(state, batch)
        found.append(float(metrics["loss"]))
    return found


LEARNERS = [("unrolled", "float32"), ("scanned", "bfloat16"), ("scanned", "float16")]


@pytest.mark.parametrize(("layers", "dtype"), LEARNERS)
def test_loss_falls(layers: str, dtype: str, text: Text) -> None:
    config = SMALL.replace(layers=layers, dtype=dtype)
    found = losses(make_train_step(config), config, text, 40)
    assert found[0] == pytest.approx(np.log(config.vocab), abs=0.3)
    assert np.mean(found[-5:]) < found[0] - 1.5


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_loss_of_the_linen_twin_falls(layers: str, text: Text) -> None:
    config = SMALL.replace(layers=layers)
    found = losses(make_linen_step(config), config, text, 40)
    assert np.mean(found[-5:]) < found[0] - 1.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("make", [make_train_step, make_linen_step])
def test_state_keeps_its_avals(make: Callable[[GPT3Config], Steps], dtype: str) -> None:
    """Dtypes and weak types too, so that the second step is not another one to trace."""
    config = SMALL.replace(dtype=dtype)
    state = jax.make_jaxpr(make(config).init)(jax.random.key(0)).out_avals
    avals = jax.eval_shape(make(config).init, jax.random.key(0))
    new = jax.make_jaxpr(lambda *args: make(config).train(*args)[0])(avals, batch_avals(config))
    assert new.out_avals == state


def test_scanned_layers_equal_unrolled_ones(text: Text) -> None:
    """Dropout on; the same key gives the same parameters, loss, gradients and next state."""
    unrolled, scanned = (
        make_train_step(SMALL.replace(layers=layers)) for layers in ("unrolled", "scanned")
    )
    state, stacked = (jax.jit(steps.init)(jax.random.key(1)) for steps in (unrolled, scanned))
    assert_trees_close(stack_layers(state["params"]), stacked["params"], 1e-6, 0)
    train, train_stacked = jax.jit(unrolled.train), jax.jit(scanned.train)
    for batch in batches(text, SMALL, 3):
        state, metrics = train(state, batch)
        stacked, others = train_stacked(stacked, batch)
        assert_trees_close(metrics, others, 1e-5, 0)
    assert_trees_close(stack_layers(state["params"]), stacked["params"], 1e-3, 1e-5)


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_remat_changes_no_gradient(layers: str, text: Text) -> None:
    kept, rematted = (SMALL.replace(layers=layers, remat=remat) for remat in (False, True))
    params = init_params(kept, jax.random.key(2))
    batch, key = batches(text, kept, 1)[0], jax.random.key(3)

    def loss(config: GPT3Config, params: dict) -> jax.Array:
        return cross_entropy(logits(config, params, batch["inputs"], key), batch["targets"])

    first, second = (
        jax.jit(jax.grad(partial(loss, config)))(params) for config in (kept, rematted)
    )
    assert_trees_close(first, second, 1e-4, 1e-6)


def test_untied_head_is_a_parameter_of_its_own(text: Text) -> None:
    config = SMALL.replace(tied_head=False)
    params = init_params(config, jax.random.key(0))
    tokens = batches(text, config, 1)[0]["inputs"]
    zeroed = params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
    assert logits(config, params, tokens).shape == (config.batch, config.seq_len, config.vocab)
    assert not logits(config, zeroed, tokens).any()


def test_attention_sees_no_later_token(text: Text) -> None:
    params = init_params(SMALL, jax.random.key(0))
    tokens = batches(text, SMALL, 1)[0]["inputs"]
    changed = tokens.copy()
    changed[:, 20:] = 7
    run = jax.jit(partial(logits, SMALL))
    before, after = run(params, tokens), run(params, changed)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert not np.allclose(before[:, 20:], after[:, 20:])


def test_linen_block_computes_what_the_nnx_block_does() -> None:
    params = init_params(SMALL, jax.random.key(0))["layer_0"]
    x = jax.random.normal(jax.random.key(1), (2, SMALL.seq_len, SMALL.hidden))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Block(SMALL, rngs=nnx.Rngs(0))))
    ours = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))(params, x)
    theirs = jax.jit(LinenBlock(SMALL).apply)({"params": params}, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_optax(smoothing: float) -> None:
    scores = 5 * jax.random.normal(jax.random.key(0), (2, 3, 11))
    targets = jax.random.randint(jax.random.key(1), (2, 3), 0, 11)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 11), smoothing)
    expected = optax.softmax_cross_entropy(scores, labels).mean()
    np.testing.assert_allclose(cross_entropy(scores, targets, smoothing), expected, rtol=1e-6)


def test_overflow_skips_the_update_and_halves_the_scale(text: Text) -> None:
    config = SMALL.replace(layers="scanned", dtype="float16")
    steps = make_train_step(config)
    state = jax.jit(steps.init)(jax.random.key(0))
    state["loss_scale"]["scale"] = jnp.float32(2.0**40)
    new, metrics = jax.jit(steps.train)(state, batches(text, config, 1)[0])
    assert metrics["skipped"]
    assert_trees_close(new["params"], state["params"], 0, 0)
    assert_trees_close(new["adam"], state["adam"], 0, 0)
    assert int(new["step"]) == 1
    assert float(new["loss_scale"]["scale"]) == 2.0**24


LOSS_SCALES = [
    # good steps, finite, factor, good steps then
    (0, True, 1.0, 1),
    (9, True, 2.0, 0),
    (9, False, 0.5, 0),
]


@pytest.mark.parametrize(("good_steps", "finite", "factor", "then"), LOSS_SCALES)
def test_loss_scale(good_steps: int, finite: bool, factor: float, then: int) -> None:
    config = SMALL.replace(loss_scale_interval=10)
    state = init_loss_scale(config)
    state["good_steps"] = jnp.int32(good_steps)
    new = next_loss_scale(config, state, jnp.bool_(finite))
    assert float(new["scale"]) == config.init_loss_scale * factor
    assert int(new["good_steps"]) == then
