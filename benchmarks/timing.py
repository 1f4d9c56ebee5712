"""Wall-clock time of a step and of its parts, and an order of arms in which a drift of the machine cancels."""

from __future__ import annotations

import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from tqdm import tqdm


def machine(*packages: str) -> dict[str, Any]:
    """What a measurement was made on: device, threads, load, versions of torch and of ``packages``."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "load average": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in ("torch", *packages)},
    }


class Clock:
    """Seconds by arm, and by part of an arm under ``arm/part``, one sample a repeat.

    Args:
        cpu: count the seconds that the process had of all processors, which a busy machine disturbs far less, in place
            of those on the wall.
    """

    def __init__(self, cpu: bool = False) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._parts: dict[str, float] = defaultdict(float)
        self._now = time.process_time if cpu else time.perf_counter

    def time(self, arm: str, run: Callable[[], None]) -> None:
        """Run one arm once and add its sample; work queued on a GPU counts."""
        gc.collect()
        self._parts.clear()
        _synchronise()
        started = self._now()
        run()
        _synchronise()
        self.samples[arm].append(self._now() - started)
        for part, value in self._parts.items():
            self.samples[f"{arm}/{part}"].append(value)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the arm in progress; its blocks add up."""
        _synchronise()
        started = self._now()
        yield
        _synchronise()
        self._parts[name] += self._now() - started


def interleave(
    clock: Clock, arms: Mapping[str, Callable[[int], None]], *, repeats: int, warmup: int, seed: int
) -> None:
    """Run every arm once a repeat, in a new random order each time; the warm-up's times are dropped.

    Args:
        clock: that the samples go to.
        arms: by name, each called with the number of the repeat.
        repeats: that are timed.
        warmup: repeats before those.
        seed: of the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    names = list(arms)
    with tqdm(total=(warmup + repeats) * len(names), unit="run") as bar:
        for repeat in range(warmup + repeats):
            if repeat == warmup:
                clock.samples.clear()
            for position in torch.randperm(len(names), generator=generator).tolist():
                bar.set_postfix_str(names[position])
                clock.time(names[position], partial(arms[names[position]], repeat))
                bar.update()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
