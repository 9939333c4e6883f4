"""GPT-3 shapes and training settings: the seven published sizes and a tiny one.

Hidden size, layers and heads follow Brown et al. 2020, "Language Models are Few-Shot Learners"
(arXiv:2005.14165), table 2.1, extended to 15B and 39B as in Zheng et al. 2022, "Alpa"
(arXiv:2201.12023), table 4, which also gives the GPU counts and the vocabulary of 51200.
"""

import dataclasses
from types import MappingProxyType
from typing import Literal

Layers = Literal["unrolled", "scanned"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, slots=True)
class GPT3Config:
    """Everything that fixes one training step; hashable, so it can key a cache.

    The defaults are those of the published runs: a global batch of 1024 sequences of 1024 tokens,
    float16 compute on float32 master weights.
    """

    name: str
    hidden: int
    num_layers: int
    num_heads: int
    num_devices: int = 1
    """Devices of the published run."""
    batch: int = 1024
    """Sequences in one global batch."""
    seq_len: int = 1024
    """Tokens in a sequence."""
    vocab: int = 51200
    mlp_ratio: int = 4
    tied_head: bool = True
    """Whether the output head shares the token embedding's weights."""
    layers: Layers = "unrolled"
    remat: bool = False
    """Whether each layer is recomputed in the backward pass (`jax.checkpoint`)."""
    dtype: Dtype = "float16"
    """Compute dtype; the parameters and Adam's moments are always float32."""
    dropout: float = 0.1
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    learning_rate: float = 2e-4
    """Peak of the warmup-cosine schedule."""
    warmup_steps: int = 500
    decay_steps: int = 100_000
    """Step at which the cosine reaches a tenth of the peak."""
    weight_decay: float = 0.1
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_eps: float = 1e-8
    init_loss_scale: float = 2.0**15
    """Loss scale of the first float16 step."""
    loss_scale_interval: int = 1000
    """Finite steps in a row after which the loss scale doubles."""

    def __post_init__(self) -> None:
        """Raises ValueError, in one sentence, where the fields contradict each other."""
        sizes = ("hidden", "num_layers", "num_heads", "batch", "seq_len", "vocab", "mlp_ratio")
        for field in sizes:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}.")
        if self.hidden % self.num_heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of {self.num_heads} heads.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {self.dropout}.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {self.dtype!r}.")
        if self.layers not in ("unrolled", "scanned"):
            raise ValueError(f"layers must be unrolled or scanned, not {self.layers!r}.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.num_heads

    @property
    def num_params(self) -> int:
        """Trainable parameters.

        A layer has 4 h² + 4 h in attention, 2 r h² + (r + 1) h in its MLP of ratio r and 4 h in
        two layer norms; around the layers are V h and S h in the embeddings, 2 h in the last norm
        and, if untied, another V h in the head.
        """
        h, r = self.hidden, self.mlp_ratio
        layer = (4 + 2 * r) * h**2 + (9 + r) * h
        vocab_tables = 1 if self.tied_head else 2
        return self.num_layers * layer + (vocab_tables * self.vocab + self.seq_len + 2) * h

    @property
    def model_flops_per_token(self) -> int:
        """Floating-point operations that one trained token needs, forward and backward.

        6 for each weight of a matrix product (2 forward, 4 backward) and 12 L S h for attention's
        two products, causal masking not deducted; recomputation does not count. With ratio 4 it is
        72 L h² (1 + S / 6h + V / 12Lh) of Narayanan et al. 2021 (arXiv:2104.04473), appendix,
        whose factor 96 counts a recomputed forward pass.
        """
        h, s = self.hidden, self.seq_len
        weights = self.num_layers * (4 + 2 * self.mlp_ratio) * h**2 + self.vocab * h
        return 6 * weights + 12 * self.num_layers * s * h

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one global batch."""
        return self.batch * self.seq_len

    def replace(self, **changes: object) -> "GPT3Config":
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


TINY = GPT3Config(
    name="tiny",
    hidden=96,
    num_layers=4,
    num_heads=12,
    num_devices=8,
    batch=24,
    seq_len=64,
    vocab=384,
    dtype="float32",
    learning_rate=3e-3,
    warmup_steps=20,
    decay_steps=2000,
)
"""Trains in seconds on 8 virtual CPU devices; its dims divide by 2, 3, 4, 6 and 8 (heads by 12)."""

CONFIGS = MappingProxyType(
    {
        config.name: config
        for config in (
            TINY,
            GPT3Config("350M", hidden=1024, num_layers=24, num_heads=16, num_devices=1),
            GPT3Config("760M", hidden=1536, num_layers=24, num_heads=16, num_devices=2),
            GPT3Config("1.3B", hidden=2048, num_layers=24, num_heads=32, num_devices=4),
            GPT3Config("2.6B", hidden=2560, num_layers=32, num_heads=32, num_devices=8),
            GPT3Config("6.7B", hidden=4096, num_layers=32, num_heads=32, num_devices=16),
            GPT3Config("15B", hidden=5120, num_layers=48, num_heads=40, num_devices=32),
            GPT3Config("39B", hidden=8192, num_layers=48, num_heads=64, num_devices=64),
        )
    }
)
"""The tiny configuration and the seven published ones, by name."""
