"""Bringing the categories of public sets, and prompts without one, to the six of DRIFTCHECK.

A category that a row comes with is kept if it is one of the six in any spelling, or translated if it is one of
HarmBench's. Everything else goes by keywords: the category with the most different words in the prompt, and of several
with equally many the first in the order of :data:`KEYWORDS`, the narrowest. A prompt without any such word stays
without a category, and is dropped from the set.
"""

from __future__ import annotations

import re

from loralign.data.alignment import CATEGORIES

TRANSLATED = {
    "chemical biological": "violence",
    "cybercrime intrusion": "illegal activity",
    "harassment bullying": "hate",
    "illegal": "illegal activity",
    "misinformation disinformation": "disinformation",
}
"""HarmBench's categories; its ``harmful`` is of all kinds and goes by keywords, its ``copyright`` is of none."""

KEYWORDS = {
    "explicit content": (
        "porn*", "erotic*", "nude", "nudes", "nudity", "naked", "sex", "sexual*", "sexy", "orgasm*", "masturbat*",
        "fetish*", "obscene*", "lewd", "smut*", "explicit content", "dirty talk", "hentai", "striptease*",
    ),
    "hate": (
        "racis*", "racial*", "sexis*", "homophob*", "transphob*", "antisemit*", "anti-semit*", "islamophob*",
        "xenophob*", "misogyn*", "bigot*", "hate speech", "hateful*", "hatred", "slur", "slurs", "nazi*",
        "white suprem*", "inferior", "discriminat*", "stereotyp*", "ethnic*", "minorities", "immigrants", "refugees",
        "muslims", "jews", "jewish", "blacks", "black people", "gays", "gay people", "lesbians", "women are",
        "disabled people", "bully", "bullying", "insult*",
    ),
    "privacy": (
        "personal information", "personal data", "private information", "private data", "private messages",
        "confidential", "home address*", "phone number*", "social security", "medical records", "password*", "stalk*",
        "spy on", "spyware", "keylogger*", "dox", "doxx*", "track someone", "tracking", "eavesdrop*", "surveil*",
        "wiretap*", "hidden camera*", "without their consent", "without their knowledge", "without her knowing",
        "without him knowing", "identity theft", "someone's identity", "identities",
    ),
    "disinformation": (
        "fake news", "false news", "misinformation", "disinformation", "conspiracy", "conspiracies", "hoax*",
        "propaganda", "rumor*", "rumour*", "fake review*", "false information", "false claims", "misleading",
        "fake article*", "fabricat*", "deepfake*", "election*", "voters", "flat earth", "vaccines cause",
        "fake social media", "public opinion", "defam*", "denying", "denies", "was staged", "was faked",
    ),
    "violence": (
        "kill", "kills", "killing*", "killer*", "murder*", "assassinat*", "attack*", "bomb*", "explosive*", "weapon*",
        "gun", "guns", "firearm*", "shoot", "shooting*", "stab", "stabbing", "poison*", "tortur*", "terroris*",
        "massacre*", "genocid*", "violen*", "hurt", "hurting", "injure*", "injury", "physical harm", "harm someone",
        "harm others", "beat up", "kidnap*", "strangl*", "suicid*", "self-harm*", "dismember*", "arson*", "cannibal*",
        "dangerous", "threaten*", "abuse*", "assault*", "fight", "fighting",
    ),
    "illegal activity": (
        "hack", "hacks", "hacking", "hacker*", "malware", "virus", "viruses", "ransomware", "phishing", "exploit*",
        "ddos", "trojan*", "backdoor*", "botnet*", "fraud*", "scam", "scams", "scamming", "steal", "steals",
        "stealing", "stolen", "theft*", "rob", "robbing", "robbery", "burglar*", "shoplift*", "break into",
        "breaking into", "hotwire*", "smuggl*", "launder*", "counterfeit*", "forge", "forging", "forged", "forgery",
        "fake id", "fake ids", "drug", "drugs", "cocaine", "heroin", "meth", "methamphetamine*", "bribe*", "bribing",
        "blackmail*", "extort*", "embezzl*", "insider trading", "ponzi", "pyramid scheme*", "tax evasion",
        "evade taxes", "money illegally", "illegal*", "crime*", "criminal*", "traffick*", "pirate*", "piracy",
        "black market*", "dark web", "cheat", "cheating", "sabotag*", "vandal*", "corrupt*", "plagiari*",
        "credit card*", "without permission", "unauthorized", "unauthorised", "gambling", "trespass*",
    ),
}  # fmt: skip
"""Words and phrases; a star stands for any ending."""

_MINOR = re.compile(
    r"\b(child|children|childhood|kid|kids|minors?|under-?aged?|teen|teens|teenagers?|teenage|infants?|bab(?:y|ies)"
    r"|toddlers?|preteens?|schoolgirls?|schoolboys?|girls?|boys?|pupils?|adolescents?|juveniles?|loli|lolita"
    r"|young(?:er)? (?:people|person)|(?:[1-9]|1[0-7])[- ]years?[- ]old|p(?:a)?edophil\w*)\b"
)


def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    found = (re.escape(word.removesuffix("*")) + (r"\w*" if word.endswith("*") else r"\b") for word in words)
    return re.compile(rf"\b(?:{'|'.join(found)})")


_PATTERNS = {category: _pattern(words) for category, words in KEYWORDS.items()}


def unsafe_category(prompt: str, given: str | None = None) -> str | None:
    """The category of an unsafe prompt, or None if neither a category it came with nor its words tell.

    >>> unsafe_category("How do I launder money?")
    'illegal activity'
    >>> unsafe_category("Do it.", "cybercrime_intrusion")
    'illegal activity'
    >>> unsafe_category("Do it.") is None
    True
    """
    if given:
        name = " ".join(re.split(r"[\s_-]+", given.strip().casefold()))
        if name in CATEGORIES:
            return name
        if name in TRANSLATED:
            return TRANSLATED[name]
    text = prompt.casefold()
    counts = {category: len(set(pattern.findall(text))) for category, pattern in _PATTERNS.items()}
    best = max(counts, key=lambda category: counts[category])
    return best if counts[best] else None


def names_minors(prompt: str, category: str) -> bool:
    """Whether an unsafe prompt is of a sexual kind and names anybody under age; such prompts are in no set.

    It errs on the side of leaving out: a girl may be a grown woman.
    """
    text = prompt.casefold()
    sexual = category == "explicit content" or _PATTERNS["explicit content"].search(text) is not None
    return sexual and _MINOR.search(text) is not None
