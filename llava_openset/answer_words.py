"""An answer cut into words: clean-up, tokens, and the words that name no thing.

Used by `matching.py` (which class an answer names) and `negation.py` (what it denies). Reads and
writes nothing; no model.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

Key = tuple[str, ...]  # a term as words; a Chinese character is a word


def words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


HARD_MARKS = frozenset(".;!?\n")  # end a negation
SOFT_MARKS = frozenset(",:()[]/、")  # end it unless a list goes on behind them
MARKS = HARD_MARKS | SOFT_MARKS
ARTICLES = words_of("a an the")
META = words_of(
    """
    image images picture pictures photo photos photograph photographs scene frame view list
    lists class classes category categories option options label labels set shot screenshot
    """
)
# Words that name nothing: with only these left, an answer is an abstention.
FUNCTION = META | words_of(
    """
    i me my we our you your he she it its they them their this that these those here there what
    which who whom whose where when why how if whether is are was were be been being am do does
    did have has had will would can could may might must shall should seem seems seemed appear
    appears appeared look looks looked looking like show shows shown showing showed depict
    depicts depicted depicting contain contains containing display displays feature features
    featuring see seen sees saw say said tell think believe guess suppose assume classify
    classified identify identified recognize recognise describe determine find found know known
    call called name named provide provided give given based on in at of to from with by for as
    about into onto over under near next beside behind between within inside outside out up down
    off and or nor but so then than because since while although though however yet just only
    also too very really quite rather more most less least likely probably perhaps maybe
    possibly possible certainly definitely clearly surely sure certain yes no not nope ok okay
    none nothing nobody anything something someone anyone everything else other others another
    any some all each every both either neither one two three four five six seven eight nine ten
    several many few single object objects item items thing things subject subjects main primary
    central prominent focus foreground answer answers result prediction predicted output final
    response question above below following listed belong belongs belonging match matches
    matching fit fits applicable unknown unidentified unidentifiable unrecognizable unrecognized
    undetermined indeterminate unspecified unclassified uncertain unclear unsure unlisted
    unlabeled unlabelled sorry apologies please thanks thank course help assist information
    enough visible present absent missing blurry blurred dark blank unfortunately confidence
    score text model assistant user ai language doubt case kind type sort instead actually again
    even still now well hello hi ie eg na nan null true false oh hm necessarily visual content
    contents details without cannot apparent apologize apologise afraid upload insufficient
    recognizable recognisable identifiable discernible determined detected shape shapes figure
    figures
    """
)
FUNCTION_ZH = frozenset(
    "这那是一个只条匹头位辆艘把本张座台架幅副双部两三几的了在中里上下有我你它他她们看起来像为和与或及"
    "能可以也都就很不没无未非请问对于从到被将会应该该此其图片像照画面主要物体对象品东西内容识别判断确定"
    "认为知道清楚显示出现所示名称类别答案之以外他余任何什么属于列表已知选项抱歉起无法难而且但却并"
    "种吧呢吗均皆全太模糊清晰暗既既啊哦好得"
)
# Behind a name these show that it was the subject; with a possessive 's, that they are part of it.
BODY = words_of(
    """
    head face hand hands arm arms leg legs foot feet paw paws nose eye eyes ear ears mouth back
    body neck hair finger fingers fur tail tails silhouette portrait picture photo image profile
    """
)
# Verbs that follow a name in a caption; by their ending alone "building" would be one.
VERBS = words_of(
    """
    sitting standing lying laying laid running walking eating drinking holding riding playing
    sleeping hanging resting crying smiling laughing wearing looking floating growing flying
    jumping waiting driving crawling moving swimming grazing surfing skiing talking using working
    posing barking traveling travelling taking going coming getting making being having leaning
    placed parked filled covered peeled sliced cut cooked tied made seated dressed surrounded
    topped mounted attached docked perched stacked served
    """
)
# Behind "stands" they show that it is the verb, and no place for bicycles or taxis.
STANDING = words_of("alone still upright in on at by near next against beside behind under outside")
COLOURS = words_of("white black red green blue yellow brown grey gray purple pink gold silver tan")
# A Chinese name of one character stands for the thing only between these; 马 in 马路 does not.
ZH_LEFT = frozenset(
    "只条匹头个位辆艘把本张座顶名群些两的是有了和与或及跟像为不没无非大小黑白红黄灰棕花胖老多几台架一"
)
ZH_RIGHT = frozenset("的和与或及在正是有坐站趴躺睡跑走吃也都吗呢吧而不群们上下里旁边前后身或跟很")

IDIOMS = (  # spellings without an apostrophe and clitics, written out before cutting into words
    (re.compile(r"\b(is|are|was|were|do|does|did|has|have|had|could|would|should|wo|ca)n'?t\b"),
     lambda m: {"wo": "will", "ca": "can"}.get(m[1], m[1]) + " not"),
    (re.compile(r"\bcannot\b"), "can not"),
    (re.compile(r"\b(it|that|there|here|he|she|what|who|where)'s\b"), r"\1 is"),
    (re.compile(r"\bi'm\b"), "i am"),
    (re.compile(r"\b(\w+)'(re|ve|ll|d)\b"),
     lambda m: f"{m[1]} {dict(re='are', ve='have', ll='will', d='would')[m[2]]}"),
)  # fmt: skip
END_TOKENS = re.compile(
    r"<\|[^|<>]*\|>|</?(?:s|pad|unk|eos|bos|end_of_turn|start_of_turn|im_end|im_start|b|i|em|strong|p"
    r"|br|div|span|u|code)\s*/?>|\[/?inst\]|\\(?:boxed|text|textbf|mathrm)\b"
)
TOKEN = re.compile(
    r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:'[^\W_\u3400-\u9fff]+)*|[.;!?\n,:()\[\]/、]"
)


@dataclass(frozen=True)
class Token:
    """A word, or a mark; `article` says that one stood before it, `owner` that it had an 's."""

    text: str
    article: bool = False
    owner: bool = False


