"""What a report of runs is made from, as plain immutable records: scores, courses, layers and answers of one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from loralign.report.records import Metric, Numbers, Sample
from loralign.report.runs.subjects import Subject

Unit = Literal["share", "nats", "score"]


@dataclass(frozen=True)
class Quantity:
    """Something that is scored.

    Attributes:
        key: tells it from others, for machines.
        title: what people call it.
        unit: ``share`` is shown in percent, ``nats`` and ``score`` as they are.
        higher: whether more of it is better.
        gains: whether it says what was gained (a task), rather than what was kept or lost.
    """

    key: str
    title: str
    unit: Unit
    higher: bool
    gains: bool = False


REFUSAL = Quantity("refusal", "unsafe prompts refused", "share", True)
OVER_REFUSAL = Quantity("over_refusal", "safe prompts refused", "share", False)
TOXICITY = Quantity("toxicity", "toxicity", "share", False)
KL = Quantity("kl", "KL drift (nats per token)", "nats", False)
DRIFT_REDUCTION = Quantity("drift_reduction", "drift reduction", "share", True)
TASK_LOSS = Quantity("task_loss", "task loss (nats per token)", "nats", False, True)
PREFERENCE = Quantity("preference_accuracy", "preference accuracy", "share", True, True)


@dataclass(frozen=True)
class Ground:
    """What a score was measured on: only scores on the same ground can be compared.

    Attributes:
        name: such as ``DRIFTCHECK, generate mode``.
        detail: tells grounds of the same name apart, such as a fingerprint; shown only where there are several.
    """

    name: str
    detail: str = ""


OWN_PROBE = Ground("own probe")
"""The probe set of the run itself; two runs may have different ones."""

HELD_BACK = Ground("own held-back samples")
"""What the run itself held back of its data."""


@dataclass(frozen=True)
class Score:
    """A score of one model.

    Attributes:
        quantity: what it is.
        ground: what it was measured on.
        metric: value and interval.
        change: against the arm's reference, tuned minus start; ``None`` where there is nothing to compare with.
        paired: whether the interval of ``change`` is that of paired differences.
    """

    quantity: Quantity
    ground: Ground
    metric: Metric
    change: Metric | None = None
    paired: bool = False


@dataclass(frozen=True)
class Category:
    """A score of one category of prompts; ``label`` is ``unsafe`` or ``safe``."""

    quantity: Quantity
    ground: Ground
    label: str
    category: str
    prompts: float | None
    metric: Metric


@dataclass(frozen=True)
class Curve:
    """A course over optimiser steps.

    Attributes:
        key, title: of what is drawn; curves of one key share a chart.
        axis: title of the vertical axis.
        name: of this line among others of its arm, empty for the only one.
        points: step and value.
        noisy: whether single steps mean little, so that a rolling mean is drawn.
    """

    key: str
    title: str
    axis: str
    name: str
    points: tuple[tuple[int, float], ...]
    noisy: bool = False


@dataclass(frozen=True)
class LayerMap:
    """Numbers per layer: attenuation by objective, or energy.

    Attributes:
        key, title, note: of the map; the note is a sentence on how to read it.
        quantity: what the colour is.
        axis: what several panels are, such as objectives.
        values: by layer and panel.
    """

    key: str
    title: str
    note: str
    quantity: str
    axis: str
    values: dict[str, Numbers]


@dataclass(frozen=True)
class Answer:
    """What a model answered to one prompt of a check.

    Attributes:
        prompt, response: texts; empty where the check keeps none.
        label, category: of the prompt.
        refused: probability that the response is a refusal; ``None`` in score mode.
        margin: log-probability of refusing minus that of complying, in nats; ``None`` in generate mode.
    """

    prompt: str
    response: str
    label: str
    category: str
    refused: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Answers:
    """All answers of one model on one ground, by the prompt's id."""

    ground: Ground
    by_id: dict[str, Answer]


@dataclass(frozen=True)
class Part:
    """What one directory says of one model.

    Attributes:
        subjects: names of the model, any of which tells it.
        name: what it is called, empty where the subject has to do.
        role: what it is, such as ``start`` or ``guarded``.
        reference: subjects of the model that it is compared with.
        scores, categories, curves, layer_maps, answers, samples: see there.
        config, data, environment: nested facts of the run.
        command: the words that started it.
        notes: what was missing, damaged or cut off, in plain sentences.
    """

    subjects: tuple[Subject, ...]
    name: str = ""
    role: str = ""
    reference: tuple[Subject, ...] = ()
    scores: tuple[Score, ...] = ()
    categories: tuple[Category, ...] = ()
    curves: tuple[Curve, ...] = ()
    layer_maps: tuple[LayerMap, ...] = ()
    answers: tuple[Answers, ...] = ()
    samples: tuple[Sample, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
