from __future__ import annotations

from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from loralign.data.sampler import ObjectiveSampler
from loralign.errors import ConfigError, DataError

LABELS = [0] * 40 + [1] * 12 + [2] * 5


def _steps(sampler):
    order = list(sampler)
    size = sampler.step_size
    return [order[start : start + size] for start in range(0, len(order), size)]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 6),
    mode=st.sampled_from(["balanced", "proportional"]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_every_step_sees_every_objective(counts, micro, accumulation, mode, seed, epoch):
    labels = [objective for objective, count in enumerate(counts) for _ in range(count)]
    if micro * accumulation < len(counts):
        return
    sampler = ObjectiveSampler(
        labels, len(counts), step_size=micro * accumulation, micro_batch=micro, mode=mode, seed=seed
    )
    sampler.set_epoch(epoch)
    steps = _steps(sampler)
    assert len(sampler) == sum(map(len, steps))
    for step in steps:
        seen = Counter(labels[row] for row in step)
        assert set(seen) == set(range(len(counts)))
        if mode == "balanced":
            assert max(seen.values()) - min(seen.values()) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = ObjectiveSampler(LABELS, 3, step_size=6, micro_batch=3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_no_row_comes_twice_before_its_objective_is_exhausted():
    sampler = ObjectiveSampler(LABELS, 3, step_size=6, micro_batch=6)
    order = list(sampler)
    for objective, count in enumerate((40, 12, 5)):
        rows = [row for row in order if LABELS[row] == objective]
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            assert len(set(part)) == len(part)


def test_proportions_are_those_of_the_data_and_remainders_take_turns():
    sampler = ObjectiveSampler([0] * 70 + [1] * 20 + [2] * 10, 3, step_size=10, micro_batch=10, mode="proportional")
    seen = Counter(min(row // 70 + (row >= 90), 2) for row in sampler)
    assert seen == {0: 70, 1: 20, 2: 10}
    balanced = ObjectiveSampler([0, 1, 2] * 20, 3, step_size=4, micro_batch=4)
    assert Counter(row % 3 for row in balanced) == {0: 20, 1: 20, 2: 20}


def test_micro_batches_are_mixed_alike_and_grouped():
    sampler = ObjectiveSampler(LABELS, 3, step_size=12, micro_batch=3)
    for step in _steps(sampler):
        for start in range(0, 12, 3):
            assert [LABELS[row] for row in step[start : start + 3]] == [0, 1, 2]


def test_processes_share_out_the_same_steps():
    def sampler():
        return BatchSampler(ObjectiveSampler(LABELS, 3, step_size=12, micro_batch=3), batch_size=3, drop_last=False)

    whole = list(sampler())
    ranks = [list(BatchSamplerShard(sampler(), 2, rank)) for rank in range(2)]
    for step in range(len(whole) // 4):
        alone = {row for batch in whole[4 * step : 4 * step + 4] for row in batch}
        together = {row for rank in ranks for batch in rank[2 * step : 2 * step + 2] for row in batch}
        assert alone == together


def test_faults_are_named():
    with pytest.raises(ConfigError, match="cannot hold 3 objectives"):
        ObjectiveSampler(LABELS, 3, step_size=2, micro_batch=1)
    with pytest.raises(ConfigError, match="no multiple"):
        ObjectiveSampler(LABELS, 3, step_size=7, micro_batch=2)
    with pytest.raises(ConfigError, match="sampling 'odd'"):
        ObjectiveSampler(LABELS, 3, step_size=6, micro_batch=2, mode="odd")
    with pytest.raises(DataError, match="objective 1 has no rows"):
        ObjectiveSampler([0, 2], 3, step_size=3, micro_batch=3)
    with pytest.raises(DataError, match="row 1"):
        ObjectiveSampler([0, 7], 1, step_size=2, micro_batch=2)
