"""Which class of a list a free answer names: the class, "unknown", "abstain" or "ambiguous".

An answer is normalised, cut into words, and read from left to right: the longest known term at each
place counts (names, plurals, synonyms, kinds, Chinese names of all 80 COCO classes, the list's own
names, and compounds that only look like one, such as hot dog or bus stop). Terms in the scope of a
negation do not count. What is known about the classes stands in `classes.json`; a class outside
COCO works by its name and plural alone.

    python -c "from llava_openset.matching import match_answer as m; print(m('a pug', ['dog']))"

No model, no torch. Limits: negation is found by rules, not by parsing, and a verb that reads like a
class (to train, to park) is taken for it. Two classes in one answer are ambiguous, whatever the
sentence says about which is the main one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava_openset.answer_words import (
    BODY,
    COLOURS,
    FUNCTION,
    FUNCTION_ZH,
    STANDING,
    VERBS,
    ZH_LEFT,
    ZH_RIGHT,
    Key,
    Mention,
    Token,
    is_chinese,
    key_of,
    normalise,
    tokens_of,
)
from llava_openset.negation import silenced

__all__ = ["keyword_match", "match_answer", "normalise", "plural", "synonyms"]

UNKNOWN, ABSTAIN, AMBIGUOUS = "unknown", "abstain", "ambiguous"
CLASSES_FILE = Path(__file__).with_name("classes.json")


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return json.loads(CLASSES_FILE.read_text(encoding="utf-8"))


@lru_cache(maxsize=65536)
def plural(name: str) -> str:
    """The usual plural: "hot dog" -> "hot dogs", "cross" -> "crosses", "skis" -> "skis".

    COCO's classes and irregular words from classes.json; else by rule, on the last word. A name
    that ends in a single s (stripes, stairs) is taken to be a plural already.
    """
    if name.lower() in _data()["classes"]:
        return _data()["classes"][name.lower()]["plural"]
    head, word = re.fullmatch(r"(.*?)([^\s_-]*)", name, re.DOTALL).groups()
    lower = word.lower()
    irregular = _data()["irregular_plurals"]
    if lower in _data()["only_plural"] or not word.isascii() or not word:
        return name
    if lower in irregular:
        new = irregular[lower]
    elif lower.endswith("man"):
        new = lower[:-2] + "en"
    elif re.search(r"(ss|us|is|x|z|ch|sh)$", lower):
        new = lower + "es"
    elif re.search(r"[^aeiou]y$", lower):
        new = lower[:-1] + "ies"
    elif lower.endswith("s"):
        new = lower
    else:
        new = lower + "s"
    # The letters that stay keep their case: DVD -> DVDs.
    return head + (word + new[len(word) :] if new.startswith(lower) else new)


def _singular_of_plural_name(name: str) -> str | None:
    """ "stripes" -> "stripe", for classes that are named in the plural; None for the others."""
    if plural(name) != name or name.lower() in _data()["classes"] or not name.endswith("s"):
        return None
    if name.split()[-1].lower() in (*_data()["only_plural"], *_data()["irregular_plurals"]):
        return None
    if name.endswith("ies"):
        return name[:-3] + "y"
    return name[:-2] if re.search(r"(ss|sh|ch|x|z)es$", name) else name[:-1]


@lru_cache(maxsize=1)
def _equals() -> dict[Key, str]:
    """Names that mean just the COCO class: key -> class. A kind (puppy) is not among them."""
    table: dict[Key, str] = {}
    for name, entry in _data()["classes"].items():
        names = [name, *entry.get("synonyms", [])]
        for term in [*names, *map(plural, names), *entry["chinese"]]:
            table.setdefault(key_of(term), name)
    return table


@lru_cache(maxsize=1)
def _vocabulary() -> dict[Key, str | None]:
    """Every known term -> its COCO class, or None for what only looks like one."""
    data = _data()
    table: dict[Key, str | None] = {}
    for entry in data["classes"].values():
        for term in entry.get("not", []):
            table[key_of(term)] = table[key_of(plural(term))] = None
    animals: dict[Key, str] = {}
    names: dict[Key, str | None] = {}
    for name, entry in data["classes"].items():
        for term in entry.get("kinds", []):
            names[key_of(term)] = names[key_of(plural(term))] = name
        for term in entry.get("chinese_kinds", []):
            names[key_of(term)] = name
        for sense in entry.get("other_senses", []):  # brackets are tokens: kite ( bird )
            names[(*key_of(name), "(", *key_of(sense))] = (
                sense if sense in data["classes"] else None
            )
        if entry.get("heads") == "animal":
            own = [key for key, owner in names.items() if owner == name]
            own += [key for key, owner in _equals().items() if owner == name]
            animals |= {
                (w, *k): name for k in own for w in data["before_animals"] if k[0].isascii()
            }
    return {**table, **animals, **names, **_equals()}


@lru_cache(maxsize=1)
def _heads() -> dict[str, frozenset[Key]]:
    """Per COCO class the words that make a compound with its name: "dog" + "house"."""
    data = _data()
    groups = {
        group: frozenset(key_of(form) for head in heads for form in (head, plural(head)))
        for group, heads in data["heads"].items()
    }
    everywhere = groups["any"]
    return {
        name: everywhere | groups.get(entry.get("heads", ""), frozenset())
        for name, entry in data["classes"].items()
    }


class Matcher:
    """A class list made ready: every term it must know, longest first by its first word."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.exact = _exact_names(classes)
        self.families: dict[str, set[str]] = {}
        for key, name in self.exact.items():
            if key in _equals():
                self.families.setdefault(_equals()[key], set()).add(name)
        terms = {**_vocabulary(), **dict.fromkeys(self.exact, None)}
        self.by_first: dict[str, list[Key]] = {}
        for key in sorted(terms, key=len, reverse=True):
            self.by_first.setdefault(key[0], []).append(key)

    def classes_of(self, key: Key) -> frozenset[str]:
        """The listed classes that a term may mean; none for an unlisted thing."""
        if key in self.exact:
            return frozenset({self.exact[key]})
        return frozenset(self.families.get(_vocabulary().get(key) or "", ()))

    def mentions(self, tokens: list[Token]) -> list[Mention]:
        """Things named, from left to right, each the longest term at its place."""
        words = [token.text for token in tokens]
        found: list[Mention] = []
        at = 0
        while at < len(words):
            key = next(
                (k for k in self.by_first.get(words[at], ()) if self._fits(k, words, at)), None
            )
            if key is None:
                at += 1
                continue
            end, meaning = at + len(key), self.classes_of(key)
            head = self._head(key, words, end)
            if head:
                end, meaning = end + len(head), self.classes_of(head)
            elif self._only_modifies(key, tokens, at):
                at = end
                continue
            found.append(Mention(at, end, meaning))
            at = end
        return found

    @staticmethod
    def _fits(key: Key, words: list[str], at: int) -> bool:
        end = at + len(key)
        if tuple(words[at:end]) != key:
            return False
        if len(key) > 1 or not is_chinese(key[0]):
            return True
        before = words[at - 1] if at else ""
        after = words[end] if end < len(words) else ""
        return (not is_chinese(before) or before in ZH_LEFT) and (
            not is_chinese(after) or after in ZH_RIGHT
        )

    def _head(self, key: Key, words: list[str], end: int) -> Key | None:
        """The word behind a COCO name that makes a compound of it."""
        owner = _vocabulary().get(key)
        if owner is None:
            return None
        heads = _heads()[owner]
        for length in (3, 2, 1):
            head = tuple(words[end : end + length])
            if head not in heads or len(head) != length:
                continue
            if head == ("stands",) and words[end + 1 : end + 2] and words[end + 1] in STANDING:
                continue  # the verb: "a bicycle stands alone"
            return head
        return None

    def _only_modifies(self, key: Key, tokens: list[Token], at: int) -> bool:
        """Whether the name belongs to another noun: "a man's hat", "an orange cat"."""
        end = at + len(key)
        after = tokens[end] if end < len(tokens) else None
        free = after is None or not after.text.isalpha() or after.article
        goes_on = not free and after.text not in FUNCTION and after.text not in VERBS
        if tokens[end - 1].owner:
            return goes_on and after.text not in BODY
        entry = _data()["classes"].get(_vocabulary().get(key) or "", {})
        if " ".join(key) not in entry.get("adjective_too", ()):
            return False
        coloured = (
            not free and after.text == "and" and tokens[end + 1 : end + 2]
            and tokens[end + 1].text in COLOURS
        )  # fmt: skip
        predicate = (
            at > 0 and not tokens[at].article
            and tokens[at - 1].text in ("is", "are", "in", "bright", "light", "dark")
            and any(map(_is_content, tokens[:at]))
        )  # fmt: skip
        return bool(goes_on or coloured or predicate)

    def match(self, text: str) -> str:
        tokens = tokens_of(text)
        mentions = self.mentions(tokens)
        silent, blank = silenced(tokens, mentions)
        named, certain, shared = False, set(), []
        covered: set[int] = set()
        for mention in mentions:
            covered.update(range(mention.start, mention.end))
            if mention.end - 1 in silent:
                continue
            named = True
            if len(mention.classes) == 1:
                certain |= mention.classes
            elif mention.classes:
                shared.append(mention.classes)
        if len(certain) > 1 or any(not certain & classes for classes in shared):
            return AMBIGUOUS
        if certain:
            return next(iter(certain))
        nothing = covered | silent | blank
        rest = [token for i, token in enumerate(tokens) if i not in nothing]
        return UNKNOWN if named or any(map(_is_content, rest)) else ABSTAIN


