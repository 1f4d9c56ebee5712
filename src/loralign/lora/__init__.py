"""What a LoRA layer is: walking a PEFT model's layers, and linear algebra on factored matrices."""

from loralign.lora.factors import (
    Basis,
    FactoredSvd,
    column_bases,
    column_basis,
    factored_inner,
    factored_norm,
    factored_svd,
)
from loralign.lora.layers import LoraFactors, lora_layers

__all__ = [
    "Basis",
    "FactoredSvd",
    "LoraFactors",
    "column_bases",
    "column_basis",
    "factored_inner",
    "factored_norm",
    "factored_svd",
    "lora_layers",
]
