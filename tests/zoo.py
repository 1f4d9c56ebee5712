"""Small models of real architectures, a few thousand parameters each, built from their own configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 96
OBJECTIVES = ("helpful", "honest", "harmless")

_SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZES))


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=8))


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(**_SIZES, num_local_experts=2, num_experts_per_tok=1)
    return MixtralForCausalLM._from_config(config, experts_implementation="eager")


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=24,
            n_layer=2,
            n_head=4,
            n_positions=128,
            bos_token_id=1,
            eos_token_id=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def opt() -> PreTrainedModel:
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            word_embed_proj_dim=24,
            ffn_dim=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def qwen2_moe() -> PreTrainedModel:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = Qwen2MoeConfig(**_SIZES, **experts, shared_expert_intermediate_size=16)
    return Qwen2MoeForCausalLM._from_config(config, experts_implementation="eager")


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=24,
            d_kv=6,
            d_ff=40,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
        )
    )


TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "v_proj", "down_proj"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "t5": ["q", "v", "wi", "wo"],
    "opt": ["q_proj", "out_proj", "fc1", "fc2"],
    "qwen2_moe": ["q_proj", "shared_expert.up_proj", "shared_expert.down_proj", "shared_expert_gate"],
}
BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "qwen3": qwen3,
    "mixtral": mixtral,
    "gpt2": gpt2,
    "t5": t5,
    "opt": opt,
    "qwen2_moe": qwen2_moe,
}
FLATTENED = ("opt", "qwen2_moe")
"""Some layers of these see the tokens of all rows in one matrix."""
ARCHITECTURES = tuple(name for name in BUILDERS if name not in FLATTENED)


def lora_model(
    architecture: str = "llama",
    *,
    rank: int = 4,
    trained: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **config: Any,
) -> PeftModel:
    """A PEFT model; ``trained`` fills ``B`` as if some steps had been taken, otherwise ``B = 0``."""
    torch.manual_seed(seed)
    base = BUILDERS[architecture]().to(dtype)
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": TARGETS[architecture],
        "fan_in_fan_out": architecture == "gpt2",
        **config,
    }
    model = get_peft_model(base, LoraConfig(**settings), autocast_adapter_dtype=False)
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


def batch(rows: int = 6, length: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Random token ids with right padding; labels are the ids with the padding left out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(0, rows, 3):
        mask[row, length - 2 :] = 0
    return {
        "input_ids": ids.masked_fill(mask == 0, 0),
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def sample_losses(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean token cross-entropy of each row, ``(rows,)``: a loss whose samples do not mix."""
    logits = model(**inputs).logits
    labels = inputs["labels"]
    if logits.shape[1] == labels.shape[1] and "decoder_input_ids" not in inputs and not _is_encoder_decoder(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none", ignore_index=-100
    ).view(labels.shape)
    return losses.sum(dim=1) / (labels != -100).sum(dim=1)


def _is_encoder_decoder(model: torch.nn.Module) -> bool:
    return bool(model.config.is_encoder_decoder)


def checkpointed(model: PeftModel, *, reentrant: bool = False) -> PeftModel:
    """Switch on gradient checkpointing, under the name that the installed transformers has for it."""
    model.enable_input_require_grads()
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    return model.train()
