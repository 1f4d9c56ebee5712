"""The forgetting law of fine-tuning, fitted to runs: numbers in, numbers out.

``L_pt = L⁰_pt + A · D_ft^β / N^α + E``: what a model of ``N`` parameters has lost on text that it knew, after it was
tuned on ``D_ft`` of something else. ``L⁰_pt``, the loss of the start, is measured and not fitted, so that the law is
one of increments ``y = L_pt − L⁰_pt``. Groups of runs, such as plain and guarded ones, have an ``A`` each and share the
rest.

References:
    Bethune et al., Scaling Laws for Forgetting during Finetuning with Pretraining Data Injection (2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, nnls

from loralign.errors import DataError

FloatArray = npt.NDArray[np.float64]

BETA_BOUNDS = (0.01, 5.0)
"""Of β: forgetting that does not grow with the data is no law of this kind, and at 0 A and E would be one."""
ALPHA_BOUNDS = (-5.0, 5.0)
"""Of α, which may be negative: larger models may forget more."""
_BETA_STARTS = (0.3, 1.0, 2.5)
_ALPHA_STARTS = (-1.0, 0.0, 1.0)
_NEAR = 1e-3
_TOLERANCE, _RESAMPLED_TOLERANCE = 1e-14, 1e-8
_ALPHA, _OFFSET = "α", "E"


@dataclass(frozen=True)
class ForgettingRun:
    """One fine-tuned model.

    Attributes:
        group: with an A of its own.
        size: parameters of the model, ``N``.
        amount: fine-tuning data, ``D_ft``, in any one unit.
        increment: loss after minus loss before on text that the start knew, nats per token.
        unit: runs of one unit, such as one seed's plain and guarded ones, are resampled together.
    """

    group: str
    size: float
    amount: float
    increment: float
    unit: str = ""


@dataclass(frozen=True, eq=False)
class LawFit:
    """The law that fits best, by least squares over the increments.

    Attributes:
        middle: geometric means of the amounts and of the sizes, ``(D₀, N₀)``.
        amplitudes: by group the forgetting at the middle beyond the offset, ``a = A · D₀^β / N₀^α``, nats per token.
            Unlike A it has a unit that does not depend on β and α, and an error that theirs do not blow up.
        beta: exponent of the amount.
        alpha: exponent of the size; 0 where it is not fitted.
        offset: E, nats per token, never negative; 0 where it is not fitted.
        absent: parameters that the runs do not determine, ``α`` with one size, ``E`` with fewer than three amounts.
        residuals: measured minus fitted increments, nats per token, ``(runs,)``, in their order.
        r_squared: share of the variance of the increments that is explained; NaN where they do not vary.
    """

    middle: tuple[float, float]
    amplitudes: dict[str, float]
    beta: float
    alpha: float
    offset: float
    absent: tuple[str, ...] = ()
    residuals: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    r_squared: float = float("nan")

    @property
    def free(self) -> int:
        """Number of fitted parameters."""
        return len(self.amplitudes) + 3 - len(self.absent)

    @property
    def bounded(self) -> bool:
        """Whether an exponent lies on the bound of its search, to which the search itself comes only close."""
        searched = [(self.beta, BETA_BOUNDS)] + ([] if _ALPHA in self.absent else [(self.alpha, ALPHA_BOUNDS)])
        return any(on_bound(value, bounds) for value, bounds in searched)

    @property
    def error(self) -> float:
        """Root of the mean squared residual, nats per token."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def coefficient(self, group: str) -> float:
        """A of the group, in the units of the law as it is written."""
        amount, size = self.middle
        return float(self.amplitudes[group] * size**self.alpha / amount**self.beta)

    def ratio(self, group: str, reference: str) -> float:
        """A of the group by that of the reference; infinite or NaN where the reference has none."""
        return _quotient(self.amplitudes[group], self.amplitudes[reference])

    def forgetting_ratio(self, group: str, reference: str, middle: tuple[float, float] | None = None) -> float:
        """What the group forgets in all, E included, by what the reference does; not A's ratio but where E is 0.

        Args:
            group: one.
            reference: the other.
            middle: the amount and size at which; the fit's own by default.
        """
        after, before = (float(self.increment(one, *(middle or self.middle))) for one in (group, reference))
        return _quotient(after, before)

    def increment(self, group: str, amount: npt.ArrayLike, size: float) -> FloatArray:
        """What the law says for amounts of data ``(n,)`` and a size, nats per token, ``(n,)``."""
        relative = np.asarray(amount, dtype=np.float64) / self.middle[0]
        found: FloatArray = (
            self.amplitudes[group] * relative**self.beta * (size / self.middle[1]) ** -self.alpha + self.offset
        )
        return found


def _quotient(after: float, before: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(after) / np.float64(before))


def on_bound(value: float, bounds: tuple[float, float]) -> bool:
    """Whether an exponent is where its search ends."""
    return min(abs(value - end) for end in bounds) < _NEAR


