"""Tiny random models of the families of causal LMs that transformers has, saved as checkpoints with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 300
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
# Attention that goes by masks alone: prompts that begin alike are one sequence, in training and in decoding.
ATTENTIVE: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "mistral": {},
    "gemma": {},
    "gemma3_text": {},
    "phi3": {},
    "olmo2": {},
    "smollm3": {},
    "glm4": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
# They scale or cap their scores.
SCALING: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "gemma2": {"final_logit_softcapping": 3.0},
}
# States that go by the order of the tokens (Mamba, convolutions, linear attention), or positions by the mask's distances (ALiBi).
BY_ORDER: dict[str, dict[str, Any]] = {
    "qwen3_next": _EXPERTS | _DELTA | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": _DELTA,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "lm_head_multiplier": 0.25,
    },
    "bloom": {"n_layer": 2, "n_head": 4},
}
# Encoders' kin, and a mask that is learnt of all tokens.
LOOKING_AHEAD: dict[str, dict[str, Any]] = {"bert": {}, "roberta": {}, "doge": {}}
# Layers that see the last 20 tokens alone.
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral of 20": {"sliding_window": 20},
    "gpt_oss of 20": ATTENTIVE["gpt_oss"] | {"sliding_window": 20},
    "gemma3_text of 20": {"sliding_window": 20},
}
# Its own loss does not know that its embedding has grown, so that it cannot be trained here.
CHUNKED: dict[str, dict[str, Any]] = {"llama4_text of 20": {"attention_chunk_size": 20, "moe_layers": []}}
# Positions are counted from the padding token's number.
BY_PADDING: dict[str, dict[str, Any]] = {
    "roberta as a decoder": {"is_decoder": True},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
}
FAMILIES = ATTENTIVE | SCALING | BY_ORDER
_NO_WINDOW: dict[str, dict[str, Any]] = {"qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 16}}
_OTHERS = LOOKING_AHEAD | WINDOWED | CHUNKED | BY_PADDING | _NO_WINDOW


def tiny_model(family: str, seed: int = 0) -> Any:
    """A model of the family with random weights of a size that tells tokens apart."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    configuration = CONFIG_MAPPING[family.split()[0]](**(_BASE | (FAMILIES | _OTHERS)[family]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(configuration).eval()


def write_checkpoint(family: str, path: Path, seed: int = 0) -> Path:
    """A checkpoint of such a model, with a tokenizer of single bytes."""
    from transformers import PreTrainedTokenizerFast

    from models.language.tokenizer import BYTES, train_tokenizer

    tiny_model(family, seed).save_pretrained(path)
    own = train_tokenizer((), size=BYTES)
    PreTrainedTokenizerFast(tokenizer_object=own._tokenizer, bos_token="!", eos_token="!").save_pretrained(path)
    return path
