"""What the pages of experiments say of their cells."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.experiments.experiment import ArmResult


def run_facts(results: Sequence[ArmResult]) -> list[tuple[str, str]]:
    """Arms, cells, seeds and the time that the cells took."""
    cells = [cell for result in results for cell in result.cells]
    return [
        ("Arms", str(len(results))),
        ("Cells", str(len(cells))),
        ("Seeds", ", ".join(map(str, sorted({cell.seed for cell in cells})))),
        ("Time in cells", f"{sum(cell.seconds for cell in cells) / 60:.0f} min"),
    ]
