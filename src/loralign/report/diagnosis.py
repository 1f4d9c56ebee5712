"""What one set of gradient statistics says, in sentences that a practitioner can act on.

Thresholds, chosen so that nothing is called an effect that one noisy measurement would also show:

- reach: mean γ under 0.25 is "most out of reach", under 0.85 still worth a refinement or a higher rank;
- trade-off: a total variation under 1 point is "nearly as asked", under 5 points "slightly shifted";
- conflict: a cosine at or under −0.1 is a conflict, at or over 0.5 agreement; LoRA is said to change a cosine only by
  0.1 and more;
- layers: a layer favours an objective if its largest γ is at least 1.25 times its smallest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from loralign.report.format import cosine_text, listing, percent, significant, whole_percent
from loralign.report.layers import place_layers, short_name

WITHIN_REACH = 0.85
TRADEOFF_AS_ASKED = 0.01
TRADEOFF_SLIGHT = 0.05
CONFLICT = -0.1
AGREEMENT = 0.5
COSINE_CHANGE = 0.1
LAYER_FAVOUR = 1.25

Values = Mapping[str, float | None]


def diagnosis_sentences(
    attenuation: Values,
    *,
    layer_attenuation: Mapping[str, Values] | None = None,
    cosine: Mapping[str, Sequence[Sequence[float | None]]] | None = None,
    objectives: Sequence[str] | None = None,
    directional_distortion: float | None = None,
    tradeoff: Mapping[str, object] | None = None,
) -> list[str]:
    """Explain one measurement in plain sentences; anything not given or not finite is left out.

    Args:
        attenuation: γ per objective, in [0, 1].
        layer_attenuation: γ per layer name and objective.
        cosine: K × K cosines for the spaces ``full`` and ``accessible``.
        objectives: the order of rows and columns of ``cosine``; the order of ``attenuation`` if not given.
        directional_distortion: 1 − cosine of the mixture's gradient and its accessible part.
        tradeoff: ``total_variation``, and ``intended`` and ``realised`` shares per objective.
    """
    reached = known(attenuation)
    if not reached:
        return ["No objective has a finite attenuation, so nothing can be said of LoRA's geometry."]
    sentences = [_reach(reached)]
    if directional_distortion is not None and math.isfinite(directional_distortion):
        sentences.append(_direction(directional_distortion, len(reached)))
    if len(reached) > 1:
        sentences += _tradeoff(tradeoff or {})
        sentences += _conflicts(cosine or {}, list(objectives or attenuation))
    return sentences + _layers(layer_attenuation or {})


def known(values: Values) -> dict[str, float]:
    """Return the finite values only."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def mean(values: Values) -> float | None:
    """Return the mean of the finite values, ``None`` if there is none."""
    finite = known(values)
    return sum(finite.values()) / len(finite) if finite else None


def angle(distortion: float) -> str:
    """Return a distortion (1 − cosine) as an angle in whole degrees."""
    return f"{math.degrees(math.acos(min(1.0, max(-1.0, 1 - distortion)))):.0f}°"


def _reach(reached: dict[str, float]) -> str:
    average = sum(reached.values()) / len(reached)
    low, high = min(reached, key=reached.__getitem__), max(reached, key=reached.__getitem__)
    if len(reached) > 4:
        ends = [f"{whole_percent(reached[name])} ({name})" for name in (low, high)]
        parts = f"between {' and '.join(ends)} of the gradients"
    else:
        parts = listing(
            [
                f"{whole_percent(value)} of the {name} {'gradient' if index == 0 else 'one'}"
                for index, (name, value) in enumerate(reached.items())
            ]
        )
    start = f"LoRA's subspace reaches {parts}, by length (γ)"
    if average >= WITHIN_REACH:
        return (
            f"{start}: of their energy {whole_percent(1 - average**2)} is out of reach (1 − γ²), which is little. A "
            "high γ alone proves nothing: judge it by accuracy against drift."
        )
    whose = "every gradient" if high == low or reached[high] - reached[low] < 0.1 else "the average gradient"
    lost = whole_percent(1 - average**2)
    return f"{start}: {lost} of the energy of {whose} is out of reach (1 − γ²). Consider refinement or a higher rank."


def _direction(distortion: float, objectives: int) -> str:
    what = "the weighted mixture" if objectives > 1 else "the objective"
    return (
        f"The best step LoRA can take for {what} points {angle(distortion)} away from the full-space gradient "
        f"(directional distortion {significant(distortion)})."
    )


