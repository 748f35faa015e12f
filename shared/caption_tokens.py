"""Words of a caption, as caption metrics count them. No torch, no Java.

English: the tokens that pycocoevalcap scores, that is Stanford's Penn Treebank tokenizer (CoreNLP
3.4.1, `-lowerCase`) less the punctuation that pycocoevalcap removes. At each place of the text all
rules are tried; the longest match wins, the text that a rule looks ahead at counted in, and of
equally long ones the first rule. Chinese: characters, or jieba's words.

How the English rules came about: what the tokenizer does was established by running the published
PTBTokenizer on sentences made for it, and by reading its published rules. No code of CoreNLP
(GPL-3) is contained: patterns and word lists are put together here in another form, for Python.
tests/shared/test_caption_tokens.py compares with the Java program where that is installed.

    python -m pytest tests/shared/test_caption_tokens.py

Reads and writes nothing. Two differences from the Java program, both on purpose. It works by lines,
so that a carriage return, a form feed or U+2028 inside a caption moves all later captions to the
wrong pictures; here every line break is a space. And it looks across the end of a caption into the
next picture's: "grade a." loses its period when the next caption begins with "The", "A", "In" and
some others; here a caption's tokens depend on nothing but the caption.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

Language = Literal["en", "zh", "zh-words"]
TOKENIZERS: dict[str, str] = {
    "en": "PTB tokens less punctuation, as pycocoevalcap (CoreNLP 3.4.1)",
    "zh": "characters; runs of Latin letters and digits are words",
    "zh-words": "words by jieba",
}

# https://github.com/salaniz/pycocoevalcap, tokenizer/ptbtokenizer.py, PUNCTUATIONS. That list also
# names -LRB-, -RRB-, -LCB- and -RCB-, but is compared with lower-case tokens: brackets stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# What ends a line for the Java program. U+0085, which does so too, it takes for an ellipsis first.
_LINE_BREAKS = re.compile("\r\n|[\n\r\v\f\u2028\u2029]")

# Abbreviations. Lower-case letters match either case, a capital only itself.

# Keep their period; at a sentence's end a second one is added, which pycocoevalcap removes.
_ABBREVIATED = """
    al assn bancorp bhd bldg blvd bros co corp cos ed.d esq est etc ext inc intl jr ltd
    ph.d plc ppte pptes ppty pptys pte ptes pty ptys rd rt seq sq sr sys tel univ
    apr aug dec feb fri jan jul jun mar mon nov oct sep sept thu thurs tue tues wed
    Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ala ariz calif colo conn ct dak fla ga ind kan
    kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo
"""
_TITLES = """
    Miss adj adm adv assoc asst atty attys ave brig capt cmdr col comdr cpl det dr drs ens ft gen
    gov govs hon insp lieut lt maj messrs mlle mme mr mrs ms msgr mt pfc pres prof profs pvt rep
    reps rev sen sens sfc sgt spc st ste supt supts
    a.k.a alex cf cie dept elec invt jos mfg mtg natl ph treas vs wm
"""
_BEFORE_NUMBERS = "art bldg ca fig figs no nos op pp prop"
# A single letter and its period before one of these end a sentence ("type A. The"). Case counts.
_SENTENCE_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many
    More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They
    This We What When While Yet You
"""
_SPLIT_WORDS = "can+not gim+me gon+na got+ta lem+me 't+is 't+was wan+na"
_FILE_ENDINGS = """
    bat c cgi class cpp dll exe h jar java php pl ps py sql x xml
    doc docx htm html pdf ppt txt
    bmp gif jpeg jpg png mov mp3 wav
    gz tar zip
"""

_OPENING = {"'": "`", "&apos;": "`"}
_CLOSING = {"&apos;": "'"} | dict.fromkeys("\x92’›", "'") | dict.fromkeys("\x91‘‛‹", "`")
_CLOSING |= dict.fromkeys("\x93“«", "``") | dict.fromkeys("\x94”»", "''")
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_CURRENCY = {"¢": "cents", "£": "#"} | dict.fromkeys("\x80¤₠€", "$")
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
# Stand for themselves; what is neither here nor in a rule falls away.
_SYMBOLS = "".join(
    (
        "%&+^|~\\\\",
        "\u00a6-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00d7\u00f7",  # signs of Latin-1
        "\u0387\u1fbd",  # Greek
        "\u05be\u05c0\u05c3\u05c6\u05f3\u05f4",  # Hebrew
        "\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u066a\u066d",  # Arabic
        "\u0703-\u070d",  # Syriac
        "\u07f6-\u07f8",  # N'Ko
        "\u0964\u0965\u0e4f",  # Indic scripts, Thai
        "\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044",  # punctuation
        "\u207a-\u207e\u208a-\u208e",  # raised and lowered signs
        "\u2100-\u214f\u2190-\u2bff",  # letter-like signs, arrows, mathematics, boxes
        "\u3012\u30fb",  # Japanese
        "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65",  # full width
    )
)