def _is_content(token: Token) -> bool:
    """Whether a word may name a thing: no function word, number, letter of an option or mark."""
    if is_chinese(token.text):
        return token.text not in FUNCTION_ZH
    if token.text in ("can", "match"):
        return token.article  # "a can" is a thing, "it can be" names none
    return len(token.text) > 1 and not token.text[0].isdigit() and token.text not in FUNCTION


def _exact_names(classes: Sequence[str]) -> dict[Key, str]:
    """The list's own names and their plurals -> the name as it is spelled there."""
    if not classes:
        raise ValueError("The class list is empty: give at least one class name.")
    exact: dict[Key, str] = {}
    for name in classes:
        key = key_of(name)
        if not key:
            raise ValueError(f"The class name {name!r} has no word in it.")
        if name.strip().lower() in (UNKNOWN, ABSTAIN, AMBIGUOUS):
            raise ValueError(f"No class may be called {name!r}: that is a result of the matcher.")
        if key in exact:
            raise ValueError(f"The classes {exact[key]!r} and {name!r} are the same name.")
        exact[key] = name
    for name in classes:
        for form in (plural(name), _singular_of_plural_name(name)):
            if form is not None:
                exact.setdefault(key_of(form), name)
    return exact


@lru_cache(maxsize=64)
def _matcher(classes: tuple[str, ...]) -> Matcher:
    return Matcher(classes)