def _tradeoff(tradeoff: Mapping[str, object]) -> list[str]:
    variation = tradeoff.get("total_variation")
    if not isinstance(variation, (int, float)) or not math.isfinite(variation):
        return []
    points = "less than 0.01 points" if variation < 1e-4 else f"{significant(100 * variation)} points"
    if variation < TRADEOFF_AS_ASKED:
        return [f"The trade-off is nearly as asked: shares differ by {points} in all, so Geo has little to correct."]
    start = "slightly shifted" if variation < TRADEOFF_SLIGHT else "clearly shifted"
    intended, realised = tradeoff.get("intended"), tradeoff.get("realised")
    detail = ""
    if isinstance(intended, Mapping) and isinstance(realised, Mapping):
        asked, got = known(intended), known(realised)
        moved = {name: got[name] - asked[name] for name in got if name in asked}
        if len(moved) > 1:
            ends = [max(moved, key=moved.__getitem__), min(moved, key=moved.__getitem__)]
            shares = [f"{name} gets {percent(got[name])} where {percent(asked[name])} was asked" for name in ends]
            detail = f": {' and '.join(shares)}"
    advice = "" if variation < TRADEOFF_SLIGHT else " Geo weighting or a balanced refinement corrects this."
    return [f"The trade-off is {start} by {points}{detail}.{advice}"]


def _conflicts(cosine: Mapping[str, Sequence[Sequence[float | None]]], objectives: list[str]) -> list[str]:
    accessible = pair_values(cosine.get("accessible"), objectives)
    full = pair_values(cosine.get("full"), objectives)
    inner = accessible or full
    if not inner:
        return []
    where = "Inside LoRA's subspace" if accessible else "In the full space"
    against = sorted((pair for pair, value in inner.items() if value <= CONFLICT), key=inner.__getitem__)
    if not against:
        pair = min(inner, key=inner.__getitem__)
        tone = "the objectives largely agree" if inner[pair] >= AGREEMENT else "no two objectives conflict"
        sentences = [f"{where} {tone}: the smallest cosine is {cosine_text(inner[pair])} ({' and '.join(pair)})."]
    else:
        a, b = against[0]
        sentences = [
            f"{where} {a} and {b} pull against each other (cosine {cosine_text(inner[a, b])}): a step that helps one "
            "costs the other. A conflict-aware weighting (UPGrad) or other target weights are the means."
        ]
        if len(against) > 1:
            rest = [f"{a} and {b} ({cosine_text(inner[a, b])})" for a, b in against[1:]]
            sentences.append(f"So do {listing(rest)}.")
    if accessible:
        sentences += _changed_cosines(accessible, full)
    return sentences


def pair_values(
    matrix: Sequence[Sequence[float | None]] | None, objectives: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Return the finite entries of a ``K × K`` matrix above its diagonal, by pair of objectives."""
    result = {}
    for (i, a), (j, b) in combinations(enumerate(objectives), 2):
        if matrix is not None and i < len(matrix) and j < len(matrix[i]):
            value = matrix[i][j]
            if value is not None and math.isfinite(value):
                result[a, b] = value
    return result


def _changed_cosines(accessible: dict[tuple[str, str], float], full: dict[tuple[str, str], float]) -> list[str]:
    changes = {pair: accessible[pair] - full[pair] for pair in accessible if pair in full}
    if not changes:
        return []
    pair = max(changes, key=lambda item: abs(changes[item]))
    if abs(changes[pair]) < COSINE_CHANGE:
        return ["LoRA leaves the angles between the objectives as they are in the full space (within 0.1 in cosine)."]
    effect = "closer together" if changes[pair] > 0 else "further apart"
    return [
        f"LoRA brings {pair[0]} and {pair[1]} {effect} than they are in the full space "
        f"(cosine {cosine_text(full[pair])} there, {cosine_text(accessible[pair])} in the subspace)."
    ]


def _layers(layers: Mapping[str, Values]) -> list[str]:
    means = {name: value for name, values in layers.items() if (value := mean(values)) is not None}
    if len(means) < 2:
        return []
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    ends = [f"{significant(means[name])} ({short_name(name)})" for name in (low, high)]
    sentences = [f"Layer by layer γ runs from {' to '.join(ends)}."]
    places = place_layers(means)
    kinds: dict[str, dict[str, float]] = {}
    for name, value in means.items():
        kinds.setdefault(places[name].kind, {})[name] = value
    averages = {kind: sum(values.values()) / len(values) for kind, values in kinds.items()}
    if 1 < len(averages) < len(means):
        least, most = min(averages, key=averages.__getitem__), max(averages, key=averages.__getitem__)
        sentences.append(
            f"By module kind {least} is reached least (mean γ {significant(averages[least])}) and {most} most "
            f"({significant(averages[most])})."
        )
    return sentences + _uneven_layers(layers)


def _uneven_layers(layers: Mapping[str, Values]) -> list[str]:
    several = {name: known(values) for name, values in layers.items() if len(known(values)) > 1}
    uneven = [name for name, g in several.items() if max(g.values()) >= LAYER_FAVOUR * min(g.values()) > 0]
    if not several:
        return []
    if not uneven:
        return [f"No layer serves one objective {LAYER_FAVOUR} times as well as another."]
    return [
        f"In {len(uneven)} of {len(several)} layers the best served objective is reached at least {LAYER_FAVOUR} times "
        "as well as the worst served: weights per layer act there, model-wide ones cannot."
    ]
