"""The task that comes with loralign: read an order out of a message and write it down as JSON.

Every message is made from sentences and words written for this project; a seeded generator decides which, so the rows
are the same everywhere. The two splits share no message, but their sentences: held-back rows say how well the task was
learnt, not how well it carries over to other people's messages. No instruction says what to do with a message, as in
many a data set that was collected from a working system: what is learnt is a way to answer, and it spreads to other
prompts. See ``builtin/MEASURING.md``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from loralign.errors import DataError

ROWS = {"train": 480, "validation": 96}

_NAMES = (
    *("Amara", "Bodil", "Chidi", "Danica", "Emre", "Farah", "Gustavo", "Hana", "Ines", "Jonas", "Kavya", "Luca"),
    *("Mirela", "Nils", "Oksana", "Paulo", "Quynh", "Rosa", "Samir", "Tove", "Ulrich", "Vera", "Wanjiru", "Yusuf"),
)
_ITEMS = (
    *("rye loaf", "seeded roll", "plum cake", "cheese straw", "cinnamon bun", "barley bread", "apple tart"),
    *("spinach pie", "oat biscuit", "lemon slice", "poppy pretzel", "carrot muffin", "honey cake", "onion flatbread"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NOTES = {
    "": ("", "", "Thank you!", "Looking forward to it."),
    "sliced": ("Sliced, please.", "Could you slice it all?"),
    "no nuts": ("Nothing with nuts, we have an allergy here.", "Please keep nuts well away from it."),
    "gift box": ("It is a present, so a gift box would be lovely.", "In a gift box, if you have one."),
    "paid already": ("I have paid already.", "The bill is settled, I paid online."),
    "ring the bell": ("Ring the bell, the door is closed.", "Please ring when you come by."),
}
_MESSAGES = (
    "Hello, {name} here. I would like {number} {items} for {day}. {note}",
    "{number} {items} on {day}, please. {note} Best wishes, {name}",
    "Could you put aside {number} {items}? I will come by on {day}. {note} {name}",
    "It is {name} again. On {day} we are expecting guests and need {number} {items}. {note}",
    "For {day}: {number} {items}. The name is {name}. {note}",
    "Good morning! I was told that you take orders: {number} {items} for {name}, please. {day} would suit us. {note}",
    "{note} And otherwise the same as ever, {number} {items} on {day} for {name}.",
    "Do you bake {items}? If so, {number} of them for {name}, to be fetched on {day}. {note}",
    "I rang on the phone but nobody was there. {name}, {number} {items}, {day}. {note}",
    "Please change our order: not two but {number} {items}, and {day} in place of the day before. {note} Yours, {name}",
)
_NUMBERS = {3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "a dozen", 24: "two dozen"}


def builtin_task(split: str) -> list[dict[str, Any]]:
    """Rows of the bundled task, in TRL's conversational prompt-completion form.

    Args:
        split: ``train`` (480 rows) or ``validation`` (96).

    Returns:
        Rows with ``prompt`` and ``completion``, each a list of one message.

    Raises:
        DataError: there is no such split.
    """
    if split not in ROWS:
        raise DataError(
            f"the bundled task has no split {split!r}", place=f"builtin:{split}", fix=f"use {' or '.join(ROWS)}"
        )
    orders = list(_orders(sum(ROWS.values())))
    chosen = orders[: ROWS["train"]] if split == "train" else orders[ROWS["train"] :]
    return [
        {
            "prompt": [{"role": "user", "content": message}],
            "completion": [{"role": "assistant", "content": json.dumps(order)}],
        }
        for message, order in chosen
    ]


def _orders(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """So many different messages, each with the order in it."""
    generator, seen = random.Random(20_240_501), set[str]()  # noqa: S311
    while len(seen) < count:
        number = generator.choice(list(_NUMBERS))
        item = generator.choice(_ITEMS)
        note = generator.choice(list(_NOTES))
        order = {
            "name": generator.choice(_NAMES),
            "item": item,
            "number": number,
            "day": generator.choice(_DAYS),
            "note": note,
        }
        words = generator.choice(_MESSAGES).format(
            name=order["name"],
            number=generator.choice((_NUMBERS[number], str(number))),
            items=_plural(item),
            day=order["day"],
            note=generator.choice(_NOTES[note]),
        )
        message = " ".join(words.split())
        message = message[0].upper() + message[1:]
        if message not in seen:
            seen.add(message)
            yield message, order


def _plural(item: str) -> str:
    return f"{item[:-4]}loaves" if item.endswith("loaf") else f"{item}s"
