"""Tiny models of every kind, with weights random enough that each layer matters."""

import operator
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

VOCAB = 256
WIDTH = 128
LAYERS = 4

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WINDOW = {"sliding_window": 64, "query_pre_attn_scalar": 32}
_EXPERTS = {"num_experts_per_tok": 2}
_GPT2 = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 2048,
    "vocab_size": VOCAB,
}

# name → model type and what its configuration holds besides
ARCHITECTURES = {
    "Llama": ("llama", _COMMON),
    "Mistral": ("mistral", _COMMON | {"sliding_window": None}),
    "Qwen2": ("qwen2", _COMMON),
    "Qwen3": ("qwen3", _COMMON),
    "Gemma 2": ("gemma2", _COMMON | _WINDOW | {"tie_word_embeddings": True}),
    "Gemma 3": ("gemma3_text", _COMMON | _WINDOW | {"tie_word_embeddings": True}),
    "Phi": ("phi", _COMMON | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "Phi-3": ("phi3", _COMMON),
    "GPT-2": ("gpt2", _GPT2),
    "OPT": ("opt", _COMMON | {"num_key_value_heads": 4, "ffn_dim": 192, "word_embed_proj_dim": WIDTH}),
    "GPT-NeoX": ("gpt_neox", _COMMON | {"num_key_value_heads": 4, "rotary_pct": 0.5}),
    "Mixtral": ("mixtral", _COMMON | _EXPERTS | {"num_local_experts": 4, "sliding_window": None}),
    "Qwen3-MoE": (
        "qwen3_moe",
        _COMMON | _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 96, "decoder_sparse_step": 1},
    ),
    # blocks that return a whole state, and beside it one that nobody adds
    "StableLM": ("stablelm", _COMMON | {"partial_rotary_factor": 0.25}),
    "Cohere": ("cohere", _COMMON | {"tie_word_embeddings": True}),
}
_BLOCKS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")


def build(name, seed=0):
    """The model, in float32 and ready to be asked."""
    kind, parts = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **parts)
    # the other implementations leave out the soft cap of Gemma 2
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if weight.dim() > 1:
                table = "embed" in parameter_name or "wte" in parameter_name or "wpe" in parameter_name
                weight.normal_(0, 0.3 if table else 1.2 * weight.shape[-1] ** -0.5)
            else:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def save(name, folder: Path, seed=0):
    """Write the model where an engine can load it; returns it too."""
    model = build(name, seed)
    model.save_pretrained(folder)
    return model


def blocks(model):
    """Transformers' own decoder blocks."""
    for path in _BLOCKS:
        try:
            return operator.attrgetter(path)(model)
        except AttributeError:
            continue
    raise AssertionError(type(model))
