"""What an answer denies, compares with or withholds: the tokens whose names do not count.

By rules, not by parsing: a cue ("no", "not", "without", "不是") covers what follows up to the end
of its noun phrase or clause; a list goes on behind a comma ("no dog, cat or bus"), a correction
does not ("not a dog, a cat"). `matching.py` uses it; reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from llava_openset.answer_words import (
    HARD_MARKS,
    MARKS,
    META,
    SOFT_MARKS,
    VERBS,
    Key,
    Mention,
    Token,
    words_of,
)


def _phrases(text: str) -> set[Key]:
    return {tuple(phrase.split()) for phrase in text.split(",")}


# What a cue covers. "noun": up to the next verb or preposition; "clause": up to the next clause;
# "copy": like "noun", for what a statue shows; "skip": nothing, though it reads like a negation;
# "blank": it withholds, so that what follows names nothing unless it is a class.
CUES: dict[Key, str] = {
    **dict.fromkeys(
        _phrases(
            "no,without,neither,nor,anything but,instead of,rather than,unlike,lacks,lacking,"
            "absence of,free of,devoid of,similar to,reminiscent of,compared to,size of,than,"
            "as big as,as large as,something other than,anything other than,object other than,"
            "thing other than,not one of,而 不 是"
        ),
        "noun",
    ),
    **dict.fromkeys(_phrases("statue of,sculpture of,figurine of"), "copy"),
    **dict.fromkeys(
        _phrases(
            "not,never,hardly,none of,no idea,no way,unable,unsure,unclear,uncertain,fails to,"
            "difficult to,hard to,impossible to,difficult for,hard for,impossible for,nobody,"
            "不 是,没 有,没,无,并 非,非,未,看 不 到,看 不 见,看 不 清,看 不 出,不 像,不 属 于,"
            "除 了,不 在,不 存 在,没 有 看 到,无 法,不 能,不 知 道,不 确 定,不 清 楚,难 以,"
            "都 不 是,不 含"
        ),
        "clause",
    ),
    **dict.fromkeys(
        _phrases(
            "no doubt,without doubt,without any doubt,without question,no question,nothing but,"
            "none other than,nothing other than,no other than,no less than,other than,more than,"
            "less than,not only,not just,not merely,not simply,not to mention,no wonder,"
            "不 仅,不 只,无 疑,毫 无 疑 问"
        ),
        "skip",
    ),
    **dict.fromkeys(
        _phrases(
            "unknown,unidentified,unidentifiable,unrecognizable,unrecognized,undetermined,"
            "indeterminate,unspecified,unclassified,unlisted,unlabeled,未 知,不 明"
        ),
        "blank",
    ),
}
CUE_STARTS = frozenset(cue[0] for cue in CUES)
CLAUSE_WORDS = words_of(
    """
    but however although though yet because while whereas so just only actually instead rather
    more it this that there here i we they he she is are was were seems appears looks see must
    may might could would should probably perhaps maybe possibly likely
    但 却 只 而 是 可 有 它 这 我
    """
)
CLAUSE_ENDS = words_of("but however although though yet because whereas 但 却 而")
NOUN_ENDS = (
    CLAUSE_ENDS
    | VERBS
    | words_of(
        """
    is are was were be has have can will in on at with next near behind under beside by from
    inside outside over above around against through while that which who where standing just
    only 是 的
    """
    )
)
BE = words_of("is are was were")
SEEMING = words_of("look looks looked seem seems seemed appear appears appeared resembles")
VISIBLE = words_of("visible present shown seen there here depicted found absent")


def _cues(tokens: list[Token], taken: set[int]) -> Iterator[tuple[int, int, str]]:
    """(first token, token behind, kind) of each negation, the longest one at its place."""
    at = 0
    while at < len(tokens):
        for length in (4, 3, 2, 1) if tokens[at].text in CUE_STARTS else ():
            words = tuple(token.text for token in tokens[at : at + length])
            if len(words) == length and words in CUES and at not in taken:
                yield at, at + length, CUES[words]
                at += length
                break
        else:
            at += 1


def silenced(tokens: list[Token], mentions: list[Mention]) -> tuple[set[int], set[int]]:
    """Places of the tokens that a negation covers, and of those that an "unknown ..." blanks."""
    words = [token.text for token in tokens]
    starts = {mention.start: mention for mention in mentions}
    taken = {i for mention in mentions for i in range(mention.start, mention.end)}
    silent: set[int] = set()
    blank: set[int] = set()
    for at, word in enumerate(words):
        # "it looks like a dog, but it is actually a wolf"
        if word in ("but", "however") and {"actually", "really"} & set(words[at : at + 5]):
            silent.update(range(_before(HARD_MARKS, words, at) + 1, at))
        if word in ("but", "however") and _names_what_it_is(tokens, at):
            start = _before(HARD_MARKS, words, at) + 1
            if set(words[start:at]) & SEEMING:
                silent.update(range(start, at))
        if word in ("absent", "missing") and at and words[at - 1] in BE:
            silent.update(_subject(words, taken, at))
    for first, behind, kind in _cues(tokens, taken):
        after = words[behind] if behind < len(words) else "\n"
        if kind == "skip" or first in silent:
            continue
        if kind == "blank":
            blank.update(range(first, _next_mark(words, behind)))
        elif words[first] == "no" and (after in HARD_MARKS or after in SOFT_MARKS):
            # "Is it a dog? No.", "Dog: no": the words before; "No, it is a cat": none.
            before = words[first - 1] if first else ""
            if before == "?" or (before == ":" and after in HARD_MARKS):
                silent.update(range(_before(MARKS, words, first - 1) + 1, first))
        else:
            if _denies_presence(words, first, behind) or words[first:behind] == ["不", "在"]:
                silent.update(_subject(words, taken, first))
            if first and words[first] == "没" and words[first - 1] in ("也", "都"):
                start = _before(MARKS, words, first) + 1  # 一个人也没有: not even one person
                if "一" in words[start:first]:
                    one = words.index("一", start)
                    silent.update(range(one - (one > 0 and words[one - 1] == "连"), first))
            if first > 1 and words[first - 2] == "there" and words[first - 1] in BE:
                kind = "noun"  # "there is not a dog on the couch": the couch is there
            silent.update(_scope(tokens, starts, first, behind, kind))
    return silent, blank


def _names_what_it_is(tokens: list[Token], but: int) -> bool:
    """ "looks like a dog but is a fox", "but it is a fox"; not "but it is a bit blurry"."""
    at = but + 1
    if at < len(tokens) and tokens[at].text in ("it", "this", "that"):
        at += 1
    verb, noun = tokens[at : at + 1], tokens[at + 1 : at + 2]
    is_thing = bool(noun) and noun[0].article and noun[0].text not in ("bit", "little")
    return bool(verb) and verb[0].text in BE and is_thing


def _next_mark(words: list[str], at: int) -> int:
    return next((i for i in range(at, len(words)) if words[i] in MARKS), len(words))


def _before(marks: frozenset[str], words: list[str], at: int) -> int:
    return next((i for i in range(at - 1, -1, -1) if words[i] in marks), -1)


def _subject(words: list[str], taken: set[int], verb: int) -> range:
    """What stands before a verb, back to a mark; over commas as far as a list of names goes."""
    start = _before(MARKS, words, verb)
    while start > 0 and words[start] in SOFT_MARKS:
        earlier = _before(MARKS, words, start)
        if not set(range(earlier + 1, start)) <= taken:
            break
        start = earlier
    return range(start + 1, verb)


def _denies_presence(words: list[str], first: int, behind: int) -> bool:
    """ "a dog is not visible", "dogs are not in the image": what stands before is denied."""
    if words[first:behind] != ["not"] or not first or words[first - 1] not in BE:
        return False
    following = [w for w in words[behind : behind + 4] if w not in ("clearly", "to", "be", "this")]
    if following[:1] == ["in"]:
        return following[1:2] != [] and following[1] in META - words_of("list lists options")
    return bool(following) and following[0] in VISIBLE


def _scope(
    tokens: list[Token], starts: dict[int, Mention], first: int, behind: int, kind: str
) -> range:
    """The tokens that a negation covers, itself among them (a statue is a thing)."""
    words = [token.text for token in tokens]
    of_a_noun = kind != "clause"
    ends = NOUN_ENDS if of_a_noun else CLAUSE_ENDS
    at, covers_a_name = behind, False
    while at < len(words):
        word = words[at]
        if at in starts:
            at, covers_a_name = starts[at].end, True
        elif word in HARD_MARKS or (word in SOFT_MARKS and not _list_goes_on(tokens, starts, at)):
            break
        elif of_a_noun and word in ("from", "in", "on") and words[at + 1 : at + 2] == ["list"]:
            at += 2
        elif word in ends or (covers_a_name and _starts_anew(tokens, at)):
            break
        else:
            at += 1
    return range(first + (kind == "copy"), at)


def _starts_anew(tokens: list[Token], at: int) -> bool:
    """ "not a dog it is a cat", "not a dog and it is a cat", "no dogs and a cat"."""
    if tokens[at].text in ("it", "this", "that"):
        return tokens[at - 1].text not in ("if", "whether", "that")
    if tokens[at].text != "and" or at + 1 == len(tokens):
        return False
    return tokens[at + 1].article or tokens[at + 1].text in CLAUSE_WORDS


def _list_goes_on(tokens: list[Token], starts: dict[int, Mention], mark: int) -> bool:
    """Whether a negated list continues behind a comma: "no dog, cat or bus", not "no dog, a cat".

    It does when the next item is introduced by or/nor, is a bare name, or is short and an item
    introduced by or/nor follows. A bare name behind a colon or bracket must be one of several.
    """
    words = [token.text for token in tokens]
    if words[mark] in ")]、":
        return True
    items: list[list[int]] = [[]]
    for at in range(mark + 1, len(words)):
        if words[at] in HARD_MARKS or words[at] in CLAUSE_ENDS:
            break
        if words[at] in SOFT_MARKS:
            items.append([])
        else:
            items[-1].append(at)
    item = items[0]
    if not item:
        return True
    if words[item[0]] in ("or", "nor", "也", "或"):
        return True
    several = len([i for i in items if i]) > 1
    if not any(tokens[at].article for at in item) and (several or words[mark] not in ":(["):
        at = item[0]
        while at in starts or (at > item[0] and words[at : at + 1] in (["or"], ["and"], ["nor"])):
            at = starts[at].end if at in starts else at + 1
        if at > item[-1]:
            return True
    for later in items:
        if any(words[at] in CLAUSE_WORDS for at in later) or len(later) > 5:
            return False
        if any(words[at] in ("or", "nor") for at in later):
            return True
    return False
