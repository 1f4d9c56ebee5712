"""What a LoRA layer is: walking a PEFT model's layers, and linear algebra on factored matrices."""

from loralign.lora.base_weight import base_weight_rows
from loralign.lora.factors import (
    Basis,
    FactoredSvd,
    column_bases,
    column_basis,
    factored_inner,
    factored_norm,
    factored_svd,
)
from loralign.lora.layers import LoraFactors, canonical_name, lora_layers

__all__ = [
    "Basis",
    "FactoredSvd",
    "LoraFactors",
    "base_weight_rows",
    "canonical_name",
    "column_bases",
    "column_basis",
    "factored_inner",
    "factored_norm",
    "factored_svd",
    "lora_layers",
]