class _Rule(NamedTuple):
    """`pattern` matches the token, group 1, and what must follow it."""

    pattern: re.Pattern[str]
    written: Callable[[str], str]


def tokenize_caption(text: str, language: str = "en") -> list[str]:
    """The tokens of one caption, lower-case and without punctuation; [] where nothing is left.

    `language` is a key of `TOKENIZERS`. A few English tokens hold a no-break space where the text
    had a space ("1 1/2", telephone numbers): one token for ROUGE-L and two words for BLEU and CIDEr
    there. Raises ValueError for another language, TypeError for what is no string and
    ModuleNotFoundError where jieba is asked for and missing.
    """
    if not isinstance(text, str):
        raise TypeError(f"caption is {type(text).__name__} {text!r:.60}, must be a string")
    if language == "en":
        return _ptb_tokens(text)
    if language == "zh":
        return _chinese_characters(text)
    if language == "zh-words":
        return _chinese_words(text)
    raise ValueError(f"unknown language {language!r}; one of {', '.join(TOKENIZERS)}")


def _ptb_tokens(text: str) -> list[str]:
    text = _LINE_BREAKS.sub(" ", text)
    end = len(text)
    # A caption is a line: what looks ahead over its end sees the line's and nothing behind it.
    text += "\n\n"
    plain, special, rules = _plain_word(), _special_words(), _rules()
    tokens: list[str] = []
    place = 0
    while place < end:
        # Nearly all words are letters between spaces, perhaps with a comma or period: no rule but
        # the ones for whole words can match more there.
        match = plain.match(text, place)
        if match:
            word = match[1].lower()
            if word not in special and (len(word) > 1 or match[2] != "."):
                tokens.append(word)
                place = match.end()
                continue
        if text[place] == " ":
            place += 1
            continue
        longest = place
        token, written = "", str
        for rule in rules:
            match = rule.pattern.match(text, place)
            if match and match.end() > longest:
                longest, (token, written) = match.end(), (match[1], rule.written)
        place += len(token) or 1  # what no rule knows (emoji, control characters) falls away
        token = written(token).lower()
        if token:
            tokens.append(token)
    if tokens:  # an address may end in a no-break space, which pycocoevalcap strips with the line
        tokens[-1] = tokens[-1].rstrip()
    return [token for token in tokens if token and token not in PUNCTUATION]


def _either(words: str) -> str:
    """A group of alternatives, the longest first; capitals stand for themselves only."""
    ordered = sorted(words.split(), key=lambda word: (-len(word), word))
    return "(?:" + "|".join(f"{_cased(word)}" for word in ordered) + ")"


def _cased(word: str) -> str:
    return "".join(
        f"[{c}{c.upper()}]" if c.isascii() and c.islower() else re.escape(c) for c in word
    )


def _none_of(characters: str) -> str:
    """A class of all but these, and but the white space that ends an address."""
    return f"[^ \t\n{re.escape(characters)}]"


def _as_is(token: str) -> str:
    return token


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _one_token(token: str) -> str:
    return token.replace(" ", "\xa0")


def _one_token_without_brackets(token: str) -> str:
    return _one_token(_replaced(token, {"(": "-LRB-", ")": "-RRB-"}))


def _closed(token: str) -> str:
    return _replaced(token, _CLOSING)


def _left_out(token: str) -> str:
    return ""


def _always(written: str) -> Callable[[str], str]:
    return lambda token: written


def _mapped(table: dict[str, str]) -> Callable[[str], str]:
    return lambda token: table.get(token, token)


