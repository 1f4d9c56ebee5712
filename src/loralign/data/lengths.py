"""Limiting the length of pairs in tokens, with a count of what that drops or cuts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from trl.data_utils import common_prefix_length

from loralign.data.preferences import Preferences, make_preferences
from loralign.data.rendering import encode, render
from loralign.errors import DataError

Policy = Literal["drop", "truncate"]
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class LengthReport:
    """What a length limit did, in pairs per objective.

    Args:
        max_length: limit of prompt and completion together, in tokens.
        max_prompt_length: limit of the prompt alone, or None.
        policy: ``"drop"`` or ``"truncate"``.
        kept: pairs that stay, cut ones included.
        dropped: pairs taken out.
        truncated: pairs that stay and will be cut at ``max_length`` by the collator.
        quantiles: the 0.5, 0.9, 0.99 and 1.0 quantiles of the longer side of each pair in tokens, before the limit.
    """

    max_length: int
    max_prompt_length: int | None
    policy: Policy
    kept: dict[str, int]
    dropped: dict[str, int]
    truncated: dict[str, int]
    quantiles: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [
            f"{name}: {self.kept[name]} kept, {self.dropped[name]} dropped, {self.truncated[name]} truncated"
            for name in self.kept
        ]
        return f"at most {self.max_length} tokens ({self.policy}); " + "; ".join(parts)


@dataclass(frozen=True)
class PairTokens:
    """Token ids of a pair, split as TRL splits them: where prompt and prompt-with-completion part ways."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer completion."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def tokenize_pair(row: dict[str, Any], tokenizer: Any) -> PairTokens:
    """Tokenise a pair as TRL's DPOTrainer does: chat template for messages, an end-of-text token after plain texts."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if isinstance(prompt, str):
        end = tokenizer.eos_token or ""
        texts = [text if text.endswith(end) else text + end for text in (chosen, rejected)]
        prompt_ids, *both = (encode(prompt + text, tokenizer) for text in ("", *texts))
    else:
        prompt_ids = render(prompt, tokenizer, add_generation_prompt=True)
        both = [render(prompt + completion, tokenizer) for completion in (chosen, rejected)]
    start = min(common_prefix_length(prompt_ids, ids) for ids in both)
    return PairTokens(prompt_ids[:start], both[0][start:], both[1][start:])


def limit_length(
    preferences: Preferences,
    tokenizer: Any,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    policy: Policy = "drop",
) -> tuple[Preferences, LengthReport]:
    """Take out the pairs that are too long, or count those that the collator will cut.

    TRL's collator keeps the first ``max_length`` tokens. A pair whose prompt fills them, or whose completions begin
    alike for as long as they last, has nothing left to learn from and is dropped under either policy.

    Args:
        preferences: the pairs.
        tokenizer: the tokenizer that the model will be trained with.
        max_length: most tokens of prompt and completion together.
        max_prompt_length: most tokens of the prompt; pairs with longer ones are dropped.
        policy: ``"drop"`` drops every pair longer than ``max_length``, ``"truncate"`` leaves them to be cut.

    Raises:
        DataError: a limit or the policy is impossible, the tokenizer has no chat template, or an objective is left
            without pairs.
    """
    _check_limits(preferences, tokenizer, max_length, max_prompt_length, policy)
    kept: dict[str, int] = dict.fromkeys(preferences.objectives, 0)
    dropped, truncated = dict(kept), dict(kept)
    lengths: dict[str, list[int]] = {name: [] for name in preferences.objectives}
    rows = []
    for row in preferences.dataset:
        tokens, name = tokenize_pair(row, tokenizer), row["objective"]
        lengths[name].append(tokens.longest)
        too_long = tokens.longest > max_length
        long_prompt = max_prompt_length is not None and len(tokens.prompt) > max_prompt_length
        if long_prompt or (too_long and (policy == "drop" or not _learnable(tokens, max_length))):
            dropped[name] += 1
            continue
        kept[name] += 1
        truncated[name] += too_long
        rows.append(row)
    for name, count in kept.items():
        if count == 0:
            raise DataError(
                f"no pair of the objective {name!r} is within {max_length} tokens "
                f"(the shortest has {min(lengths[name])})",
                place="max_length" if max_prompt_length is None else "max_length, max_prompt_length",
                fix="raise the limit" if policy == "truncate" else "raise the limit, or truncate instead of dropping",
            )
    quantiles = {name: tuple(map(float, np.quantile(values, QUANTILES))) for name, values in lengths.items()}
    report = LengthReport(max_length, max_prompt_length, policy, kept, dropped, truncated, quantiles)
    return make_preferences(rows, preferences.objectives, preferences.sources), report


def _learnable(tokens: PairTokens, max_length: int) -> bool:
    room = max_length - len(tokens.prompt)
    return room > 0 and tokens.chosen[:room] != tokens.rejected[:room]


def _check_limits(
    preferences: Preferences, tokenizer: Any, max_length: int, max_prompt_length: int | None, policy: str
) -> None:
    for name, limit in (("max_length", max_length), ("max_prompt_length", max_prompt_length)):
        if limit is not None and limit < 1:
            raise DataError(f"a limit of {limit} tokens", place=name, fix="use a positive number")
    if policy not in ("drop", "truncate"):
        raise DataError(f"no length policy {policy!r}", place="policy", fix="use drop or truncate")
    if preferences.format == "conversational" and not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the data is conversational, but the model's tokenizer has no chat template",
            place=", ".join(preferences.sources),
            fix="use an instruction-tuned model, or write the data as plain text",
        )
