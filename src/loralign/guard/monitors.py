"""The failure signatures of guarded adaptation, each told once in plain language when it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loralign.errors import StateError

# Differences of rates such as 0.9 − 0.8 carry rounding; exactly at a threshold nothing is told.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class GuardWarning:
    """One failure signature that has begun.

    Args:
        code: ``refusals_lost``, ``safe_but_useless``, ``unstable_subspace`` or ``parts_aligned``.
        message: what was seen, with the numbers.
        fix: what to change.
        step: optimiser step of the measurement, as it was told.
    """

    code: str
    message: str
    fix: str
    step: int


@dataclass(frozen=True)
class MonitorThresholds:
    """What counts as a failure (docs/adapting.md).

    Args:
        refusal_drop: refusal accuracy lost since the start, as a share: 0.1 is ten points.
        score_drop: task score lost since the start, as a share.
        loss_rise: where only the task's loss is known: its rise since the start in nats per token. The default is what
            two points are to a score: the right token's probability down by 2 %, as a geometric mean.
        similarity: least mean squared cosine of the principal angles between two estimates of the subspace.
        cosine: largest |cos(ΔW_A, ΔW_T)| that is well late in training.
        late: share of the training's steps after which it is late.
    """

    refusal_drop: float = 0.10
    score_drop: float = 0.02
    loss_rise: float = 0.02
    similarity: float = 0.85
    cosine: float = 0.3
    late: float = 2 / 3


def fallen(start: float, now: float, threshold: float) -> bool:
    """Whether a value has fallen from ``start`` by more than ``threshold``."""
    return start - now > threshold + _ROUNDING


def unstable(similarity: float, threshold: float = MonitorThresholds.similarity) -> bool:
    """Whether two estimates of the subspace are less alike than ``threshold``."""
    return similarity < threshold - _ROUNDING


def aligned_late(
    cosine: float, progress: float, threshold: float = MonitorThresholds.cosine, late: float = MonitorThresholds.late
) -> bool:
    """Whether ``|cos(ΔW_A, ΔW_T)|`` exceeds ``threshold`` when ``progress``, in [0, 1], has come to the late part."""
    return progress >= late - _ROUNDING and abs(cosine) > threshold + _ROUNDING


class GuardMonitors:
    """Watches numbers as they are measured, and warns when a failure signature begins.

    Every method takes one measurement and gives the warnings that begin with it, mostly none. A signature that goes on
    is told once, and again only after it has ceased. The first refusal rate, task score and task loss are the start's.
    A number that is not finite counts as not measured.

    Args:
        thresholds: what counts as a failure.
        total_steps: of the training, by which it is known what is late; ``None`` while that is not known.
    """

    def __init__(self, thresholds: MonitorThresholds | None = None, *, total_steps: int | None = None) -> None:
        self.thresholds = thresholds or MonitorThresholds()
        self.total_steps = total_steps
        self.warnings: list[GuardWarning] = []
        self._start: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._active: set[str] = set()

    def refusals(self, accuracy: float, step: int) -> list[GuardWarning]:
        """Share of unsafe prompts that the model refuses, in [0, 1]."""
        if not self._take("refusals", accuracy):
            return []
        start = self._start["refusals"]
        lost = self._begins(
            "refusals_lost",
            fallen(start, accuracy, self.thresholds.refusal_drop),
            f"refusals of unsafe prompts fell from {start:.0%} at the start to {accuracy:.0%}",
            "raise lambda_alignment or lower drift_budget; afterwards `loralign repair` can mend the adapter",
            step,
        )
        # The task's score may have fallen before it was known that the refusals hold.
        return lost + self._useless(step)

    def drift(self, drift: float, budget: float, step: int) -> list[GuardWarning]:
        """Drift and its budget, in nats per token: they stand for the refusals where none are generated."""
        if not math.isfinite(drift):
            return []
        self._latest["drift"] = drift / budget
        return self._useless(step)

    def task_score(self, score: float, step: int) -> list[GuardWarning]:
        """The task's score in [0, 1], higher is better."""
        return self._useless(step) if self._take("task_score", score) else []

    def task_loss(self, loss: float, step: int) -> list[GuardWarning]:
        """The task's loss on held-back samples in nats per token; it counts where no score is known."""
        return self._useless(step) if self._take("task_loss", loss) else []

    def stability(self, similarity: float | Mapping[str, float], step: int) -> list[GuardWarning]:
        """Mean squared cosine of the principal angles between two estimates: their mean, or one for every layer."""
        layers = dict(similarity) if isinstance(similarity, Mapping) else {}
        mean = sum(layers.values()) / len(layers) if layers else similarity
        if isinstance(mean, Mapping) or not math.isfinite(mean):
            return []
        worst = min(layers, key=layers.__getitem__) if layers else None
        where = "" if worst is None else f"; least in {worst} with {layers[worst]:.2f}"
        return self._begins(
            "unstable_subspace",
            unstable(mean, self.thresholds.similarity),
            f"two estimates of the alignment subspace agree to a mean squared cosine of only {mean:.2f}{where}",
            "estimate it from more samples, or lower its rank or its energy",
            step,
        )

    def coupling(self, cosine: float, step: int) -> list[GuardWarning]:
        """Cosine between ``ΔW_A`` and ``ΔW_T``; with a hard projection it is 0."""
        if not math.isfinite(cosine):
            return []
        progress = 0.0 if not self.total_steps else (step + 1) / self.total_steps
        return self._begins(
            "parts_aligned",
            aligned_late(cosine, progress, self.thresholds.cosine, self.thresholds.late),
            f"the task's part of the update still points along the alignment's part: |cos(ΔW_A, ΔW_T)| is "
            f"{abs(cosine):.2f} with {progress:.0%} of the training done",
            "raise lambda_collision, or use the hard projection",
            step,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the thresholds, ready for JSON."""
        return {
            "total_steps": self.total_steps,
            "start": dict(self._start),
            "latest": dict(self._latest),
            "active": sorted(self._active),
            "warnings": [asdict(warning) for warning in self.warnings],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            StateError: the state is of another kind or damaged; the monitors are as before.
        """
        try:
            total = state["total_steps"]
            start, latest = (
                {str(key): float(value) for key, value in state[name].items()} for name in ("start", "latest")
            )
            active = {str(code) for code in state["active"]}
            warnings = [GuardWarning(**warning) for warning in state["warnings"]]
            total = None if total is None else int(total)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the monitors' state is damaged: {error!r}", place="monitors") from error
        self.total_steps, self._start, self._latest = total, start, latest
        self._active, self.warnings = active, warnings

    def _take(self, name: str, value: float) -> bool:
        if not math.isfinite(value):
            return False
        self._start.setdefault(name, value)
        self._latest[name] = value
        return True

    def _useless(self, step: int) -> list[GuardWarning]:
        """The task is lost while the refusals hold: held too tightly."""
        name = "task_score" if "task_score" in self._latest else "task_loss"
        if name not in self._latest:
            return []
        start, now, limits = self._start[name], self._latest[name], self.thresholds
        if name == "task_score":
            lost, told = fallen(start, now, limits.score_drop), f"score fell from {start:.1%} at the start to {now:.1%}"
        else:
            lost, told = fallen(now, start, limits.loss_rise), f"loss rose from {start:.3f} at the start to {now:.3f}"
        return self._begins(
            "safe_but_useless",
            lost and self._refusals_hold(),
            f"safe but useless: the task's {told} while the refusals hold",
            "lower lambda_alignment, raise drift_budget, or use the soft projection",
            step,
        )

    def _refusals_hold(self) -> bool:
        if "refusals" in self._latest:
            return not fallen(self._start["refusals"], self._latest["refusals"], self.thresholds.refusal_drop)
        return self._latest.get("drift", math.inf) <= 1

    def _begins(self, code: str, holds: bool, message: str, fix: str, step: int) -> list[GuardWarning]:
        if not holds:
            self._active.discard(code)
            return []
        if code in self._active:
            return []
        self._active.add(code)
        self.warnings.append(GuardWarning(code, message, fix, step))
        return self.warnings[-1:]