def _replaced(token: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if old in token:
            token = token.replace(old, new)
    return token


@lru_cache(1)
def _plain_word() -> re.Pattern[str]:
    return re.compile(r"([A-Za-z]+)([.,]?)(?=[ \n]) *")


@lru_cache(1)
def _special_words() -> frozenset[str]:
    """Words of letters which a rule treats differently, by themselves or before a period."""
    words = " ".join([_SPLIT_WORDS.replace("+", ""), _ABBREVIATED, _TITLES, _BEFORE_NUMBERS])
    return frozenset(words.lower().split())


@lru_cache(1)
def _letters() -> tuple[str, str]:
    """Insides of two character classes, of the Basic Multilingual Plane: letters alone, and with
    the marks and the soft hyphen that a word may hold besides."""
    letters = [c for c in range(0x10000) if unicodedata.category(chr(c))[0] == "L"]
    marks = [c for c in range(0x300, 0xED0) if unicodedata.category(chr(c))[0] == "M"]
    accents = [0xAD, *range(0x2C2, 0x2C6), *range(0x2D2, 0x2E0), *range(0x2E5, 0x300)]
    accents += [0x375, 0x384, 0x385, *range(0x55A, 0x560)]
    return _ranges(letters), _ranges(letters + marks + accents)


def _ranges(codes: Sequence[int]) -> str:
    parts: list[str] = []
    start = last = -1
    for code in [*sorted(set(codes)), 0x10000]:
        if code != last + 1:
            if start >= 0:
                parts.append(f"\\u{start:04x}-\\u{last:04x}")
            start = code
        last = code
    return "".join(parts)


@lru_cache(1)
def _rules() -> tuple[_Rule, ...]:
    """All rules; the order decides between equally long matches."""
    letter, marked = _letters()
    letter, marked = f"[{letter}]", f"[{marked}]|&[aeiouAEIOU](?ai:acute|grave|uml);"
    alnum = f"(?:{letter}|\\d)"
    word = f"(?:{marked})(?:{marked}|\\d)*(?:[.!?](?:{marked})(?:{marked}|\\d)*)*"
    apostrophe = "(?:['\x92’]|(?ai:&apos;))"
    inner = "(?:['\x91\x92‘’‛`]|(?ai:&apos;))"  # also those found inside a word by mistake
    clitic = f"{apostrophe}(?:[msdMSD]|(?ai:re|ve|ll))"
    negation = f"(?ai:n{inner}t)"
    space, any_space = "[ \t\xa0\u2000-\u200a\u3000]", "[ \t\n\xa0\u2000-\u200a\u3000\x85]"
    clause = "[,;:、]"
    number = "(?:\\d*(?:[.:,\xad٫٬]\\d+)+|\\d+)"
    dotted = "[A-Za-z](?:\\.[A-Za-z])"  # u.s, a.m
    countries = "(?ai:(?:Canada|Sino|Korean|EU|Japan|non)-U\\.S|U\\.S\\.-U\\.(?:K|S\\.S\\.R))"
    acronym, long_acronym = f"(?:{countries}|{dotted}*)", f"(?:{countries}|{dotted}+)"
    hyphen = "[-_֊‐‑]"
    compound = f"(?:[dDoOlL]{inner}{alnum})?{alnum}+"
    compound = f"{compound}(?:{hyphen}{compound})*"
    hyphenated = f"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{long_acronym}\\.|[A-Za-z0-9\xad]+))+"
    initials = "[A-Z]+(?:(?:[+&]|(?ai:&amp;))[A-Z]+)+"
    name = "[A-Za-z][A-Za-z0-9_:.-]*"
    value = "(?:'[^'\n]*'|\"[^\"\n]*\")"
    tag = f"<(?:[!?][A-Za-z-][^>\n]*|{name}(?: +{name}(?: *= *{value})?)* */?|/{name}) *>"
    part = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    marks, no_break = "!$',-./:;=?@[\\]^_`", "\xa0"
    # Addresses run on until white space or a bracket and don't end in a mark; of the part before
    # .com and the like small letters, other scripts and #%&*+~ are left.
    brackets, capitals_digits = '"<>|(){}', "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    address, ending = _none_of(brackets), _none_of(brackets + ".,!?-")
    in_path = _none_of('"<>|()')
    path = f"(?:/{in_path}+{ending})?"
    host = f"(?:{_none_of(brackets + '.,!?')}+\\.)+"
    small_host = f"(?:{_none_of(brackets + capitals_digits + marks)}+\\.)+"
    mailbox = f"[A-Za-z0-9]{_none_of(brackets + no_break)}*"
    domain = _none_of(brackets + no_break + ".")
    gap, digits = "[- \xa0]", "[0-9]{{{},{}}}".format
    area = (
        f"(?:\\({digits(2, 3)}\\)[ \xa0]?|(?:\\+\\+?)?(?:{digits(2, 4)}{gap})?{digits(2, 4)}{gap})"
    )
    dotted_area = f"(?:(?:\\+\\+?)?{digits(2, 4)}\\.)?{digits(2, 4)}"
    eyes, nose, mouth = "[<>]?[:;=]", "[-'*o]?", "[][(){@|\\\\DOPdp]"
    starts = _either(_SENTENCE_STARTS)
    smile, brow = "[-^x=~<>']", "[\\^x=~<>']"

    def rule(pattern: str, written: Callable[[str], str] = _as_is) -> _Rule:
        return _Rule(re.compile(pattern, re.DOTALL), written)

    return (
        # Words
        rule("((?ai:c\\+\\+|[cf]#))"),
        *(rule("(?ai:({})({}))".format(*w.split("+"))) for w in _SPLIT_WORDS.split()),
        rule(f"({tag})", _one_token),
        rule("((?ai:&amp;))", _always("&")),
        rule("(&(?ai:MD|mdash|ndash);|[\x96\x97–—―])", _always("--")),
        rule("(&(?:(?ai:HT|TL|UR|LR|QC|QL|QR|odq|cdq)|#[0-9]+);)"),
        rule(f"({word}){clitic}", _without_soft_hyphens),
        rule(f"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*){negation}", _without_soft_hyphens),
        rule(f"({word})", _without_soft_hyphens),
        # Words with an apostrophe that stays
        rule(f"({apostrophe}(?ai:n){apostrophe}?)"),
        rule(f"([lLdDjJ]{apostrophe}|(?ai:Dunkin|somethin|ol){apostrophe})"),
        rule(f"({apostrophe}(?ai:em|till?|cause|[2-9]0s))"),
        rule(f"([A-HJ-XZn]{inner}{letter}{{2,}})"),
        rule(f"({letter}+[aeiouyAEIOUY]{inner}[aeiouA-Z]{letter}*)"),
        rule("((?ai:cont'd\\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l))"),
        rule(f"((?ai:o{inner}o))"),
        rule(f"((?ai:y){apostrophe}){letter}"),
        # Addresses
        rule(f"((?ai:https?)://{address}+{ending})"),
        rule(f"((?ai:www)\\.{host}[a-zA-Z]{{2,4}}{path})"),
        rule(f"({small_host}(?ai:com|edu|net|org){path})"),
        rule(
            f"((?:<|(?ai:&lt;))?{mailbox}@(?:{domain}+\\.)*{domain}+(?:>|(?ai:&gt;))?)",
        ),
        rule(f"(@[a-zA-Z_][a-zA-Z_0-9]*|#(?:{marked})+)"),
        rule(f"({clitic})[^A-Za-z]", _closed),
        rule(f"({negation})[^A-Za-z]", _closed),
        # Numbers
        rule("(\\d{1,2}[-/]\\d{1,2}[-/]\\d{2,4})"),
        rule(f"([-+]?{number})", _without_soft_hyphens),
        rule("([⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+))"),
        rule("((?:\\d{1,4}[- \xa0])?\\d{1,4}(?:\\\\?/|⁄)\\d{1,4})", _one_token),
        rule("([¼½¾⅓-⅞])", _mapped(_FRACTIONS)),
        rule("((?ai:-(?:[RL][RCS]B)-|C\\.D\\.s|pro-|anti-))"),
        rule("((?ai:S(?:&|&amp;)(?:P-500|Ls)))", lambda token: token.replace("&amp;", "&")),
        rule(f"((?ai:Cap{apostrophe}n|c{apostrophe}est))"),
        rule(f"({part}(?:\\\\?/{part}){{1,2}})"),
        rule("([A-Z]*\\$|#)"),
        rule("([¢£¤¥\x80₠€؋฿₤￠￡￥￦])", _mapped(_CURRENCY)),
        # Abbreviations
        rule(f"([A-Za-z])\\.{any_space}+(?:{starts}|{tag}){any_space}"),
        rule(f"({_either(_BEFORE_NUMBERS)}\\.){any_space}?\\d"),
        rule(f"((?ai:pt[ey]|co)\\.){space}(?ai:ltd|lim)"),
        rule(f"({_either(_ABBREVIATED)}\\.).."),
        rule(f"((?:{_either(_TITLES)}|{acronym})\\.)"),
        rule(f"({acronym}){any_space}"),
        rule(f"({apostrophe}[0-9][0-9]){any_space}"),
        rule(
            f"((?:{marked}|\\d)+(?:\\.(?:{marked}|\\d)+)*\\.{_either(_FILE_ENDINGS)})"
            f"(?:{any_space}|[.?!,])"
        ),
        rule(f"({word}\\.){clause}", _without_soft_hyphens),
        rule(f"({area}{digits(3, 4)}{gap}?{digits(3, 5)})", _one_token_without_brackets),
        rule(f"({dotted_area}\\.{digits(3, 4)}\\.{digits(3, 5)})"),
        # Signs
        rule('("|(?ai:&quot;))', _left_out),
        rule("(<|(?ai:&lt;))", _always("<")),
        rule("(>|(?ai:&gt;))", _always(">")),
        rule(f"({eyes}{nose}{mouth})[^A-Za-z0-9]", _one_token_without_brackets),
        rule(
            f"({smile}_{smile}|\\({smile}[_.]?{smile}\\)|\\({brow}-[\\^x=~<>'`]\\))",
            _one_token_without_brackets,
        ),
        rule("([\\[\\](){}])", _mapped(_BRACKETS)),
        rule("(-{3,4})", _always("--")),
        rule("(-+)"),
        rule("(\\.{3,5}|(?:\\.[ \xa0]){2,4}\\.|[\x85…])", _always("...")),
        rule("(@+|#+|_+|\\*+|(?:\\\\\\*){1,3})"),
        rule("([,;:\u3001=/.\u00a1\u00bf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]|[?!]+)"),
        rule(f"({hyphenated}\\.){clause}", _without_soft_hyphens),
        rule(f"({hyphenated})", _without_soft_hyphens),
        rule(f"({compound}\\.){clause}"),
        rule(f"({compound})"),
        rule(f"({initials}\\.){clause}", lambda token: re.sub("(?ai:&amp;)", "&", token)),
        rule(f"({initials})", lambda token: re.sub("(?ai:&amp;)", "&", token)),
        rule("(')[A-Za-z][^ \t\n\xa0]", _mapped(_OPENING)),
        rule(f"({clitic}|{negation})", _closed),
        rule(f"(''|[`‘’‚‛“”\x91-\x94„‟‹›«»]{{1,2}}|{apostrophe})", _closed),
        rule("(<<|>>)"),
        rule(f"([{_SYMBOLS}])"),
        rule("((?ai:&nbsp;))", _left_out),
    )


def _chinese_characters(text: str) -> list[str]:
    """Every Han character or kana for itself; runs of other letters and digits stay words.

    Compatibility forms are made plain first (NFKC: full-width letters), punctuation, symbols and
    white space are left out. "3.5" and "10:30" are one token each, "T-shirt" and "don't" too.
    """
    return _chinese_token().findall(unicodedata.normalize("NFKC", text).lower())


def _chinese_words(text: str) -> list[str]:
    """jieba's words, each brought to the form of `_chinese_characters`, which also says what is
    left out."""
    try:
        import jieba
    except ImportError as error:
        raise ModuleNotFoundError(
            "Chinese words need jieba: pip install jieba; language zh (characters) goes without"
        ) from error
    jieba.setLogLevel(60)  # it reports the loading of its dictionary on stderr
    text = unicodedata.normalize("NFKC", text).lower()
    words = []
    for piece in _chinese_run().findall(text):
        words += [piece] if not _han().match(piece) else jieba.lcut(piece)
    return words


_HAN = "㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff々〇ぁ-ヿ"
_LATIN = f"[^\\W_{_HAN}]"


@lru_cache(1)
def _chinese_token() -> re.Pattern[str]:
    return re.compile(f"[{_HAN}]|{_LATIN}+(?:(?:(?<=\\d)[.,:](?=\\d)|['’-]){_LATIN}+)*")


@lru_cache(1)
def _chinese_run() -> re.Pattern[str]:
    return re.compile(f"[{_HAN}]+|{_chinese_token().pattern}")


@lru_cache(1)
def _han() -> re.Pattern[str]:
    return re.compile(f"[{_HAN}]")
