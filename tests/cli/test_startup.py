"""The command line answers before the heavy libraries are there."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "optuna")


def test_help_loads_none_of_the_heavy_libraries():
    code = f"import sys, loralign.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
