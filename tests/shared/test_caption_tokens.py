"""Tokens of captions: tables of what the reference tokenizer makes, and that program itself.

python -m pytest tests/shared/test_caption_tokens.py

The tables always run. The comparison with pycocoevalcap's Java program runs where Java and
pycocoevalcap are installed (pip install -e .[captions]); the English tables stand in it too.
"""

import random
import shutil
import sys
import time

import pytest

from shared.caption_tokens import PUNCTUATION, TOKENIZERS, tokenize_caption

# caption, its tokens joined by a space. Each row was seen to come out so of pycocoevalcap 1.2.
ENGLISH = [
    ("A man riding a wave on top of a surfboard.", "a man riding a wave on top of a surfboard"),
    ("Two dogs , one cat", "two dogs one cat"),
    ("", ""),
    ("   ", ""),
    ("...", ""),
    # clitics
    ("The man's dog isn't here", "the man 's dog is n't here"),
    ("they're I'm we've he'd she'll", "they 're i 'm we 've he 'd she 'll"),
    ("can't won't cannot DON'T", "ca n't wo n't can not do n't"),
    ("gonna wanna gotta lemme gimme", "gon na wan na got ta lem me gim me"),
    ("'tis and 'twas", "'t is and 't was"),
    ("don’t it’s", "do n't it 's"),
    ("the dogs' bowl", "the dogs bowl"),
    ("o'clock d'Avignon O'Brien rock 'n' roll", "o'clock d'avignon o'brien rock 'n' roll"),
    ("'em 'til '90s ol' c'mon y'all ma'am", "'em 'til '90s ol' c'mon y' all ma'am"),
    ("shouldn't've", "should n't 've"),
    # abbreviations
    ("Mr. Smith and Dr. Who", "mr. smith and dr. who"),
    ("in Washington D.C. at 5 p.m. today", "in washington d.c. at 5 p.m. today"),
    ("a U.S. flag", "a u.s. flag"),
    ("cars, trucks, etc.", "cars trucks etc."),
    ("on Main St. with Acme Inc. trucks", "on main st. with acme inc. trucks"),
    ("player no. 5 says no.", "player no. 5 says no"),
    ("a dog. The cat", "a dog the cat"),
    ("type A. The sign", "type a the sign"),
    ("type a. the sign", "type a. the sign"),
    ("wash. and Wash. and ill. and Ill.", "wash and wash. and ill and ill."),
    ("street.people", "street.people"),
    ("a dog., a cat", "a dog. a cat"),
    # numbers
    ("1,000 people and 3.5 feet", "1,000 people and 3.5 feet"),
    ("$5 or $5.00 or US$5", "$ 5 or $ 5.00 or us$ 5"),
    ("50% off at 10:30", "50 % off at 10:30"),
    ("12/25/2010 and 1/2", "12/25/2010 and 1/2"),
    ("a 2nd 4x4 at 10:30am", "a 2nd 4x4 at 10:30 am"),
    ("£5 €5 5¢ ½", "# 5 $ 5 5 cents 1/2"),
    ("-5 to +5 and 3-4", "-5 to +5 and 3-4"),
    ("in the '90 race", "in the '90 race"),
    # brackets stay: the list of removed punctuation is upper-case, the tokens are lower-case
    ("a (red) [big] {old} car", "a -lrb- red -rrb- -lsb- big -rsb- -lcb- old -rcb- car"),
    ("smile :) and :-( here", "smile :-rrb- and :--lrb- here"),
    # quotes
    ("a \"stop\" sign, 'go' and ``this''", "a stop sign go and this"),
    ("a “curly” ‘single’ «guillemet»", "a curly single guillemet"),
    # hyphens, slashes, dots
    ("a well-known state-of-the-art t-shirt", "a well-known state-of-the-art t-shirt"),
    ("a dog - a cat -- a bird --- a fish", "a dog a cat a bird a fish"),
    ("a dog – a cat — a bird", "a dog a cat a bird"),
    ("he/she and/or w/ it", "he/she and/or w / it"),
    ("wait... what…", "wait what"),
    ("what?! no!! yes!", "what ?! no !! yes"),
    ("one; two: three", "one two three"),
    # signs, addresses
    ("salt & pepper AT&T at&t", "salt & pepper at&t at & t"),
    ("#1 fan of #sunset by @user", "# 1 fan of #sunset by @user"),
    ("see www.foo.com or a@b.com now.", "see www.foo.com or a@b.com now"),
    ("a <b>bold</b> move &amp; more", "a <b> bold </b> move & more"),
    ("file dog.jpg shown", "file dog.jpg shown"),
    ("a*b = c_d ~ e^f", "a * b = c_d ~ e ^ f"),
    # other writing
    ("a café in Zürich", "a café in zürich"),
    ("naïve ÉCOLE", "naïve école"),
    ("a dog 😀 runs 👍🏽", "a dog runs"),
    ("20° C and 5×4 ★", "20 ° c and 5 × 4 ★"),
    ("co\xadoperate", "cooperate"),
]