class Mention(NamedTuple):
    """Tokens start..end name a thing: one class, several that share the name, or none listed."""

    start: int
    end: int
    classes: frozenset[str]


def _clean(text: str) -> str:
    """Case, width, quotes, markdown, end tokens, hyphens, clitics; sentence marks are kept."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = END_TOKENS.sub(" ", text).replace("。", ".").replace("\r", "\n")
    text = re.sub(r"[‘’ʼ`´]", "'", text)
    for pattern, by in IDIOMS:
        text = pattern.sub(by, text)
    text = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda m: m[0].replace(".", ""), text)  # t.v.
    text = re.sub(r"(?<=\w)-(?=(?:like|free|esque)\b)", "", text)  # dog-like is no dog
    text = re.sub(r"\s[-–]+\s|—", " , ", text)
    return re.sub(r"(?<=\d)[.,](?=\d)", " ", text)


def tokens_of(text: str) -> list[Token]:
    """Words and marks; articles become a flag of the next word, a possessive 's one of its own."""
    tokens: list[Token] = []
    article = False
    for word in TOKEN.findall(_clean(text)):
        if word in ARTICLES:
            article = True
            continue
        owner = word.endswith("'s") and len(word) > 2
        parts = (word[:-2] if owner else word).split("'") if "'" in word else [word]
        for part in parts:
            tokens.append(Token(part, article, owner and part is parts[-1]))
            article = False
    return tokens


def normalise(text: str) -> str:
    """Plain words with single spaces: no case, article, punctuation, markdown, quote, end token.

    Hyphens become spaces, clitics words ("isn't" -> "is not"), a possessive 's goes. Idempotent.
    """
    while (plain := " ".join(key_of(text))) != text:
        text = plain
    return text


def key_of(text: str) -> Key:
    return tuple(t.text for t in tokens_of(text) if t.text not in MARKS)


def is_chinese(word: str) -> bool:
    return len(word) == 1 and "\u3400" <= word <= "\u9fff"
