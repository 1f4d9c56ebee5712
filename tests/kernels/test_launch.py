"""How the fused kernel is launched, on a machine without Triton as well."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType, SimpleNamespace

import torch


def test_the_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    """Triton takes the current device, and would read the memory of another one."""
    entered, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        entered.append(tensor)
        yield
        entered.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append((arguments[1], list(entered)))

    triton, language = ModuleType("triton"), ModuleType("triton.language")
    vars(triton).update(
        jit=lambda function, **options: Kernel(),
        next_power_of_2=lambda number: 1 << (number - 1).bit_length(),
        cdiv=lambda number, by: -(-number // by),
    )
    vars(language).update(constexpr=SimpleNamespace)
    name = "loralign.kernels.overlap_triton"
    for fake in (triton, language):
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.delitem(sys.modules, name, raising=False)
    kernel = importlib.import_module(name)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    try:
        kernel.launch(
            None, torch.ones(2, 3, 4), torch.ones(4, 5), beta=0.0, tau=0.0, gradient_left=None, gradient_right=None
        )
    finally:
        # The true one is imported where there is a Triton.
        sys.modules.pop(name, None)
    ((left, within),) = launched
    assert [one.device for one in within] == [left.device]
    assert not entered