@pytest.mark.parametrize(("caption", "tokens"), ENGLISH)
def test_english(caption: str, tokens: str) -> None:
    assert tokenize_caption(caption) == tokens.split()


def test_two_words_can_be_one_token() -> None:
    assert tokenize_caption("1 1/2 cups") == ["1\xa01/2", "cups"]
    assert tokenize_caption("call (555) 555-1234") == ["call", "-lrb-555-rrb-\xa0555-1234"]


def test_an_address_does_not_end_in_a_space() -> None:
    """Only a space, tab or line break ends an address; what is stripped is the line."""
    assert tokenize_caption("see http://foo.com/x\xa0") == ["see", "http://foo.com/x"]
    assert tokenize_caption("http://foo.com/x\xa0 seen") == ["http://foo.com/x\xa0", "seen"]


@pytest.mark.parametrize(
    "gap", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029", "\t", "\xa0", "\u3000", "\x00",
            "\x1f", "\x7f", "\u200b", "\ufeff", " \n \r "],
)  # fmt: skip
def test_line_breaks_and_control_characters_are_gaps(gap: str) -> None:
    """In the Java program, which works by lines, six of these move all later captions."""
    assert tokenize_caption(f"a dog{gap}runs") == ["a", "dog", "runs"]
    assert tokenize_caption(f"{gap}a dog runs.{gap}") == ["a", "dog", "runs"]


@pytest.mark.parametrize("language", TOKENIZERS)
def test_no_language_keeps_punctuation_or_capitals(language: str) -> None:
    if language == "zh-words":
        pytest.importorskip("jieba")
    tokens = tokenize_caption("A Dog, a CAT. 红色，Bus!", language)
    assert tokens[:4] == ["a", "dog", "a", "cat"]
    assert not PUNCTUATION & set(tokens)
    assert tokens[-1] == "bus"


CHINESE = [
    ("一只狗在草地上。", "一 只 狗 在 草 地 上"),
    ("一只 狗\n在草地", "一 只 狗 在 草 地"),
    ("两辆BUS停在8:30，共3.5米", "两 辆 bus 停 在 8:30 共 3.5 米"),
    ("穿Ｔ-shirt的１２人！", "穿 t-shirt 的 12 人"),  # full-width letters and digits
    ("“你好”（don't）…", "你 好 don't"),
    ("𠮷野家", "𠮷 野 家"),  # beyond the Basic Multilingual Plane
    ("カメラとinu", "カ メ ラ と inu"),
    ("50%、😀", "50"),
    ("", ""),
    ("。！", ""),
]


@pytest.mark.parametrize(("caption", "tokens"), CHINESE)
def test_chinese_characters(caption: str, tokens: str) -> None:
    assert tokenize_caption(caption, "zh") == tokens.split()


def test_chinese_words() -> None:
    pytest.importorskip("jieba")
    words = tokenize_caption("一辆红色的公共汽车停在 bus stop。", "zh-words")
    assert "".join(words) == "一辆红色的公共汽车停在busstop"
    assert "公共汽车" in words
    assert words[-2:] == ["bus", "stop"]


def test_chinese_words_without_jieba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ModuleNotFoundError, match="pip install jieba; language zh"):
        tokenize_caption("一只狗", "zh-words")


