"""The texts of the toy BLIPs: the vocabulary, captions, and whether a caption is true of a scene.

A caption is read as claims (how many, colour, shape, corner), so that a false one, which the
matching loss needs, is known to be false.

Used by `toy_recipe.py` and `toy_figures.py`, part of the recipe: a change makes the committed
checkpoints stale. Reads and writes nothing; no torch.
"""

import random
import re
from collections import Counter

from shared.toy_world.questions import NUMBER_WORDS, SYNONYMS, article, position
from shared.toy_world.shapes import COLORS, KNOWN_SHAPES, SHAPES, Scene, plural

OPENING_SHARE = 0.5  # of captions that begin with "a picture of"
LABEL_SHARE = 0.2  # of those that go on with no article
COLORED_SHARE = 0.85  # of captions that name colours

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Written in pieces, so that words of several tokens are common; plurals are too.
PIECES = {
    "yellow": ("yell", "##ow"),
    "purple": ("pur", "##ple"),
    "triangle": ("tri", "##angle"),
    "crescent": ("cres", "##cent"),
}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# Words that the toy's own texts don't use but its users may; others are spelt in letters.
OTHER_WORDS = """
question answer short long caption photo image picture drawing of in on at the a an and or is are
was were be there this that these those it its they what which who where when why how many much
any some all no not yes none do does did can could shape color colour object thing item one two
three four five six seven eight nine ten left right top bottom upper lower middle center corner side
above below under over next to between behind front near far background light dark white black grey
gray orange pink brown big small large little same different other more less than most with without
see shown look like name tell describe me you i we please give count number only also both each
first second third last person people man woman cat dog car tree house
"""
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
# A thing that a caption names: "two red stars", "an arrow in the top left", "three shapes".
CLAIM = re.compile(
    r"\b(?:(?P<count>{counts}) )?(?:(?P<color>{colors}) )?(?P<shape>{shapes})(?:e?s)?\b"
    r"(?: in the (?P<corner>{corners}))?".format(
        counts="|".join(COUNTS),
        colors="|".join(COLORS),
        shapes="|".join((*SHAPES, "shape")),
        corners="|".join(CORNERS),
    )
)


def vocabulary() -> list[str]:
    """BERT's special tokens, characters alone and within words, whole words, pieces of words."""
    words: list[str] = OTHER_WORDS.split()
    for text in (*NUMBER_WORDS, *SYNONYMS, *(w for s in SYNONYMS.values() for w in s)):
        words += text.split()
    words += [*SHAPES, *COLORS]
    whole = [word for word in words if word not in PIECES]
    pieces = [piece for pieces in PIECES.values() for piece in pieces]
    inner = [f"##{character}" for character in CHARACTERS]
    tokens = (*SPECIAL_TOKENS, *"!\"#$%&'()*+,-./:;<=>?@", *CHARACTERS, *inner, *whole, *pieces)
    return list(dict.fromkeys((*tokens, "##es")))


def caption(scene: Scene, rng: random.Random, colored_share: float = COLORED_SHARE) -> str:
    """'a picture of a red star and two blue crosses', in half of them without the opening.

    Some of those with it name their first shape as a class label would: without an article.
    """
    colored = rng.random() < colored_share
    counts = Counter(f"{i.color} {i.shape}" if colored else i.shape for i in scene.items)
    phrases = [
        article(words) if n == 1 else f"{NUMBER_WORDS[n]} {plural(words)}"
        for words, n in rng.sample(list(counts.items()), len(counts))
    ]
    if rng.random() < OPENING_SHARE:
        if rng.random() < LABEL_SHARE:
            phrases[0] = re.sub(r"^an? ", "", phrases[0])
        phrases[0] = "a picture of " + phrases[0]
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def holds(text: str, scene: Scene) -> bool:
    """Whether all that a caption says is in the scene; what it does not name may be there too."""
    claimed: Counter[tuple[str | None, str, str | None]] = Counter()
    for claim in CLAIM.finditer(text):
        claimed[claim["color"], claim["shape"], claim["corner"]] += COUNTS[claim["count"] or "a"]
    for (color, shape, corner), count in claimed.items():
        if shape == "shape":
            if count != len(scene.items):
                return False
            continue
        found = sum(
            item.shape == shape
            and color in (None, item.color)
            and (corner is None or position(item) == corner)
            for item in scene.items
        )
        if found < count:
            return False
    return True


def changed(text: str, scene: Scene, rng: random.Random) -> str | None:
    """The caption with one colour, shape or corner changed so that it is false; None: not found.

    Half of the words put in are of another shape in the picture, which is the hardest.
    """
    claims = [claim for claim in CLAIM.finditer(text) if claim["shape"] != "shape"]
    for _ in range(10 if claims else 0):
        claim = rng.choice(claims)
        said = claim.groupdict()
        field = rng.choice([f for f in ("color", "shape", "corner") if said[f]])
        values = {"color": tuple(COLORS), "shape": KNOWN_SHAPES, "corner": CORNERS}[field]
        if field != "corner" and rng.random() < 0.5:
            values = tuple(getattr(item, field) for item in scene.items)
        said[field] = rng.choice(values)
        false = text[: claim.start()] + _claim_text(said) + text[claim.end() :]
        if not holds(false, scene):
            return false
    return None


def _claim_text(said: dict[str, str | None]) -> str:
    words = " ".join(word for word in (said["color"], said["shape"]) if word)
    if said["count"] in ("a", "an"):
        words = article(words)
    elif said["count"]:
        words = f"{said['count']} {plural(words) if said['count'] != 'one' else words}"
    return words + (f" in the {said['corner']}" if said["corner"] else "")
