"""The bundled task: orders to write down as JSON."""

from __future__ import annotations

import json
import re

import pytest

from loralign.data import load_task
from loralign.data.builtin_task import ROWS
from loralign.errors import DataError


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_order_can_be_read_out_of_its_message(split: str) -> None:
    rows = load_task("builtin", split=split)
    assert len(rows) == ROWS[split]
    words = {3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "a dozen", 24: "two dozen"}
    for row in rows:
        message = row["prompt"][0]["content"]
        order = json.loads(row["completion"][0]["content"])
        assert list(order) == ["name", "item", "number", "day", "note"]
        assert order["name"] in message
        assert order["day"] in message
        assert order["item"].removesuffix("loaf").lower() in message.lower()
        number = rf"\b({order['number']}|{words[order['number']]})\b"
        assert re.search(number, message, flags=re.IGNORECASE)
        assert "{" not in message
        assert "  " not in message


def test_the_splits_share_no_message_and_are_always_the_same() -> None:
    train, validation = (load_task(f"builtin:{split}") for split in ROWS)
    messages = [row["prompt"][0]["content"] for row in (*train, *validation)]
    assert len(set(messages)) == len(messages) == sum(ROWS.values())
    assert messages[0] == load_task("builtin", limit=1)[0]["prompt"][0]["content"]
    # A change of words or of the order of drawing changes what everybody's demonstration trains on.
    assert messages[0] == FIRST


def test_another_split_is_refused() -> None:
    with pytest.raises(DataError, match="no split 'test'"):
        load_task("builtin:test")


FIRST = "12 cinnamon buns on Friday, please. It is a present, so a gift box would be lovely. Best wishes, Luca"
