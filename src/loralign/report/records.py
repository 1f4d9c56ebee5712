"""What run directories hold, as plain immutable records without any thought of how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

Numbers = dict[str, float | None]
"""One number per objective; ``None`` where it was not measured or is not finite."""


@dataclass(frozen=True)
class Measurement:
    """One measurement of the geometry at an optimiser step.

    Attributes:
        step: optimiser step.
        attenuation: γ per objective, in [0, 1].
        layer_attenuation: γ per layer name and objective; empty where it was not written.
        weights: weight per objective, the mean over layers where weights are per layer.
        layer_weights: weight per layer name and objective; empty for model-wide weights.
        directional_distortion: 1 − cosine of the mixture and its accessible part.
        step_distortion: 1 − cosine of the mixture's descent direction and the step actually taken.
        total_variation: distance of intended and realised shares, in [0, 1].
        spread: max γ / min γ.
        intended, realised: share of each objective, summing to 1.
        cosine: K × K cosines per space (``full``, ``accessible``, ``euclidean``), in the order of ``objectives``.
        objectives: the order of rows and columns in ``cosine``.
        gradient_norm: gradient norm per space and objective.
        samples: samples per objective that the measurement saw.
        skipped: why the weights were left unchanged, where they were.
    """

    step: int
    attenuation: Numbers
    layer_attenuation: dict[str, Numbers] = field(default_factory=dict)
    weights: Numbers = field(default_factory=dict)
    layer_weights: dict[str, Numbers] = field(default_factory=dict)
    directional_distortion: float | None = None
    step_distortion: float | None = None
    total_variation: float | None = None
    spread: float | None = None
    intended: Numbers = field(default_factory=dict)
    realised: Numbers = field(default_factory=dict)
    cosine: dict[str, list[list[float | None]]] = field(default_factory=dict)
    objectives: tuple[str, ...] = ()
    gradient_norm: dict[str, Numbers] = field(default_factory=dict)
    samples: Numbers = field(default_factory=dict)
    skipped: str | None = None


@dataclass(frozen=True)
class LayerRefinement:
    """What a refinement did to one layer; shares are relative to the layer's ‖ΔW‖² (energy) and ‖ΔW‖ (change)."""

    name: str
    energy_moved: float | None
    function_change: float | None
    rank: float | None
    spectrum: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Refinement:
    """One refinement of the subspace: over all layers, γ before and after, and layer by layer."""

    step: int
    mode: str
    energy_moved: float | None
    function_change: float | None
    before: Numbers
    after: Numbers
    layers: tuple[LayerRefinement, ...] = ()


@dataclass(frozen=True)
class TrainingStep:
    """Losses of one optimiser step: overall, and per objective ``loss``, ``accuracy`` and ``margin``."""

    step: int
    loss: float | None
    objectives: dict[str, Numbers]
    learning_rate: float | None = None


@dataclass(frozen=True)
class Metric:
    """A score with the two ends of its bootstrap interval, where it has one."""

    value: float | None
    low: float | None = None
    high: float | None = None


ACCURACIES = ("accuracy", "accuracy_normalised", "accuracy_summed", "accuracy_reward")
"""What "preference accuracy" is taken from, the first that a score set has.

The accuracy of implicit rewards comes last: before training the policy is its own reference and every reward is a tie.
"""


def accuracy(metrics: dict[str, Metric]) -> Metric | None:
    """Return the preference accuracy among ``metrics``."""
    return next((metrics[name] for name in ACCURACIES if name in metrics), None)


@dataclass(frozen=True)
class ScoreSet:
    """Scores of one policy, or differences between two: metric by name, per objective and over all pairs."""

    objectives: dict[str, dict[str, Metric]]
    overall: dict[str, Metric]
    pairs: dict[str, float | None]


@dataclass(frozen=True)
class Sample:
    """One prompt with the model's answers before and after training."""

    objective: str
    prompt: str
    before: str
    after: str
