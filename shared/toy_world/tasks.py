"""Question forms of the standard tasks, about toy scenes: multiple choice, GQA's, written words.

The training conversations and the toy benchmarks share these, so that a model that was trained on
one can be scored on the other; the suffixes and the OCR line are LLaVA-1.5's.
Used by `conversations.py`, `benchmarks.py` and `qwen2.py`; reads and writes nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from shared.toy_world.pictures import SIZE, draw, jpeg_bytes, sample_scene
from shared.toy_world.questions import article
from shared.toy_world.shapes import COLORS, KNOWN_SHAPES, Item, Scene

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
OCR_LINE = "Reference OCR token: "
LETTERS = "ABCDE"
DESCRIBE = ("Describe the image.", "What is in the picture?", "Describe the image briefly.")

# What stands written on pictures, and what an OCR engine finds besides.
WRITTEN_WORDS = (
    *("stop", "go", "open", "exit", "sale", "taxi", "bank", "cafe"),
    *("school", "hotel", "pizza", "zoo", "park", "shop", "books", "music"),
)
OCR_NOISE = ("ii", "oo", "lll", "xx", "tt", "vv", "www", "nn")
WORD_QUESTIONS = (
    "What word is written in the image?",
    "What does the text say?",
    "What is written in the picture?",
)
WRITTEN_HEIGHT = 16  # pixels at the bottom that the word takes


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question; `answer` is an index into `choices`, `hint` may be empty."""

    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str = ""


def choose(
    question: str, right: str, wrong: Sequence[str], rng: random.Random, hint: str = ""
) -> Choice:
    """`right` among up to three of `wrong`, in random order."""
    choices = [right, *rng.sample(wrong, min(len(wrong), rng.randint(1, 3)))]
    rng.shuffle(choices)
    return Choice(question, tuple(choices), choices.index(right), hint)


def picture_choice(scene: Scene, rng: random.Random) -> Choice:
    """A multiple-choice question that needs the picture."""
    item = rng.choice(scene.items)
    shapes = {i.shape for i in scene.items}
    colors = {i.color for i in scene.items}
    kinds = ["shape", "color", "count"]
    if sum(i.shape == item.shape for i in scene.items) == 1:
        kinds.append("color of")
    kind = rng.choice(kinds)
    if kind == "shape":
        wrong = [s for s in KNOWN_SHAPES if s not in shapes]
        return choose("Which shape is in the picture?", item.shape, wrong, rng)
    if kind == "color":
        wrong = [c for c in COLORS if c not in colors]
        return choose("Which color is in the picture?", item.color, wrong, rng)
    if kind == "count":
        total = len(scene.items)
        wrong = [str(n) for n in range(1, 5) if n != total]
        return choose("How many shapes are in the picture?", str(total), wrong, rng)
    wrong = [c for c in COLORS if c != item.color]
    return choose(f"What color is the {item.shape}?", item.color, wrong, rng)


def text_choice(scene: Scene, rng: random.Random) -> Choice:
    """A multiple-choice question that needs no picture: about words, or about the hint."""
    item = rng.choice(scene.items)
    kind = rng.choice(("color", "shape", "number", "hint", "hint"))
    if kind == "color":
        wrong = rng.sample(KNOWN_SHAPES, 3)
        return choose("Which word is a color?", rng.choice(list(COLORS)), wrong, rng)
    if kind == "shape":
        wrong = rng.sample(list(COLORS), 3)
        return choose("Which word is a shape?", rng.choice(KNOWN_SHAPES), wrong, rng)
    if kind == "number":
        low = rng.randint(0, 6)
        wrong = [str(n) for n in range(0, low + 1)][-3:]
        return choose("Which number is the largest?", str(low + rng.randint(1, 3)), wrong, rng)
    hint = f"There is {article(f'{item.color} {item.shape}')}."
    if rng.random() < 0.5:
        wrong = [c for c in COLORS if c != item.color]
        return choose(f"What color is the {item.shape}?", item.color, wrong, rng, hint)
    wrong = [s for s in KNOWN_SHAPES if s != item.shape]
    return choose(f"Which shape is {item.color}?", item.shape, wrong, rng, hint)


def choice_prompt(choice: Choice, rng: random.Random) -> str:
    """The prompt in one of the two forms that LLaVA's data have: 'A. x' lines or '(A) x (B) y'."""
    pairs = list(zip(LETTERS, choice.choices, strict=False))
    if rng.random() < 0.7:
        hint = f"Context: {choice.hint}\n" if choice.hint else ""
        options = "\n".join(f"{letter}. {text}" for letter, text in pairs)
        if rng.random() < 0.5:
            return f"{choice.question}\n{hint}{options}\n{LETTER_ANSWER}"
        return f"{hint}{choice.question}\n{options}\n{LETTER_ANSWER}"
    options = " ".join(f"({letter}) {text}" for letter, text in pairs)
    return (
        f"Context: {choice.hint or 'N/A'}\nQuestion: {choice.question}\nOptions: {options}\n"
        f"{LETTER_ANSWER}"
    )


