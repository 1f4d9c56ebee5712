"""A tiny model in the default one's place."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import loralign.models
from loralign.models import LoadedModel, ModelSource
from tests.docs.pages import ROOT

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """The commonest words of the bundled pairs: sequences as short as a real tokenizer's."""
    files = sorted((ROOT / "src/loralign/data/builtin").glob("*_train.jsonl"))
    counts = Counter(word for file in files for word in re.findall(r"\w+|[^\w\s]", file.read_text(encoding="utf-8")))
    words = [*SPECIAL, "\n", *(word for word, _ in counts.most_common(250))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n|[ ]"), "isolated"), pre_tokenizers.Split(Regex(r"\w+"), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names
    )
    fast.chat_template = CHATML
    return fast


@pytest.fixture
def tiny_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """``load_model()`` gives a Llama of some thousand parameters, the same at every call."""
    tokenizer = word_tokenizer()

    def load_model() -> LoadedModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LoadedModel(LlamaForCausalLM(config).eval(), tokenizer, ModelSource("path", "tiny", "tiny"))

    monkeypatch.setattr(loralign.models, "load_model", load_model)


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Somewhere to write, with the little that a report needs in ``runs/mine``."""
    monkeypatch.chdir(tmp_path)

    def make() -> Path:
        run = tmp_path / "runs" / "mine"
        run.mkdir(parents=True)
        objectives = ["helpful", "honest", "harmless"]
        about = {"version": 1, "model": "tiny", "objectives": objectives, "weighting": "geo", "status": "finished"}
        (run / "run.json").write_text(json.dumps(about))
        return tmp_path

    return make
