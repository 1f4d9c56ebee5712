"""Heat maps of the arms' layers: attenuation by objective, and energy."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.report.format import significant
from loralign.report.layer_maps import colour_bar, layer_grid, layer_panels, loose_layers
from loralign.report.runs.combining import Arm
from loralign.report.runs.records import LayerMap
from loralign.report.theme import SEQUENTIAL, Chart, Table


def layer_charts(arms: Sequence[Arm]) -> list[tuple[int, Chart]]:
    """Return every map with the number of its arm; maps of one kind stand together."""
    found = [(index, one) for index, arm in enumerate(arms) for one in arm.layer_maps]
    kinds = list(dict.fromkeys(one.key for _, one in found))
    found.sort(key=lambda item: kinds.index(item[1].key))
    return [(index, _map(one, arms[index].name, number)) for number, (index, one) in enumerate(found)]


def _map(one: LayerMap, arm: str, number: int) -> Chart:
    panels = dict.fromkeys(name for values in one.values.values() for name in values)
    shown = [name for name in panels if any(values.get(name) is not None for values in one.values.values())]
    grid = layer_grid(one.values, shown)
    note = one.note
    if grid.kinds:
        titles = shown if one.axis else [""]
        figure = layer_panels(grid.panels, grid.kinds, grid.depths, titles, f"{one.quantity} %{{z:.3f}}")
        figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "colorbar": colour_bar()})
        note += " Rows are module kinds, columns depth; brighter is more."
        if grid.rest:
            note += " Layers outside the numbered blocks are in the numbers below."
    else:
        figure = loose_layers(grid.rest, shown, one.quantity, one.axis)
    table = Table(
        ("layer", *(f"{one.quantity} {name}" if one.axis else one.quantity for name in shown)),
        tuple((layer, *(significant(values.get(name)) for name in shown)) for layer, values in one.values.items()),
    )
    return Chart(f"layers-{number}", f"{one.title}: {arm}", note, figure, table)
