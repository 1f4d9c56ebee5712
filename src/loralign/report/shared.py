"""What is left of LoRA's reach without the input directions that all objectives share, in sentences.

Thresholds: the mean γ of what remains is "much less" under three quarters of the ordinary one, "less" under nine tenths
and "more" from five quarters on; the objectives are told apart from the factor on that
:mod:`~loralign.report.diagnosis` uses for layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loralign.report.diagnosis import LAYER_FAVOUR, Values, known, mean, pair_values
from loralign.report.format import cosine_text, listing, significant, whole_percent

MUCH_LESS = 0.75
LESS = 0.9
MORE = 1.25


def shared_sentences(
    attenuation: Values, shared: Mapping[str, Any], *, objectives: Sequence[str] | None = None
) -> list[str]:
    """Explain one measurement without shared directions beside the ordinary one; what is not finite is left out.

    Args:
        attenuation: γ per objective of the whole gradients.
        shared: ``directions``, ``shared_energy`` and ``attenuation`` per objective, and ``cosine``, as ``loralign
            diagnose --json`` gives them under ``without_shared``.
        objectives: the order of rows and columns of ``cosine``; the order of ``attenuation`` if not given.
    """
    energy = known(shared["shared_energy"])
    # What lies wholly in the shared directions leaves nothing that could be reached or missed.
    remaining = {name: value for name, value in known(shared["attenuation"]).items() if energy.get(name, 0.0) < 1}
    if not energy:
        return []
    count = shared["directions"]
    plural, hold = ("direction", "holds") if count == 1 else ("directions", "hold")
    whose = "a gradient's" if len(energy) == 1 else "the gradients'"
    parts = listing([f"{whole_percent(value)} ({name})" for name, value in energy.items()])
    start = f"The {count} input {plural} per layer that all objectives share most {hold} {parts} of {whose} energy"
    if not remaining:
        return [f"{start}: nothing remains without them."]
    differences = _differences(remaining, shared, list(objectives or attenuation))
    return [f"{start}.", _reach(known(attenuation), remaining), *differences]


def _reach(whole: dict[str, float], remaining: dict[str, float]) -> str:
    parts = listing([f"{significant(value)} ({name})" for name, value in remaining.items()])
    sentence = f"Without them γ is {parts}"
    before, after = mean({name: whole[name] for name in remaining if name in whole}), mean(remaining)
    if not before or after is None:
        return f"{sentence}."
    if after < MUCH_LESS * before:
        return (
            f"{sentence}, much less than with them: LoRA's subspace reaches what all objectives share rather than what "
            "sets them apart."
        )
    if after < LESS * before:
        return f"{sentence}, less than with them: a part of what LoRA's subspace reaches is what all objectives share."
    if after >= MORE * before:
        return f"{sentence}, more than with them: LoRA's subspace leans to what sets the objectives apart."
    return f"{sentence}, about what it is with them: LoRA's subspace does not lean to the shared directions."


def _differences(remaining: dict[str, float], shared: Mapping[str, Any], objectives: Sequence[str]) -> list[str]:
    if len(remaining) < 2:
        return []
    low, high = min(remaining, key=remaining.__getitem__), max(remaining, key=remaining.__getitem__)
    sentences = []
    if remaining[high] >= LAYER_FAVOUR * remaining[low]:
        sentences.append(f"Of what remains LoRA reaches {high} best and {low} least.")
    cosines = pair_values(shared.get("cosine", {}).get("full"), objectives)
    # Those of what is not there mean nothing.
    cosines = {pair: value for pair, value in cosines.items() if set(pair) <= set(remaining)}
    if cosines:
        pair = min(cosines, key=cosines.__getitem__)
        sentences.append(
            f"Between what remains the smallest cosine in the full space is {cosine_text(cosines[pair])} "
            f"({' and '.join(pair)})."
        )
    return sentences
