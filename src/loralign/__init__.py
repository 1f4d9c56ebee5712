"""Align a language model for several objectives through LoRA, and know what LoRA's geometry did to each of them."""

__version__ = "0.1.0"
