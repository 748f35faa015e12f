"""One answer against its references: language, exact match, token F1, and which class it names.

English follows SQuAD's evaluation script: lower case, without punctuation and articles, F1 over the
bag of words; a text of articles alone ("A", a letter to choose) keeps them. Chinese has no blanks
between words: there F1 is over characters (runs of Latin letters and digits are words), and an
exact match ignores punctuation, blanks and full-width forms.
Of several references the best one counts. No torch.

    python -m pytest tests/qwen_clip_llava_lora/test_answer_scores.py

Source of the English rules: https://github.com/allenai/bi-att-flow/blob/master/squad/evaluate-v1.1.py
(Rajpurkar et al. 2016); two empty texts are equal (F1 1), as in SQuAD 2.0's script.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from shared.caption_tokens import tokenize_caption

Language = Literal["en", "zh"]
# How the answer was matched to a class; the last two are no class.
Match = Literal["exact", "contained", "several classes", "no class"]

EXACT_MATCH_RULE = (
    "Equal to a reference after normalisation: English in lower case without punctuation and "
    "articles (SQuAD's script), Chinese without punctuation and blanks (NFKC)"
)
TOKEN_F1_RULES: dict[Language, str] = {
    "en": "words, as SQuAD's script",
    "zh": "characters; runs of Latin letters and digits are words",
}
LANGUAGE_RULE = (
    "A text is Chinese when at least half of its tokens are Chinese characters; a sample has the "
    "language of its row's answer, and caption references in another language are left out"
)
CLASS_RULE = (
    "The normalised answer is the class's normalised name, or holds, as whole words, the name of "
    "one class alone; a name inside a longer one ('dog' in 'hot dog') does not count"
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[a-z0-9]")


def language_of(text: str) -> Language:
    """`LANGUAGE_RULE`; a text without a token is English."""
    tokens = tokenize_caption(text, "zh")
    chinese = sum(is_chinese(token) for token in tokens)
    return "zh" if chinese and 2 * chinese >= len(tokens) else "en"


def is_chinese(token: str) -> bool:
    return len(token) == 1 and ord(token) > 0x2E7F and token.isalpha()


def normalise(text: str, language: Language) -> str:
    """The form in which an exact match is looked for."""
    if language == "zh":
        return "".join(tokenize_caption(text, "zh"))
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split() or plain.split())


def words(text: str, language: Language) -> list[str]:
    """The tokens that F1 counts."""
    return tokenize_caption(text, "zh") if language == "zh" else normalise(text, "en").split()


def exact_match(answer: str, references: Sequence[str], language: Language) -> int:
    """1 when the answer equals a reference in normalised form, else 0."""
    said = normalise(answer, language)
    return int(any(said == normalise(reference, language) for reference in references))


def token_f1(answer: str, references: Sequence[str], language: Language) -> float:
    """The best F1 over the references, 0..1."""
    said = words(answer, language)
    return max(f1_of(said, words(reference, language)) for reference in references)


def f1_of(said: Sequence[str], reference: Sequence[str]) -> float:
    if not said or not reference:
        return float(said == reference)
    common = sum((Counter(said) & Counter(reference)).values())
    return 2 * common / (len(said) + len(reference))


def matched_class(
    answer: str, classes: Sequence[str], language: Language
) -> tuple[str | None, Match]:
    """The class that an answer names, by `CLASS_RULE`, and how; None for no class or several."""
    said = normalise(answer, language)
    names = {name: normalise(name, language) for name in classes}
    for name, form in names.items():
        if form == said:
            return name, "exact"
    found = []
    for name, form in sorted(names.items(), key=lambda item: -len(item[1])):
        if not form:
            continue
        pattern = whole_words(form)
        if pattern.search(said):
            found.append(name)
            said = pattern.sub(" # ", said)  # a shorter name inside it is no second one
    if len(found) == 1:
        return found[0], "contained"
    return None, "several classes" if found else "no class"


def whole_words(form: str) -> re.Pattern[str]:
    """A name with no Latin letter or digit right before or behind it; Chinese has no such edge."""
    before = r"(?<![a-z0-9])" if _WORD.match(form[0]) else ""
    behind = r"(?![a-z0-9])" if _WORD.match(form[-1]) else ""
    return re.compile(before + re.escape(form) + behind)