def match_answer(text: str, classes: Sequence[str]) -> str:
    """The class that an answer names, spelled as in `classes`, or one of three other results.

    "ambiguous": two different listed classes, or a name that two of them share. "unknown":
    something else is named, also when COCO knows it. "abstain": nothing is named (empty, a refusal,
    an explicit "none of the above", only negated names). A listed class beside an unlisted thing is
    that class. For the metrics "unknown" and "abstain" both mean predicted unknown.

    A listed name that means the same as a COCO class (sofa, 狗) has all that class's names. An
    exact name goes before a synonym: with person and woman listed, "a girl" is person, "a woman"
    woman. A class called "other" or "none" is a class. Raises ValueError for an empty list, an
    empty or repeated name, and a class called like a result.
    """
    if isinstance(classes, str):
        raise ValueError(f"Give a sequence of class names, not the text {classes!r}.")
    return _matcher(tuple(classes)).match(text)


def synonyms(name: str) -> list[str]:
    """Names to score the likelihood of for a class, its own first: few, English, all usual."""
    coco = _equals().get(key_of(name))
    if coco is None:
        return [name]
    entry = _data()["classes"][coco]
    others = [coco, *entry.get("scored", [])]
    return [name, *(other for other in others if key_of(other) != key_of(name))]


def keyword_match(text: str, classes: Sequence[str]) -> str | None:
    """The course experiment's matching: a class whose lower-cased name is part of the answer.

    Kept to reproduce that experiment, whose account says only "by keyword": that part of a word
    counts, and that the first of the list wins where several are included, is our reading of it.
    None where no class is included. What it gets wrong: parts of words (carpet is car, busy is bus,
    catalog is cat), compounds (hot dog is dog, train station is train), negations ("not a dog" is
    dog), synonyms (puppy, television, woman are none) and answers that name two classes.
    """
    lower = text.lower()
    return next((name for name in classes if name.lower() in lower), None)
