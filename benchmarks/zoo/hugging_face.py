"""Hugging Face transformers and diffusers, the Flax models of their last versions with them."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.steps import Program
from benchmarks.zoo.training import tokens, trained

VOCAB, ROWS, LENGTH = 96, 8, 16


def _next_token(logits: Any, ids: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()


def gpt2() -> Program:
    """A language model with dropout."""
    from transformers import FlaxGPT2LMHeadModel, GPT2Config

    config = GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=32, n_layer=4, n_head=4)
    model = FlaxGPT2LMHeadModel(config, _do_init=False)

    def loss(params: Any, ids: Any, key: Any) -> Any:
        return _next_token(model(ids, params=params, dropout_rng=key, train=True).logits, ids)

    return trained("GPT-2", "transformers", lambda key: model.init_weights(key, (1, LENGTH)), loss,
                   tokens(ROWS, LENGTH, VOCAB))  # fmt: skip


def llama() -> Program:
    """A language model with rotary positions and gated layers."""
    from transformers import FlaxLlamaForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = FlaxLlamaForCausalLM(config, _do_init=False)

    def loss(params: Any, ids: Any, key: Any) -> Any:
        return _next_token(model(ids, params=params, dropout_rng=key, train=True).logits, ids)

    return trained("Llama", "transformers", lambda key: model.init_weights(key, (1, LENGTH)), loss,
                   tokens(ROWS, LENGTH, VOCAB))  # fmt: skip


def llama_decoding() -> Program:
    """One token after the other with a cache of keys and values; no gradients."""
    from transformers import FlaxLlamaForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = FlaxLlamaForCausalLM(config, _do_init=False)

    def init(key: Any) -> Any:
        params = model.init_weights(key, (1, LENGTH))
        cache = jax.tree.map(jnp.zeros_like, model.init_cache(ROWS, LENGTH))
        return {"params": params, "cache": cache, "at": jnp.zeros((ROWS, 1), jnp.int32)}

    def step(state: Any, ids: Any) -> Any:
        out = model(
            ids, params=state["params"], past_key_values=state["cache"],
            attention_mask=jnp.ones((ROWS, LENGTH), jnp.int32), position_ids=state["at"],
        )  # fmt: skip
        state = {**state, "cache": out.past_key_values, "at": state["at"] + 1}
        return state, {"next": out.logits[:, -1].argmax(-1), "logits": out.logits}

    return Program("Llama, decoding", "transformers", step, init, tokens(ROWS, 1, VOCAB))


def bart() -> Program:
    """Encoder and decoder."""
    from transformers import BartConfig, FlaxBartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCAB, d_model=32, max_position_embeddings=LENGTH, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    model = FlaxBartForConditionalGeneration(config, _do_init=False)

    def loss(params: Any, ids: Any, key: Any) -> Any:
        out = model(ids, decoder_input_ids=ids, params=params, dropout_rng=key, train=True)
        return _next_token(out.logits, ids)

    return trained("BART", "transformers", lambda key: model.init_weights(key, (1, LENGTH)), loss,
                   tokens(ROWS, LENGTH, VOCAB))  # fmt: skip


def bert_with_lora() -> Program:
    """A masked language model whose weights are frozen, with a low-rank part that is trained."""
    from transformers import BertConfig, FlaxBertForMaskedLM

    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = FlaxBertForMaskedLM(config, _do_init=False)
    opt = optax.adafactor(1e-2, min_dim_size_to_factor=4)

    def init(key: Any) -> Any:
        frozen = model.init_weights(key, (1, LENGTH))
        layers = frozen["bert"]["encoder"]["layer"]
        lora = {i: {"a": jax.random.normal(key, (32, 2)), "b": jnp.zeros((2, 32))} for i in layers}
        return {"frozen": frozen, "lora": lora, "opt": opt.init(lora), "key": key}

    def merged(frozen: Any, lora: Any) -> Any:
        new = jax.tree.map(lambda x: x, frozen)
        for i, ab in lora.items():
            query = new["bert"]["encoder"]["layer"][i]["attention"]["self"]["query"]
            query["kernel"] = query["kernel"] + ab["a"] @ ab["b"]
        return new

    def step(state: Any, ids: Any) -> Any:
        key, mine = jax.random.split(state["key"])

        def loss_of(lora: Any) -> Any:
            params = merged(state["frozen"], lora)
            out = model(ids, params=params, dropout_rng=mine, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(out.logits, ids).mean()

        value, grads = jax.value_and_grad(loss_of)(state["lora"])
        updates, moments = opt.update(grads, state["opt"], state["lora"])
        lora = optax.apply_updates(state["lora"], updates)
        return {**state, "lora": lora, "opt": moments, "key": key}, {"loss": value}

    return Program("BERT, LoRA", "transformers", step, init, tokens(ROWS, LENGTH, VOCAB))


def clip() -> Program:
    """Images and texts, contrasted over the batch."""
    from transformers import CLIPConfig, FlaxCLIPModel

    config = CLIPConfig.from_text_vision_configs(*_clip_parts())
    model = FlaxCLIPModel(config, _do_init=False, input_shape=((1, 8), (1, 16, 16, 3)))

    def loss(params: Any, batch: Any, key: Any) -> Any:
        out = model(batch["ids"], batch["images"], params=params, dropout_rng=key, train=True)
        rows = jnp.arange(ROWS)
        both = (out.logits_per_image, out.logits_per_text)
        return sum(optax.softmax_cross_entropy_with_integer_labels(x, rows).mean() for x in both)

    def batch(key: Any) -> Any:
        images = jax.random.normal(key, (ROWS, 3, 16, 16))
        return {"ids": jax.random.randint(key, (ROWS, 8), 0, VOCAB), "images": images}

    init = lambda key: model.init_weights(key, ((1, 8), (1, 16, 16, 3)))  # noqa: E731
    return trained("CLIP", "transformers", init, loss, batch)


def _clip_parts() -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPVisionConfig

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4}  # fmt: skip
    text = CLIPTextConfig(vocab_size=VOCAB, max_position_embeddings=8, eos_token_id=2, **size)
    return text, CLIPVisionConfig(image_size=16, patch_size=4, **size)


def stable_diffusion() -> Program:
    """The U-Net of Stable Diffusion, told a level of noise and a text."""
    from diffusers import FlaxUNet2DConditionModel

    unet = FlaxUNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip

    def loss(params: Any, batch: Any, key: Any) -> Any:
        noise = jax.random.normal(key, batch["x"].shape)
        level = jax.random.randint(key, (ROWS,), 0, 1000)
        share = (level / 1000)[:, None, None, None]
        noisy = jnp.sqrt(1 - share) * batch["x"] + jnp.sqrt(share) * noise
        out = unet.apply({"params": params}, noisy, level, batch["text"], train=True,
                         rngs={"dropout": key})  # fmt: skip
        return ((out.sample - noise) ** 2).mean()

    def batch(key: Any) -> Any:
        return {"x": jax.random.normal(key, (ROWS, 4, 8, 8)),
                "text": jax.random.normal(key, (ROWS, 6, 16))}  # fmt: skip

    return trained("Stable Diffusion's U-Net", "diffusers", unet.init_weights, loss, batch)


PROGRAMS = [gpt2, llama, llama_decoding, bart, bert_with_lora, clip, stable_diffusion]