@dataclass(frozen=True)
class GqaQuestion:
    """One question in GQA's manner with its short and its full answer."""

    structural: str  # verify, query, choose, logical, compare
    semantic: str  # obj, attr, rel
    detailed: str
    text: str
    answer: str
    full_answer: str


def gqa_questions(scene: Scene, rng: random.Random) -> list[GqaQuestion]:
    """All forms that the scene allows, one question each, wrong things drawn by `rng`."""
    items = scene.items
    shapes = {i.shape for i in items}
    single = [i for i in items if sum(o.shape == i.shape for o in items) == 1]
    absent = rng.choice([s for s in KNOWN_SHAPES if s not in shapes])
    there = rng.random() < 0.5
    asked = rng.choice(sorted(shapes)) if there else absent
    found = [
        GqaQuestion(
            "verify",
            "obj",
            "existC",
            f"Is there {article(asked)} in this picture?",
            "yes" if there else "no",
            f"{'Yes' if there else 'No'}, there is {article(asked) if there else 'no ' + asked}.",
        )
    ]
    both = rng.random() < 0.5 and len(shapes) > 1
    if len(shapes) > 1:
        first, second = rng.sample(sorted(shapes), 2)
        second = second if both else absent
        found.append(
            GqaQuestion(
                "logical",
                "obj",
                "existAnd",
                f"Are there both {article(first)} and {article(second)}?",
                "yes" if both else "no",
                "Yes, there are both." if both else f"No, there is no {second}.",
            )
        )
    if single:
        item = rng.choice(single)
        full = f"The {item.shape} is {item.color}."
        wrong = rng.choice([c for c in COLORS if c != item.color])
        one, two = rng.sample([item.color, wrong], 2)
        found += [
            GqaQuestion(
                "query", "attr", "directOf", f"What color is the {item.shape}?", item.color, full
            ),
            GqaQuestion(
                "choose",
                "attr",
                "chooseAttr",
                f"Is the {item.shape} {one} or {two}?",
                item.color,
                full,
            ),
        ]
    pairs = [(a, b) for a in single for b in single if a != b and abs(a.x - b.x) > 12]
    if pairs:
        a, b = rng.choice(pairs)
        side = "left" if a.x < b.x else "right"
        found.append(
            GqaQuestion(
                "choose",
                "rel",
                "relChooser",
                f"Is the {a.shape} to the left or to the right of the {b.shape}?",
                side,
                f"The {a.shape} is to the {side} of the {b.shape}.",
            )
        )
    if len(items) == 2 and len(single) == 2:
        same = items[0].color == items[1].color
        found.append(
            GqaQuestion(
                "compare",
                "attr",
                "sameC" if rng.random() < 0.5 else "twoSame",
                f"Do the {items[0].shape} and the {items[1].shape} have the same color?",
                "yes" if same else "no",
                "Yes, they have the same color." if same else "No, the colors differ.",
            )
        )
    return found


def written_picture(key: str) -> tuple[Scene, str, bytes]:
    """(scene of one shape, word, JPEG): the shape above, the word in dark letters below it."""
    rng = random.Random(key)
    scene = sample_scene(rng, count=1)
    item: Item = scene.items[0]
    radius = min(item.radius, 13.0)
    y = rng.uniform(radius + 1, SIZE - WRITTEN_HEIGHT - radius)
    scene = replace(scene, items=(replace(item, radius=radius, y=y),))
    picture = draw(scene, rng)
    word = rng.choice(WRITTEN_WORDS)
    _write(picture, word, rng)
    return scene, word, jpeg_bytes(picture)


def _write(picture: Image.Image, word: str, rng: random.Random) -> None:
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=14)
    left, top, right, bottom = pen.textbbox((0, 0), word, font=font)
    x = rng.uniform(1, SIZE - 1 - (right - left)) - left
    y = SIZE - 1 - WRITTEN_HEIGHT + (WRITTEN_HEIGHT - (bottom - top)) / 2 - top
    pen.text((x, y), word, fill=(40, 40, 40), font=font)


def word_box(word: str) -> tuple[int, int]:
    """(width, height) in pixels of a written word."""
    left, top, right, bottom = ImageFont.load_default(size=14).getbbox(word)
    return round(right - left), round(bottom - top)


def ocr_tokens(word: str, rng: random.Random) -> list[str]:
    """What OCR finds: the word (missing once in ten) and one to three pieces of noise."""
    tokens = rng.sample(OCR_NOISE, rng.randint(1, 3))
    if rng.random() < 0.9:
        tokens.append(word)
    if rng.random() < 0.2:  # a word that is not on the picture
        tokens.append(rng.choice([w for w in WRITTEN_WORDS if w != word]))
    rng.shuffle(tokens)
    return tokens


def word_prompt(question: str, tokens: Sequence[str] | None) -> str:
    """LLaVA-1.5's TextVQA prompt, with the OCR tokens or (None) without."""
    line = f"{OCR_LINE}{', '.join(tokens)}\n" if tokens is not None else ""
    return f"{question}\n{line}{SHORT_ANSWER}"
