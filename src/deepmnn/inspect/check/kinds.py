"""What a text looks like: a language or a script, code, a chat. For people, not for a verdict."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CJK": "Chinese",
    "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Devanagari",
    "THAI": "Thai",
}
"""The first word of a letter's Unicode name → what to call a text of many such letters."""

_WORDS = {
    "English": "the and of to is that for with was this you are",
    "French": "le les des est une dans pour que qui sur pas avec",
    "German": "der die das und ist nicht ein eine mit auf den zu",
    "Spanish": "el los las una que por para con está como más del",
    "Italian": "il che di per una sono con della non gli questo",
    "Portuguese": "uma não que para com os são mais por dos isso",
}
_CODE = re.compile(
    r"[{};]\s*$|^\s*(def|class|import|from|return|for|if|#include|func|let|const|var|public|static)\b"
    r"|=>|==|\+=|\w\(.*\)\s*[:;{]?\s*$",
    re.M,
)
_MANY = 0.2
"""Share of letters from which a script names a text."""


def kind_of(text: str) -> str:
    """ "Chinese", "code", "English", ... or "other text"."""
    lines = [line for line in text.splitlines() if line.strip()]
    letters = [c for c in text if c.isalpha()]
    scripts = Counter(
        _SCRIPTS.get(unicodedata.name(c, "").split(" ")[0].split("-")[0], "") for c in letters
    )
    named = [(count, name) for name, count in scripts.items() if name]
    if any(name == "Japanese" for _, name in named) and scripts["Japanese"] > 0.05 * len(letters):
        return "Japanese"
    if named and max(named)[0] > _MANY * len(letters):
        return max(named)[1]
    if lines and sum(bool(_CODE.search(line)) for line in lines) > 0.3 * len(lines):
        return "code"
    words = re.findall(r"[^\W\d_]+", text.lower())
    found = {name: sum(word in known.split() for word in words) for name, known in _WORDS.items()}
    best = max(found, key=lambda name: found[name])
    return best if found[best] > 0.05 * len(words) else "other text"
