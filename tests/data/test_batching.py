from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from loralign.data.batching import make_batch, pad_sequences, padded_length, plan_batches


@given(st.integers(1, 4096))
def test_padded_length_holds_the_tokens_and_wastes_little(length: int) -> None:
    padded = padded_length(length)
    assert length <= padded
    assert padded < length + 32 or padded < 1.5 * length
    assert padded_length(padded) == padded


def test_there_are_few_lengths() -> None:
    assert len({padded_length(length) for length in range(1, 4097)}) == 14


@given(st.integers(1, 300), st.integers(1, 300))
def test_limit_is_kept_unless_the_sequence_is_longer(length: int, limit: int) -> None:
    padded = padded_length(length, limit)
    assert length <= padded <= max(length, limit)


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 2000))
def test_plan_holds_every_sequence_once_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    plan = list(plan_batches(lengths, batch_tokens))
    assert sorted(index for members, _ in plan for index in members) == list(range(len(lengths)))
    for members, length in plan:
        assert max(lengths[index] for index in members) <= length
        assert len(members) == 1 or len(members) * length <= batch_tokens
    counts = {(length, len(members)) for members, length in plan[:-1]}
    assert len(counts) == len({length for length, _ in counts})


def test_padding_sides() -> None:
    ids, mask = pad_sequences([[5, 6], [7]], 3, side="left", pad_id=9)
    assert ids.tolist() == [[9, 5, 6], [9, 9, 7]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1]]
    ids, mask = pad_sequences([[5, 6], [7]], 3)
    assert ids.tolist() == [[5, 6, 0], [7, 0, 0]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_rows_are_the_response_tokens() -> None:
    batch = make_batch([[4, 5, 6, 7], [8, 9]], [2, 0], 5, row_multiple=4)
    assert batch.count == 3
    assert batch.sequence.tolist() == [0, 0, 1, 1]
    assert batch.position.tolist() == [1, 2, 0, 0]
    assert batch.labels.tolist() == [6, 7, 9, 9]
    assert torch.equal(batch.attention_mask.sum(1), torch.tensor([4, 2]))
