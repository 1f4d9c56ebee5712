"""Keeping measured drift within a budget by moving the weight of the penalties."""

from __future__ import annotations

import math
from typing import Any

from loralign.errors import ConfigError, NonFiniteError, StateError

# Below this multiplier the steps are additive, above it multiplicative.
_KNEE = 0.02
_RATE = 0.2
# Of rates and updates: all updates of a run together can lower the multiplier by a factor of e³ = 20.
_REACH = 3.0
# A drift of four times the budget and more counts alike, so that one wild measurement cannot throw the multiplier.
_LARGEST_EXCESS = 3.0


class DriftController:
    """Dual ascent on a multiplier of the penalties' weights (docs/adapting.md, Budget).

    For "least task loss, subject to drift ≤ budget" the multiplier μ of the constraint rises while drift is above the
    budget and falls while it is below. With the excess ``e = (drift + 2·trend) / budget − 1`` in [−1, 3] an update is

        μ + 0.02 ← (μ + 0.02)·exp(rate·e), clipped to the bounds.

    The step is multiplicative, mirror ascent, because which multiplier is needed is unknown by orders of magnitude:
    it depends on model, task and optimiser. An additive step would crawl where it must be large and ring where it must
    be small. The 0.02 makes it additive near zero, which it can so reach, when the budget is slack, and leave again.
    ``trend`` is the change since the last measurement, and looking ahead by two of them damps the overshoot that a pure
    integral has; it vanishes where drift stands still, so the drift that is reached is the budget itself. Nothing but
    the clipped μ is accumulated, so at a bound there is no excess to unwind before it moves again.

    Args:
        budget: drift that may be reached, in nats per response token of KL(start‖now).
        rate: of the ascent, per update; :func:`ascent_rate` has one for short runs. The default settles within a fifth
            of the budget on quadratic tasks whose multiplier lies between 0.03 and 30, under gradient descent and Adam,
            with an update every fifth step. On the way there drift exceeds the budget where the multiplier needed is
            far above the initial one.
        bounds: least and largest multiplier.
        initial: multiplier before the first update, clipped to the bounds.
        entropy_gain: per nat by which predictive entropy exceeds the start's, the multiplier is lowered by the factor
            ``exp(-entropy_gain)``, at once and as long as it lasts: where the model is undecided it is held less. The
            dual variable is not lowered with it, so the budget still decides in the end. 0 switches it off.

    Raises:
        ConfigError: the budget is zero, negative or not finite, or another setting is out of range.
    """

    def __init__(
        self,
        budget: float,
        *,
        rate: float = _RATE,
        bounds: tuple[float, float] = (0.0, 1e3),
        initial: float = 1.0,
        entropy_gain: float = 0.0,
    ) -> None:
        if not (math.isfinite(budget) and budget > 0):
            raise ConfigError(
                f"a drift budget of {budget}",
                place="drift_budget",
                fix="give the nats per response token that may be lost, such as 0.05",
            )
        low, high = bounds
        if not (0 <= low < high and math.isfinite(high)):
            raise ConfigError(
                f"bounds ({low}, {high}) of the multiplier", place="bounds", fix="use 0 ≤ least < largest, both finite"
            )
        for name, value, zero in (
            ("rate", rate, False),
            ("initial", initial, True),
            ("entropy_gain", entropy_gain, True),
        ):
            if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
                raise ConfigError(f"{name} is {value}", place=name, fix="use a positive number")
        self.budget = budget
        self.rate = rate
        self.bounds = (float(low), float(high))
        self.entropy_gain = entropy_gain
        self._dual = self._clipped(initial)
        self._relief = 1.0
        self._drift: float | None = None
        self._previous: float | None = None

    @property
    def multiplier(self) -> float:
        """By which the base values of the weights are multiplied."""
        return self._clipped(self._dual * self._relief)

    @property
    def over(self) -> bool:
        """Whether the last measured drift exceeds the budget."""
        return self._drift is not None and self._drift > self.budget

    @property
    def trend(self) -> float:
        """Change of drift between the last two measurements, in nats per token; 0 before there are two."""
        return 0.0 if self._drift is None or self._previous is None else self._drift - self._previous

    def check_start(self, drift: float) -> None:
        """Take the drift before the first step, which is 0 for a fresh adapter.

        Raises:
            ConfigError: it exceeds the budget already.
            NonFiniteError: it is infinite or not a number.
        """
        if _finite(drift, "drift") > self.budget:
            raise ConfigError(
                f"a drift budget of {self.budget:g} nats per token is exceeded at the start, by a drift of {drift:.3g}",
                place="drift_budget",
                fix="start from a fresh adapter, or give a larger budget",
            )
        self._drift = drift

    def update(self, drift: float, entropy_rise: float | None = None) -> float:
        """Take a new measurement and give the new multiplier.

        Args:
            drift: KL(start‖now) in nats per response token.
            entropy_rise: predictive entropy on the probe's responses minus that of the start, in nats; where it is
                unknown the last one stands.

        Raises:
            NonFiniteError: a measurement is infinite or not a number; the state is as before.
        """
        _finite(drift, "drift")
        if entropy_rise is not None:
            self._relief = math.exp(-self.entropy_gain * max(0.0, _finite(entropy_rise, "entropy")))
        self._previous, self._drift = self._drift, drift
        excess = (drift + 2 * self.trend) / self.budget - 1
        step = math.exp(self.rate * min(max(excess, -1.0), _LARGEST_EXCESS))
        self._dual = self._clipped((self._dual + _KNEE) * step - _KNEE)
        return self.multiplier

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the settings, ready for JSON; numbers survive it bit by bit."""
        return {"dual": self._dual, "relief": self._relief, "drift": self._drift, "previous": self._previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; a multiplier outside of this controller's bounds is clipped to them.

        Raises:
            StateError: the state is of another kind or damaged; the controller is as before.
        """
        try:
            dual, relief = (_finite(float(state[name]), name) for name in ("dual", "relief"))
            drift, previous = (
                None if state[name] is None else _finite(float(state[name]), name) for name in ("drift", "previous")
            )
        except (KeyError, TypeError, ValueError, NonFiniteError) as error:
            raise StateError(f"the controller's state is damaged: {error!r}", place="controller") from error
        self._dual, self._relief, self._drift, self._previous = self._clipped(dual), relief, drift, previous

    def _clipped(self, value: float) -> float:
        return min(max(float(value), self.bounds[0]), self.bounds[1])


def ascent_rate(updates: int | None) -> float:
    """A rate for a run with so many updates.

    The usual one needs some fifteen updates to come near a budget: of three it could move the multiplier by no more
    than a factor of 1.8, and a run would end with weights that are still the initial ones. So where updates are few,
    their steps are larger, as far as three of them still find their way back (docs/results.md).

    Args:
        updates: in the whole run; ``None`` where that is not known.
    """
    return _RATE if not updates else max(_RATE, min(1.0, _REACH / updates))


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the measured {name} is {value}", place="probe set", fix="look for weights that are not finite"
        )
    return value
