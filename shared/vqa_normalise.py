"""The official VQA programs' normalisation of one answer: strip, punctuation, words.

What the steps do to a text; when they are applied is the protocol's affair (`shared.vqa_score`).
Pure functions of the text, memoised without a bound: an answer such as "yes" comes back a hundred
thousand times in one file, and the distinct answers of all files fit in memory. Run by
`python -m shared.vqa_score`; reads and writes nothing.

Source of every rule: PythonEvaluationTools/vqaEvaluation/vqaEval.py at
https://github.com/GT-Vision-Lab/VQA, commit a013f00 (11 March 2021); the steps are the same in
458a8b2 (8 October 2016). Their oddities are kept on purpose: they are the protocol. The published
program runs under Python 2 only; where Python 3 would answer otherwise (digits, lower case, white
space), Python 2.7 is followed. Left out are only letters that have a lower case and that Unicode
got after version 5.2, apart from Cherokee.
"""

import re
from functools import cache

# Python 2.7's Unicode 5.2 counts U+180E among the white space; the others are those of Python 3.
_EXTRA_SPACE = "\u180e"
_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + _EXTRA_SPACE
_PUNCTUATION = frozenset(
    ';/[]"{}()=+\\_-><@`,?!'
)  # not in it: ' : . & % $ # * ~ | ^ and all non-ASCII
_DIGIT_COMMA_DIGIT = re.compile("[0-9],[0-9]")
# Official: "(?!<=\\d)(\\.)(?!\\d)". The first group is a mistyped look-behind that always holds,
# so "5." loses its period like any other; ".5" keeps it.
_PERIOD = re.compile(r"\.(?![0-9])")
# Official: sub("", text, re.UNICODE), where the third argument is the count, and re.UNICODE is 32.
_MAX_PERIODS = 32
_ARTICLES = {"a", "an", "the"}
_DIGITS = dict(
    entry.split(":")
    for entry in """
none:0 zero:0 one:1 two:2 three:3 four:4 five:5 six:6 seven:7 eight:8 nine:9 ten:10
""".split()  # noqa: SIM905 (a table, not a list)
)
# Official, 120 entries as found, written:read. I'dve, Id've, Im and Ive can never match lower-case
# text, let's and she's change nothing, somebody'd is the wrong way round, and ill, well, were, id
# are absent. Kept all the same: the table is the protocol.
_CONTRACTIONS = dict(
    entry.split(":")
    for entry in """
'ow'sat:'ow's'at 'ows'at:'ow's'at aint:ain't arent:aren't cant:can't couldn'tve:couldn't've
couldnt:couldn't couldnt've:couldn't've couldve:could've didnt:didn't doesnt:doesn't dont:don't
hadn'tve:hadn't've hadnt:hadn't hadnt've:hadn't've hasnt:hasn't havent:haven't he'dve:he'd've
hed:he'd hed've:he'd've hes:he's howd:how'd howll:how'll hows:how's I'dve:I'd've Id've:I'd've
Im:I'm isnt:isn't it'dve:it'd've itd:it'd itd've:it'd've itll:it'll Ive:I've let's:let's maam:ma'am
mightn'tve:mightn't've mightnt:mightn't mightnt've:mightn't've mightve:might've mustnt:mustn't
mustve:must've neednt:needn't notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at
shant:shan't she'dve:she'd've she's:she's shed've:she'd've shouldn'tve:shouldn't've
shouldnt:shouldn't shouldnt've:shouldn't've shouldve:should've somebody'd:somebodyd
somebody'dve:somebody'd've somebodyd've:somebody'd've somebodyll:somebody'll somebodys:somebody's
someone'dve:someone'd've someoned:someone'd someoned've:someone'd've someonell:someone'll
someones:someone's something'dve:something'd've somethingd:something'd somethingd've:something'd've
somethingll:something'll thats:that's there'dve:there'd've thered:there'd thered've:there'd've
therere:there're theres:there's they'dve:they'd've theyd:they'd theyd've:they'd've theyll:they'll
theyre:they're theyve:they've twas:'twas wasnt:wasn't we'dve:we'd've wed've:we'd've werent:weren't
weve:we've whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd
wheres:where's whereve:where've who'dve:who'd've whod:who'd whod've:who'd've wholl:who'll
whos:who's whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldn'tve:wouldn't've
wouldnt:wouldn't wouldnt've:wouldn't've wouldve:would've y'all'dve:y'all'd've y'alld've:y'all'd've
y'allll:y'all'll yall:y'all yall'd've:y'all'd've yall'll:y'all'll you'dve:you'd've youd:you'd
youd've:you'd've youll:you'll youre:you're youve:you've
""".split()  # noqa: SIM905 (a table, not a list)
)


@cache
def strip_answer(text: str) -> str:
    """Official first step: line feed and tab become a space, then the ends are cut."""
    return text.replace("\n", " ").replace("\t", " ").strip(_SPACE)


@cache
def punctuation_step(text: str) -> str:
    """Official processPunctuation: delete or blank each listed mark, then drop periods.

    A mark is deleted when it stands beside a space anywhere in the text as given, else replaced by
    a space. One digit,digit anywhere makes all marks deleted: "t-shirt 1,5" gives "tshirt 15".
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    replacement = {
        ord(mark): "" if delete_all or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _PUNCTUATION.intersection(text)
    }
    return _PERIOD.sub("", text.translate(replacement), count=_MAX_PERIODS)


def _lower(text: str) -> str:
    """Lower case letter by letter, as Python 2: no final sigma, one letter for the dotted I, and
    Cherokee without case."""
    if text.isascii():
        return text.lower()
    return "".join(
        c if "\u13a0" <= c <= "\u13f5" else "i" if c == "\u0130" else c.lower() for c in text
    )


def _word_step(text: str) -> str:
    """Official processDigitArticle: lower case, number words, articles out, contractions.

    Per whole word, so "one-way", by now "one way", gives "1 way", and "the" gives "".
    """
    words = _lower(text).replace(_EXTRA_SPACE, " ").split()
    words = [_DIGITS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@cache
def normalise_answer(text: str) -> str:
    """All official steps on one answer, always: strip, punctuation, then words.

    The official programs do this to a prediction and to its references only in some cases (see
    `vqa_accuracy`), so compare two normalised strings only where you mean `always-normalise`.
    """
    return _word_step(punctuation_step(strip_answer(text)))