def fit_law(runs: Sequence[ForgettingRun], *, near: LawFit | None = None) -> LawFit:
    """Fit the law to runs, by separable least squares.

    For given β and α the law is linear in the amplitudes and E, which are least squares under the constraint that none
    is negative; β and α are searched within :data:`BETA_BOUNDS` and :data:`ALPHA_BOUNDS` from several starts. Runs
    count alike. With one size α cannot be told and is 0; with fewer than three amounts E is.

    Args:
        runs: of one or more groups.
        near: where to start instead, such as the fit of all runs for that of a resample.

    Raises:
        DataError: a value is not finite, an amount or size not positive; one amount only; fewer runs than parameters;
            nothing was forgotten, or no more with more data; the search for amplitudes does not end.

    References:
        Golub & Pereyra, The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose Variables
        Separate, SIAM J. Numer. Anal. 10 (1973).
    """
    problem = _Problem.of(runs)
    low, high = (ends[: problem.exponents] for ends in zip(BETA_BOUNDS, ALPHA_BOUNDS, strict=True))
    starts = [(near.beta, near.alpha)] if near else [(b, a) for b in _BETA_STARTS for a in _ALPHA_STARTS]
    tolerance = _RESAMPLED_TOLERANCE if near else _TOLERANCE
    unique = dict.fromkeys(start[: problem.exponents] for start in starts)
    solutions = [
        least_squares(
            problem.residuals,
            start,
            bounds=(low, high),
            jac="3-point",
            xtol=tolerance,
            ftol=tolerance,
            gtol=tolerance,
        )
        for start in unique
    ]
    return problem.fit(min(solutions, key=lambda one: float(one.cost)).x)


def check_counts(runs: int, groups: int, amounts: int, sizes: int) -> tuple[str, ...]:
    """Which parameters the numbers of runs, groups and different amounts and sizes leave out, if a law can be fitted.

    Raises:
        DataError: it cannot.
    """
    if amounts < 2:
        raise DataError(f"{amounts} amount of data says nothing of β", place="--amounts", fix="give three or more")
    absent = ((_ALPHA,) if sizes < 2 else ()) + ((_OFFSET,) if amounts < 3 else ())
    free = groups + 3 - len(absent)
    if runs < free:
        raise DataError(
            f"{runs} runs cannot tell {free} parameters", place="runs", fix="add --amounts, --models or --seeds"
        )
    return absent


@dataclass(frozen=True, eq=False)
class _Problem:
    """Runs as arrays ``(n,)``, amounts and sizes relative to the middle, increments to the largest."""

    groups: tuple[str, ...]
    member: npt.NDArray[np.bool_]
    amount: FloatArray
    size: FloatArray
    increment: FloatArray
    middle: tuple[float, float]
    scale: float
    absent: tuple[str, ...]

    @property
    def exponents(self) -> int:
        return 1 if _ALPHA in self.absent else 2

    @classmethod
    def of(cls, runs: Sequence[ForgettingRun]) -> _Problem:
        amount, size, increment = (
            np.array([getattr(run, name) for run in runs], dtype=np.float64) for name in ("amount", "size", "increment")
        )
        if not (np.isfinite([amount, size, increment]).all() and (amount > 0).all() and (size > 0).all()):
            raise DataError("a value is not finite, or amount or size not positive", place="runs", fix="leave it out")
        groups = tuple(dict.fromkeys(run.group for run in runs))
        absent = check_counts(len(runs), len(groups), len(set(amount)), len(set(size)))
        if (increment <= 0).all():
            raise DataError("no run has forgotten anything, so there is no law to fit", place="runs")
        middle = (float(np.exp(np.log(amount).mean())), float(np.exp(np.log(size).mean())))
        scale = float(np.abs(increment).max())
        member = np.array([[run.group == group for group in groups] for run in runs])
        return cls(groups, member, amount / middle[0], size / middle[1], increment / scale, middle, scale, absent)

    def linear(self, exponents: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Design matrix ``(n, groups + 1)`` and best amplitudes and offset ``(groups + 1,)``, none negative."""
        growth = self.amount ** exponents[0]
        if self.exponents == 2:
            growth = growth * self.size ** -exponents[1]
        columns = np.where(self.member, growth[:, None], 0.0)
        if _OFFSET not in self.absent:
            columns = np.hstack([columns, np.ones((len(columns), 1))])
        try:
            found = nnls(columns, self.increment)[0]
        except RuntimeError as error:
            raise DataError(f"amplitudes are not found: {error}", place="runs") from error
        return columns, np.asarray(found, dtype=np.float64)

    def residuals(self, exponents: FloatArray) -> FloatArray:
        columns, values = self.linear(exponents)
        found: FloatArray = self.increment - columns @ values
        return found

    def fit(self, exponents: FloatArray) -> LawFit:
        columns, values = self.linear(exponents)
        amplitudes, offset = values[: len(self.groups)], values[len(self.groups) :]
        if not amplitudes.any():
            raise DataError("more data does not make the runs forget more, so there is no law to fit", place="runs")
        residuals = self.increment - columns @ values
        spread = float(np.sum((self.increment - self.increment.mean()) ** 2))
        return LawFit(
            middle=self.middle,
            amplitudes=dict(zip(self.groups, (self.scale * amplitudes).tolist(), strict=True)),
            beta=float(exponents[0]),
            alpha=float(exponents[1]) if self.exponents == 2 else 0.0,
            offset=self.scale * float(offset.sum()),
            absent=self.absent,
            residuals=self.scale * residuals,
            r_squared=1 - float(np.sum(residuals**2)) / spread if spread > 0 else float("nan"),
        )
