"""The published sizes: parameters, operations, and tracing them without allocating anything."""

import math
import re

import jax
import pytest

from models.gpt3.config import CONFIGS, TINY, GPT3Config
from models.gpt3.step import batch_avals, make_train_step, state_avals

PUBLISHED = {"350M": 1, "760M": 2, "1.3B": 4, "2.6B": 8, "6.7B": 16, "15B": 32, "39B": 64}
UNITS = {"M": 1e6, "B": 1e9}


def test_every_published_size_is_there_with_its_devices() -> None:
    devices = {name: c.num_devices for name, c in CONFIGS.items() if name != "tiny"}
    assert devices == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    assert CONFIGS[name].num_params == pytest.approx(float(name[:-1]) * UNITS[name[-1]], rel=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_share_batch_sequence_vocabulary_and_dtype(name: str) -> None:
    c = CONFIGS[name]
    assert (c.batch, c.seq_len, c.vocab, c.dtype) == (1024, 1024, 51200, "float16")


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
@pytest.mark.parametrize("name", ["tiny", "1.3B"])
def test_formula_counts_the_arrays(name: str, layers: str, tied_head: bool) -> None:
    config = CONFIGS[name].replace(layers=layers, tied_head=tied_head)
    leaves = jax.tree.leaves(state_avals(config)["params"])
    assert sum(math.prod(leaf.shape) for leaf in leaves) == config.num_params
    assert {str(leaf.dtype) for leaf in leaves} == {"float32"}


@pytest.mark.parametrize("name", ["tiny", *PUBLISHED])
def test_model_flops_are_those_of_megatron(name: str) -> None:
    """Narayanan et al. 2021, appendix, without the recomputed forward pass."""
    c = CONFIGS[name]
    layers = 72 * c.num_layers * c.hidden**2
    flops = layers * (1 + c.seq_len / (6 * c.hidden) + c.vocab / (12 * c.num_layers * c.hidden))
    assert c.model_flops_per_token == pytest.approx(flops, rel=1e-12)


def test_tiny_divides_over_every_tested_mesh() -> None:
    dims = (TINY.batch, TINY.hidden, TINY.mlp_ratio * TINY.hidden, TINY.vocab)
    assert all(dim % way == 0 for dim in dims for way in (2, 3, 4, 6, 8))
    assert all(TINY.num_heads % way == 0 for way in (2, 3, 4, 6))


def test_largest_step_is_traced_without_an_array() -> None:
    config = CONFIGS["39B"]
    before = len(jax.live_arrays())
    jaxpr = jax.make_jaxpr(make_train_step(config).train)(state_avals(config), batch_avals(config))
    assert len(jax.live_arrays()) == before
    assert len(jaxpr.out_avals) == len(jax.tree.leaves(state_avals(config))) + 5


BAD = [
    ({"hidden": 100}, "hidden 100 is not a multiple of 12 heads."),
    ({"batch": 0}, "batch must be at least 1, not 0."),
    ({"dropout": 1.0}, "dropout must lie in [0, 1), not 1.0."),
    ({"dtype": "int8"}, "dtype must be float32, bfloat16 or float16, not 'int8'."),
    ({"layers": "looped"}, "layers must be unrolled or scanned, not 'looped'."),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_contradicting_fields_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TINY.replace(**changes)


def test_configs_are_hashable() -> None:
    assert len(set(CONFIGS.values())) == 8
    assert isinstance(TINY, GPT3Config)
