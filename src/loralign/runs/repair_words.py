"""A repair in words and tables."""

from __future__ import annotations

from typing import Any

MOST_LAYERS = 12


def repair_sentence(run: dict[str, Any]) -> str:
    """What the repair did, in a sentence or two."""
    report = run["report"]
    strength = report["strength"]
    how = "strengths by layer" if strength is None else f"strength {strength:.2f}"
    how += " overall, shared out by layer" if report["per_layer"] else ""
    if report.get("by_rank") and strength is not None:
        how = f"{strength:.0%} of the directions, the leading ones"
    before, after = (f"{run[moment]['value']:.3f}" for moment in ("drift_before", "drift_after"))
    fell = run["drift_after"]["value"] < run["drift_before"]["value"]
    course = f"stayed at {after}" if before == after else f"{'fell' if fell else 'rose'} from {before} to {after}"
    text = f"Method {report['method']}, {how}: {report['removed']:.1%} of the update is gone, "
    text += f"drift {course} nats per token."
    if report["met"] is False:
        text += f" The budget of {report['drift_budget']:g} was not reached, not even with all of it."
    return text


def repair_rows(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """Name, base, before, after, with intervals."""
    rows: list[tuple[str, ...]] = [
        ("drift (nats per token)", "0", _interval(run["drift_before"]), _interval(run["drift_after"]))
    ]
    if run["task"]:
        task = run["task"]
        cells = [_interval(task[moment]) for moment in ("base", "before", "after")]
        rows.append(("task loss (nats per token)", *cells))
    if run["safety"]:
        for key, name in (("refusal", "unsafe prompts refused"), ("over_refusal", "safe prompts refused")):
            found = [run["safety"][moment].get(key) for moment in ("base", "before", "after")]
            if all(found):
                rows.append((name, *(_interval(one, percent=True) for one in found)))
    before, after = run["report"]["share_before"], run["report"]["share_after"]
    if before is not None and after is not None:
        rows.append(("share of the update in the subspace", "", f"{before:.1%}", f"{after:.1%}"))
    return rows


def layer_rows(run: dict[str, Any]) -> list[tuple[str, ...]]:
    """The layers from which most was taken: name, strength, share in the subspace before, share taken out."""
    layers = sorted(run["report"]["layers"], key=lambda layer: -(layer["energy_before"] - layer["energy_after"]))
    return [
        (
            layer["name"],
            f"{layer['strength']:.2f}",
            "" if layer["share_before"] is None else f"{layer['share_before']:.1%}",
            f"{layer['removed']:.1%}",
        )
        for layer in (layers if run["report"]["per_layer"] else layers[:MOST_LAYERS])
    ]


def _interval(estimate: dict[str, float], percent: bool = False) -> str:
    form = "{:.0%} ({:.0%} to {:.0%})" if percent else "{:.3f} ({:.3f} to {:.3f})"
    return form.format(estimate["value"], estimate["low"], estimate["high"])
