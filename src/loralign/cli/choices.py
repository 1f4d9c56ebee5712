"""Options with a few values: those of the modules that take them, checked before anything heavy is imported."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Projection = Literal["hard", "soft"]
CheckMode = Literal["generate", "score"]
