"""Tiny models, a character tokenizer and pairs for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
VOCABULARY = len(CHARACTERS) + len(SPECIAL)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Ends the generation prompt with a block that the whole conversation does not have.
DIVERGING = CHATML.replace("assistant\n{% endif %}", "assistant\n[thought]{% endif %}")

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large weights give logits on which soft capping and scaling are plainly seen.
    "initializer_range": 0.3,
}
BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_SIZES, head_dim=8, final_logit_softcapping=2.0, sliding_window=256)
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**_SIZES, logits_scaling=3.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**_SIZES, logit_scale=0.25)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=200,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
        )
    ),
}


def build(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(seed)
    return BUILDERS[architecture]().to(dtype)


def with_adapter(base: PreTrainedModel, std: float = 0.05, seed: int = 1, **config: Any) -> PeftModel:
    """``base`` with a LoRA adapter whose B is drawn with ``std``; 0 leaves it as at the start of training."""
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1, **config}
    model = get_peft_model(base, LoraConfig(**settings, task_type="CAUSAL_LM"))
    perturb(model, "default", std, seed)
    return model


def perturb(model: PeftModel, adapter: str, std: float, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and adapter in name:
                parameter.normal_(std=std) if std else parameter.zero_()


def character_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = template
    return fast


def conversational_pairs(count: int = 10) -> Dataset:
    """Pairs of varied length of two objectives."""

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return Dataset.from_list(
        [
            {
                "prompt": turn("user", f"Question {i}" + "?" * (1 + 5 * (i % 4))),
                "chosen": turn("assistant", f"Good answer {i * i}, " + "yes " * (i % 5)),
                "rejected": turn("assistant", f"Bad {i}" + " no" * (7 * i % 6)),
                "objective": ("helpful", "honest")[i % 3 == 0],
            }
            for i in range(count)
        ]
    )


def plain_pairs(count: int = 6) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": f"Once {'upon ' * i}",
                "chosen": f"a time {i}" + ("<|im_end|>" if i % 2 else ""),
                "rejected": "x" * (1 + i),
                "objective": "story",
            }
            for i in range(count)
        ]
    )


def dense_statistics(
    model: torch.nn.Module, reference: torch.nn.Module | None, prompt: list[int], response: list[int]
) -> list[float]:
    """Log-probability under both and both divergences, summed over one response: one sequence, no padding, float64."""

    def log_probs(network: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = network(input_ids=torch.tensor([prompt + response])).logits[0]
        return logits[len(prompt) - 1 : -1].double().log_softmax(-1)

    policy = log_probs(model)
    labels = torch.tensor(response)[:, None]
    if reference is None:
        return [policy.gather(1, labels).sum().item()]
    other = log_probs(reference)
    return [
        policy.gather(1, labels).sum().item(),
        other.gather(1, labels).sum().item(),
        (policy.exp() * (policy - other)).sum().item(),
        (other.exp() * (other - policy)).sum().item(),
    ]
