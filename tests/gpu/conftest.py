from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; under ``LORALIGN_TEST_DEVICE=cpu`` the CPU stands in for it, so that the tests can be tried anywhere."""
    if os.environ.get("LORALIGN_TEST_DEVICE") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU (LORALIGN_TEST_DEVICE=cpu lets the CPU stand in for one)")
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def whole_float32() -> None:
    """Both devices multiply in float32, as torch does by itself: with TF32 three digits would agree, not six."""
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
