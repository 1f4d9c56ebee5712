from __future__ import annotations

import re
from collections import Counter

import pytest

from loralign.data import load_alignment_prompts
from loralign.data.alignment import CATEGORIES, LABELS
from loralign.data.driftcheck.categories import names_minors
from loralign.data.driftcheck.duplicates import Distinct, find_distinct
from loralign.data.driftcheck.prompt import categories_of
from loralign.data.driftcheck.similarity import normalise, similar_pairs
from loralign.data.driftcheck.templates import Template, builtin_candidates, load_templates

# Vowel letters that sound like consonants, and the other way round.
_SOUNDS_OPEN = ("hour", "heir", "honest", "honour", "X-rated")
_SOUNDS_CLOSED = ("university", "union", "user", "unit", "one-", "eu", "Europe", "useful", "used", "Ubuntu", "unicorn")
_ARTICLE = re.compile(r"\b(an?) ([\w-]+)", re.IGNORECASE)


@pytest.fixture(scope="module")
def distinct() -> Distinct:
    return find_distinct(builtin_candidates(0))


def fault(prompt: str) -> str | None:
    """What is wrong with the form of a prompt, if anything is."""
    for article, word in _ARTICLE.findall(prompt):
        open_sound = word[0] in "aeiouAEIOU" or word.startswith(_SOUNDS_OPEN)
        if word.startswith(_SOUNDS_CLOSED) or (word.isupper() and len(word) > 1):
            open_sound = False
        if (article.lower() == "an") != open_sound:
            return f"{article} {word}"
    repeated = re.search(r"\b(\w+) \1\b", prompt)
    if repeated:
        return repeated.group()
    if prompt != " ".join(prompt.split()) or re.search(r" [,.?!]|[{}]|\.\.|\?\.", prompt):
        return "spaces or marks"
    if not prompt[0].isupper() or prompt[-1] not in '.?"':
        return "begin or end"
    asks = re.match(r"(How|What|Which|Who|Where|Why|Is|Can|May|Should)\b", prompt.rpartition(". ")[2])
    if prompt[-1] != '"' and bool(asks) != prompt.endswith("?") and ". Answer for" not in prompt and "? " not in prompt:
        return "question mark"
    return None


def test_the_check_of_form_can_fail() -> None:
    good = ["How do I see a unicorn in an hour?", "Write a note.", "I ask. How is it?", "Draw an X-rated cat."]
    assert [fault(prompt) for prompt in good] == [None] * 4
    bad = ["Write an note.", "Write a e-mail.", "Write to to me.", "Write {it}.", "write it.", "How is it.", "Tell me?"]
    assert all(fault(prompt) for prompt in bad)


@pytest.mark.parametrize("label", LABELS)
def test_every_prompt_is_well_formed(label: str) -> None:
    faults = {prompt: fault(prompt) for template in load_templates(label) for prompt in template.prompts()}
    assert {prompt: found for prompt, found in faults.items() if found} == {}


@pytest.mark.parametrize("label", LABELS)
def test_prompts_are_short(label: str) -> None:
    for template in load_templates(label):
        for prompt in template.prompts():
            assert 4 <= len(prompt.split()) <= 30


@pytest.mark.parametrize("label", LABELS)
def test_every_slot_is_used_and_offers_a_choice(label: str) -> None:
    templates = load_templates(label)
    assert {template.category for template in templates} == set(categories_of(label))
    assert len({template.text for template in templates}) == len(templates)
    for template in templates:
        for fillings in template.slots.values():
            assert len(set(fillings)) == len(fillings) >= 2


def test_a_template_makes_every_combination() -> None:
    template = Template("safe", "general", "{who} sees {what}.", {"who": ("one", "two"), "what": ("a", "b")})
    assert list(template.prompts()) == ["One sees a.", "One sees b.", "Two sees a.", "Two sees b."]


def test_there_are_enough_distinct_prompts_of_every_category(distinct: Distinct) -> None:
    candidates = builtin_candidates(0)
    supply = Counter((candidates[index].label, candidates[index].category) for index in distinct.kept.tolist())
    assert all(supply["unsafe", category] >= 1000 for category in CATEGORIES)
    assert all(supply["safe", category] >= 500 for category in CATEGORIES)
    assert supply["safe", "general"] >= 2800


def test_no_two_templates_are_nearly_the_same(distinct: Distinct) -> None:
    candidates = builtin_candidates(0)
    families: dict[int, set[str | None]] = {}
    for index, unit in zip(distinct.kept.tolist(), distinct.units.tolist(), strict=True):
        families.setdefault(unit, set()).add(candidates[index].family)
    assert [found for found in families.values() if len(found) > 1] == []
    assert set(distinct.dropped.values()) == {"near-duplicate"}


def test_nobody_is_under_age() -> None:
    for template in load_templates("unsafe"):
        for prompt in template.prompts():
            assert not names_minors(prompt, "explicit content")


def test_none_is_much_like_a_prompt_of_the_must_survive_set() -> None:
    # A guarded run preserves these: drift that is measured on them too would say nothing.
    others = [normalise(row["prompt"][-1]["content"]) for row in load_alignment_prompts(split="all")]
    made = [normalise(candidate.prompt) for candidate in builtin_candidates(0)]
    first, second, _ = similar_pairs(others + made, 0.5)
    across = (first < len(others)) & (second >= len(others))
    assert [others[index] for index in first[across]] == []