def test_refusals() -> None:
    with pytest.raises(TypeError, match="caption is NoneType None, must be a string"):
        tokenize_caption(None)
    with pytest.raises(ValueError, match="unknown language 'fr'; one of en, zh, zh-words"):
        tokenize_caption("un chien", "fr")


def test_runaway_output_ends() -> None:
    """A model that repeats itself makes long captions; no rule may search them for minutes."""
    tokenize_caption("warm-up")
    for part in ("a@.", "a'", "&", "<a b='", "1-", "x-y.", "中"):
        start = time.process_time()
        tokenize_caption(part * (4000 // len(part)))
        assert time.process_time() - start < 5, part


# --- The reference program ------------------------------------------------------------------------

PARTS = """
    a A I The the In man's dogs' can't don't DON'T it's IT'S they're cannot gonna 'twas 'tis
    o'clock d'Avignon 'n' 'em '90s '90 90's c'mon y'all ma'am Cap'n c'est O'Brien T-shirt
    well-known U.S. U.S u.k. a.m. a.k.a. e.g. etc. Mr. Dr. St. Jr. Inc. Co. Ltd. Jan. No. no.
    vs. Ph.D. B. Mass. mass. Ill. ill. ca. sq. 1 10 1,000 3.5 .5 5. $5 US$5 50% 10:30 10:30am
    12/25/2010 1/2 1-1/2 4x4 #1 #tag @user foo@bar.com www.foo.com http://foo.com/x?y=1 foo.jpg
    example.com 555-1234 (555) 555-1234 +1 2nd 1950s 6'2" ½ £5 €5 ¢ ° © café Zoë 中文 😀 ★ … – —
    ‘quoted’ “quoted” don’t ’90s «x» ` `` '' ' " "x" 'x' ''x'' ( ) [ ] { } (x) <b> </b> <br/> <
    > << &amp; &lt; &quot; &nbsp; &eacute; AT&T at&t C++ f# * ** = + / \\ | ~ ^ _ __ foo_bar a/b
    w/ - -- --- ---- ----- . .. ... .... ...... , ; : ! !! ? ?! :) :-( ^_^ (-_-) $ # % S&P-500
    -LRB- non-U.S. U.S.-based 3,000-pound word.word end.The A.B. Pty. Dunkin' ol' rockin'
    .22-caliber twenty-one wait...what word., a-b., AT&T., ev'ry n't 's 'S shouldn't've red blue
    man woman dog riding skateboard street people two three playing with
""".split()  # noqa: SIM905
GAPS = [*" " * 8, "", "  ", "\t", "\xa0", " . ", ", ", ". ", "-", "'", '"', "/", "\u200b", "\u2009"]
NAMES = "man woman dog cat bus train pizza street table child horse surfboard kitchen".split()  # noqa: SIM905


def sentences(n: int, seed: int) -> list[str]:
    """Odd sentences from parts that have rules of their own."""
    draw = random.Random(seed)
    return [
        "".join(draw.choice(PARTS) + draw.choice(GAPS) for _ in range(draw.randint(1, 9)))
        for _ in range(n)
    ]


def plain_captions(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        f"{draw.choice(['A', 'a', 'The', 'Two', 'One'])} {draw.choice(NAMES)}"
        f"{draw.choice([' near', ', next to', ' and', ' - with', ''])} a {draw.choice(NAMES)}"
        f"{draw.choice(['.', ' .', '', '. ', ' on the street.', ' in the U.S.'])}"
        for _ in range(n)
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_equal_to_the_java_program() -> None:
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    captions = [c for c, _ in ENGLISH] + sentences(3000, seed=0) + plain_captions(1000, seed=0)
    captions = [c for c in captions if c == " ".join(c.splitlines())]
    # The program looks into the next line: a line of a small letter between two captions keeps
    # them apart.
    rows = {i: [{"caption": c}, {"caption": "x"}] for i, c in enumerate(captions)}
    found = ptb.PTBTokenizer().tokenize(rows)
    differing = [
        (caption, found[i][0], " ".join(tokenize_caption(caption)))
        for i, caption in enumerate(captions)
        if found[i][0] != " ".join(tokenize_caption(caption)) or found[i][1] != "x"
    ]
    assert len(found) > 4000
    assert differing == []
