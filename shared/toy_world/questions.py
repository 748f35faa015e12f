"""Questions, annotators and captions about a toy scene.

Every template has one `question_type` in VQAv2's manner (the words a question starts with). A
`QuestionWriter` keeps count of the answers that each template has had and always asks for the
rarest one that the picture allows, so that knowing the template says little about the answer: a
model that does not look stays near chance. The shares of yes/no, number and other are VQAv2's
(about 38, 13 and 49 %, Goyal et al. 2017, arXiv:1612.00837).
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shared.toy_world.pictures import SIZE
from shared.toy_world.shapes import COLORS, KNOWN_SHAPES, Item, Scene, plural

ANNOTATORS = 10
# A shape nearer than this to a middle line of the picture is in no corner.
CORNER_MARGIN = 4.0

# template: (question_type, answer_type, share of all questions)
TEMPLATES: dict[str, tuple[str, str, float]] = {
    "is there a shape": ("is there a", "yes/no", 0.09),
    "is there a colored shape": ("is there a", "yes/no", 0.13),
    "is the shape colored": ("is the", "yes/no", 0.10),
    "are there any colored": ("are there any", "yes/no", 0.06),
    "how many shapes": ("how many", "number", 0.05),
    "how many of a color": ("how many", "number", 0.05),
    "how many of a shape": ("how many", "number", 0.03),
    "what color is the shape": ("what color is the", "other", 0.19),
    "what shape is colored": ("what shape is", "other", 0.15),
    "where is the shape": ("where is the", "other", 0.09),
    "what is in the corner": ("what is in the", "other", 0.06),
}

# What a dissenting annotator may write instead: other words for the same thing, or a near miss.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "square": ("box", "block"),
    "triangle": ("pyramid",),
    "star": ("starfish",),
    "cross": ("plus", "plus sign"),
    "diamond": ("rhombus", "kite"),
    "crescent": ("moon", "half moon"),
    "arrow": ("pointer",),
    "frame": ("square", "border"),
    "circle": ("dot", "ball"),
    "ring": ("donut",),
    "heart": ("love",),
    "stripes": ("lines", "bars"),
    "red": ("orange", "dark red"),
    "green": ("dark green",),
    "blue": ("purple", "dark blue"),
    "yellow": ("gold", "orange"),
    "purple": ("violet", "blue"),
    "cyan": ("light blue", "turquoise"),
    "top left": ("left", "upper left"),
    "top right": ("right", "upper right"),
    "bottom left": ("left", "lower left"),
    "bottom right": ("right", "lower right"),
    "yes": ("no",),
    "no": ("yes",),
    "0": ("none", "1"),
    "1": ("one", "2"),
    "2": ("two", "3", "1"),
    "3": ("three", "2"),
}
# How many of the ten dissent. Fewer on yes/no, where each dissent feeds the blind baseline.
DISSENT_COUNTS = (0, 1, 2, 3, 4)
DISSENT_WEIGHTS = {
    "yes/no": (75, 17, 6, 2, 0),
    "number": (60, 22, 10, 6, 2),
    "other": (45, 25, 15, 10, 5),
}
NUMBER_WORDS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Question:
    """One question with the true answer; `template` is a key of TEMPLATES."""

    template: str
    text: str
    answer: str

    @property
    def question_type(self) -> str:
        return TEMPLATES[self.template][0]

    @property
    def answer_type(self) -> str:
        return TEMPLATES[self.template][1]


def position(item: Item) -> str | None:
    """The corner an item is clearly in, or None when it is near a middle line."""
    dx, dy = item.x - SIZE / 2, item.y - SIZE / 2
    if min(abs(dx), abs(dy)) < CORNER_MARGIN:
        return None
    return f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def candidates(scene: Scene, template: str, rng: random.Random) -> list[Question]:
    """All the questions of a template that the scene allows, wrong things drawn by `rng`."""
    items = scene.items
    shapes, colors = {i.shape for i in items}, {i.color for i in items}
    by_shape = {s: [i for i in items if i.shape == s] for s in sorted(shapes)}
    by_color = {c: [i for i in items if i.color == c] for c in sorted(colors)}
    found: list[tuple[str, str]] = []
    if template == "is there a shape":
        absent = rng.choice([s for s in KNOWN_SHAPES if s not in shapes])
        found = [(f"Is there {article(s)}", "yes") for s in by_shape]
        found.append((f"Is there {article(absent)}", "no"))
    elif template == "is there a colored shape":
        pairs = {(i.color, i.shape) for i in items}
        found = [(f"Is there {article(f'{c} {s}')}", "yes") for c, s in sorted(pairs)]
        color, shape = _absent_pair(scene, rng)
        found.append((f"Is there {article(f'{color} {shape}')}", "no"))
    elif template == "is the shape colored":
        for shape, same in by_shape.items():
            if len({i.color for i in same}) == 1:
                others = sorted(colors - {same[0].color})
                wrong = (
                    rng.choice(others)
                    if others and rng.random() < 0.5
                    else rng.choice([c for c in COLORS if c != same[0].color])
                )
                found += [(f"Is the {shape} {same[0].color}", "yes")] if len(same) == 1 else []
                found += [(f"Is the {shape} {wrong}", "no")] if len(same) == 1 else []
    elif template == "are there any colored":
        absent = rng.choice([c for c in COLORS if c not in colors])
        found = [(f"Are there any {c} shapes", "yes") for c in by_color]
        found.append((f"Are there any {absent} shapes", "no"))
    elif template == "how many shapes":
        found = [("How many shapes are there", str(len(items)))]
    elif template == "how many of a color":
        absent = rng.choice([c for c in COLORS if c not in colors])
        found = [(f"How many {c} shapes are there", str(len(v))) for c, v in by_color.items()]
        found.append((f"How many {absent} shapes are there", "0"))
    elif template == "how many of a shape":
        absent = rng.choice([s for s in KNOWN_SHAPES if s not in shapes])
        found = [(f"How many {plural(s)} are there", str(len(v))) for s, v in by_shape.items()]
        found.append((f"How many {plural(absent)} are there", "0"))
    elif template == "what color is the shape":
        found = [(f"What color is the {s}", v[0].color) for s, v in by_shape.items() if len(v) == 1]
    elif template == "what shape is colored":
        found = [(f"What shape is {c}", v[0].shape) for c, v in by_color.items() if len(v) == 1]
    elif template == "where is the shape":
        for shape, same in by_shape.items():
            corner = position(same[0])
            if len(same) == 1 and corner:
                found.append((f"Where is the {shape}", corner))
    elif template == "what is in the corner":
        corners = Counter(position(i) for i in items)
        # An item near a middle line might be seen in either corner: ask only when there is none.
        if None not in corners:
            found = [
                (f"What is in the {position(i)}", i.shape)
                for i in items
                if corners[position(i)] == 1
            ]
    else:
        raise KeyError(template)
    return [Question(template, text + "?", answer) for text, answer in found]


def _absent_pair(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A colour and shape not in the scene together; mostly one of the two is there."""
    pairs = {(i.color, i.shape) for i in scene.items}
    while True:
        color, shape = rng.choice(list(COLORS)), rng.choice(KNOWN_SHAPES)
        draw = rng.random()
        if draw < 0.4:
            color = rng.choice(scene.items).color
        elif draw < 0.8:
            shape = rng.choice(scene.items).shape
        if (color, shape) not in pairs:
            return color, shape


