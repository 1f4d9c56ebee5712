from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loralign.experiments.stability import subspace_agreements
from loralign.experiments.subspaces import SubspaceSpec
from tests.cli.conftest import assert_refused

LAYERS = 4


def test_seeds_and_halves_draw_other_samples(model: Path, kept: Path, tmp_path: Path) -> None:
    spec = SubspaceSpec(str(model), (str(kept),), 12, target_modules=("q_proj",), rank=4, min_agreement=0.0)
    seeds, halves = subspace_agreements(spec, (0, 1, 2), tmp_path)
    assert list(seeds.pairs) == ["0 and 1", "0 and 2", "1 and 2"]
    assert list(halves.pairs) == ["halves by 0", "halves by 1", "halves by 2"]
    for found in (seeds, halves):
        values = [value for pair in found.pairs.values() for value in pair.values()]
        assert len(set(values)) == len(values) == 6
        assert all(0 < value < 0.9999 for value in values)
        # Four directions among 32 outputs.
        assert set(found.chance.values()) == {math.sqrt(4 / 32)}


def test_the_command_compares_subspaces_and_updates(loralign: Any, adapting: list[str], tmp_path: Path) -> None:
    result = loralign(
        *("stability", *adapting, "--output", str(tmp_path / "out"), "--seeds", "0", "1", "--json"),
        *("--judged_prompts", "0", "--samples", "0", "--max_steps", "2", "--save_steps", "10"),
    )
    assert result.code == 0, result.err
    told = json.loads(result.out.splitlines()[-1])
    assert told["headline"].startswith("Mid-to-deep layers against 0.85: ")
    columns = pq.read_table(told["results"]).to_pydict()
    names = ["subspace, seeds", "subspace, halves", "ΔW_A, guarded", "ΔW_A, plain"]
    assert list(dict.fromkeys(columns["comparison"])) == names
    by_name = {name: columns["comparison"].count(name) for name in names}
    assert by_name == {names[0]: LAYERS, names[1]: 2 * LAYERS, names[2]: LAYERS, names[3]: LAYERS}
    assert all(-1 <= value <= 1 for value in columns["value"])
    page = Path(told["page"]).read_text()
    assert "Agreement along the depth" in page
    assert "Cosines by kind of layer" in Path(told["table"]).read_text()


@pytest.mark.parametrize(
    ("words", "fix"),
    [(["--seeds", "3"], "at least two"), (["--seeds", "0", "1", "--threshold", "1.5"], "not between 0 and 1")],
)
def test_faults_are_told_in_one_line(loralign: Any, adapting: list[str], words: list[str], fix: str) -> None:
    assert_refused(loralign("stability", *adapting, *words), fix)
