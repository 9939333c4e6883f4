"""Images: equimo, jax-resnet, keras."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.steps import Program
from benchmarks.zoo.training import trained

ROWS, CLASSES = 8, 10


def _images(side: int, *, first: bool = False) -> Any:
    shape = (ROWS, 3, side, side) if first else (ROWS, side, side, 3)

    def batch(key: Any) -> Any:
        return {"x": jax.random.normal(key, shape),
                "y": jax.random.randint(key, (ROWS,), 0, CLASSES)}  # fmt: skip

    return batch


def resnet() -> Program:
    """Batch norm, whose statistics are state, and an average of the weights (EMA)."""
    from jax_resnet import ResNet18

    model = ResNet18(n_classes=CLASSES)
    opt = optax.sgd(0.1, momentum=0.9, nesterov=True)

    def init(key: Any) -> Any:
        state = model.init(key, jnp.ones((1, 32, 32, 3)))
        params = state["params"]
        return {**state, "ema": params, "opt": opt.init(params)}

    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            logits, new = model.apply(variables, batch["x"], mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
            return loss, (new["batch_stats"], logits)

        (loss, (stats, logits)), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, moments = opt.update(grads, state["opt"])
        params = optax.apply_updates(state["params"], updates)
        ema = optax.incremental_update(params, state["ema"], 0.01)
        right = (logits.argmax(-1) == batch["y"]).mean()
        new = {"params": params, "batch_stats": stats, "ema": ema, "opt": moments}
        return new, {"loss": loss, "right": right}

    return Program("ResNet-18, EMA", "jax-resnet", step, init, _images(32))


def vit() -> Program:
    """A vision transformer under `vmap`, with stochastic depth."""
    import equinox as eqx
    from equimo.models import VisionTransformer

    def make(key: Any) -> Any:
        return VisionTransformer(
            img_size=16, in_channels=3, dim=32, patch_size=4, num_heads=[4], depths=[3],
            num_classes=CLASSES, drop_path_rate=0.1, key=key,
        )  # fmt: skip

    static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)[1]

    def loss(params: Any, batch: Any, key: Any) -> Any:
        model = eqx.combine(params, static)
        keys = jax.random.split(key, ROWS)
        logits = jax.vmap(model)(batch["x"], key=keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    init = lambda key: eqx.filter(make(key), eqx.is_inexact_array)  # noqa: E731
    return trained("ViT", "equimo", init, loss, _images(16, first=True))


def keras_mobilenet() -> Program:
    """Keras on JAX, stateless: depthwise convolutions and batch norm."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=CLASSES
    )
    optimizer = keras.optimizers.AdamW(1e-3, epsilon=1e-3)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()

    def init(_key: Any) -> Any:
        return tuple(
            [jnp.asarray(v.value) for v in row]
            for row in (model.trainable_variables, model.non_trainable_variables,
                        optimizer.variables)
        )  # fmt: skip

    def step(state: Any, batch: Any) -> Any:
        trainable, rest, moments = state

        def loss_of(trainable: Any) -> Any:
            y, new = model.stateless_call(trainable, rest, batch["x"], training=True)
            return loss_fn(batch["y"], y), new

        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        trainable, moments = optimizer.stateless_apply(moments, grads, trainable)
        return (trainable, rest, moments), {"loss": loss}

    return Program("MobileNetV2", "keras", step, init, _images(32))


PROGRAMS = [resnet, vit, keras_mobilenet]