class QuestionWriter:
    """Asks questions about one picture after another, keeping each template's answers balanced."""

    def __init__(self) -> None:
        self._asked: dict[str, Counter[str]] = {template: Counter() for template in TEMPLATES}

    def ask(self, scene: Scene, count: int, rng: random.Random) -> list[Question]:
        """`count` different questions about a scene."""
        chosen: list[Question] = []
        texts: set[str] = set()
        total = sum(sum(asked.values()) for asked in self._asked.values())
        while len(chosen) < count:
            template = self._next_template(total + len(chosen), rng)
            pool = [q for q in candidates(scene, template, rng) if q.text not in texts]
            if not pool:
                continue
            asked = self._asked[template]
            fewest = min(asked[q.answer] for q in pool)
            question = rng.choice([q for q in pool if asked[q.answer] == fewest])
            asked[question.answer] += 1
            texts.add(question.text)
            chosen.append(question)
        return chosen

    def _next_template(self, total: int, rng: random.Random) -> str:
        """Mostly the template furthest behind its share; sometimes any, so that none is stuck."""
        if rng.random() < 0.25:
            return rng.choices(list(TEMPLATES), [t[2] for t in TEMPLATES.values()])[0]
        return max(
            TEMPLATES,
            key=lambda t: (
                TEMPLATES[t][2] * (total + 1) - sum(self._asked[t].values()) + rng.random()
            ),
        )


def annotate(question: Question, rng: random.Random) -> list[dict[str, str | int]]:
    """Ten answers in the official form; the true one is given by at least six."""
    weights = DISSENT_WEIGHTS[question.answer_type]
    dissenting = rng.choices(DISSENT_COUNTS, weights)[0]
    answers = [question.answer] * (ANNOTATORS - dissenting)
    answers += [rng.choice(SYNONYMS[question.answer]) for _ in range(dissenting)]
    rng.shuffle(answers)
    return [
        {
            "answer": answer,
            "answer_confidence": rng.choices(("yes", "maybe", "no"), (88, 10, 2))[0],
            "answer_id": number,
        }
        for number, answer in enumerate(answers, start=1)
    ]


def captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five captions of a scene, from terse to complete with corners, in COCO's manner."""
    total = len(scene.items)
    shapes = plural("shape") if total > 1 else "shape"
    order = rng.sample(scene.items, total)
    plain = _phrases(order)
    placed = _join([_placed(item) for item in order])
    one = rng.choice(scene.items)
    return [
        _join(plain),
        placed,
        rng.choice(("a picture of ", "a photo of ")) + _join(_phrases(rng.sample(order, total))),
        f"{NUMBER_WORDS[total]} {shapes}, {placed}",
        rng.choice((_placed(one), f"{NUMBER_WORDS[total]} {shapes} on a light background")),
    ]


def _placed(item: Item) -> str:
    corner = position(item)
    return article(f"{item.color} {item.shape}") + (f" in the {corner}" if corner else "")


def _phrases(items: Sequence[Item]) -> list[str]:
    """'a red star', 'two blue crosses': equal items named together."""
    counts = Counter((i.color, i.shape) for i in items)
    return [
        article(f"{c} {s}") if n == 1 else f"{NUMBER_WORDS[n]} {c} {plural(s)}"
        for (c, s), n in counts.items()
    ]


def _join(phrases: Sequence[str]) -> str:
    if len(phrases) <= 2:
        return " and ".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]
