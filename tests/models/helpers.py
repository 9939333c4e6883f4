"""What the tests of GPT-3 share."""

import jax
import numpy as np

from models.gpt3.config import TINY, GPT3Config
from models.gpt3.data import Text

SMALL = TINY.replace(num_layers=2, hidden=48, num_heads=4, batch=8, seq_len=32, warmup_steps=2)
"""Compiles in seconds."""

jit = jax.jit


def batches(text: Text, config: GPT3Config, steps: int, first: int = 0) -> list[dict]:
    """The batches of some steps, as numpy arrays."""
    return [text.train.batch(i, config.batch, config.seq_len) for i in range(first, first + steps)]


def assert_trees_close(actual: object, expected: object, rtol: float, atol: float) -> None:
    """Equal structure, and leaves within the tolerance; the message names the leaf."""
    paths, treedef = jax.tree.flatten_with_path(actual)
    leaves, expected_treedef = jax.tree.flatten(expected)
    assert treedef == expected_treedef
    for (path, leaf), other in zip(paths, leaves, strict=True):
        np.testing.assert_allclose(
            leaf, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
        )
