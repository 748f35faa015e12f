"""Writes the toy conversations of LLaVA's two stages, bilingual, in LLaVA's JSON lines.

`pretrain.jsonl`: a picture and one caption a row. `finetune.jsonl`: chats of several turns about
one picture, in English or Chinese, a caption asked for first in a quarter of them; about two
pictures; multiple choice; words written on pictures; and rows without any picture.
`held_out.jsonl`: pictures of their own, one question a row with its known answer; besides LLaVA's
fields these rows have `question_type`, `answer_type`, `language` and `answer`.
`held_out_captions.jsonl`: the same pictures with a caption each, as in stage 1.

No picture shows a held-back shape (heart, circle, ring, stripes) and no text names one: their names
are words of the toy tokenizers, but nothing ever taught a toy model what they mean or look like.
The manifest's `blind_answers` holds, per language and question type, the answer that is commonest
in finetune.jsonl: what a model that does not look would say.

    python -m shared.toy_world llava          # draws data/toy/llava, seconds
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT
from shared.toy_world import chinese, pictures, questions, sets, shapes, tasks
from shared.toy_world.build import SEED
from shared.toy_world.chinese import COLORS_ZH, DESCRIBE_ZH, SHAPES_ZH, caption_zh, question_zh
from shared.toy_world.pictures import scene_and_jpeg
from shared.toy_world.questions import Question, QuestionWriter, article, captions
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.sets import Pictures, ensure_set, write_jsonl
from shared.toy_world.shapes import COLORS, KNOWN_SHAPES, Scene
from shared.toy_world.tasks import DESCRIBE, SHORT_ANSWER

SOURCES = (
    *(Path(str(m.__file__)) for m in (shapes, pictures, questions, chinese, tasks, sets)),
    Path(__file__),
)

PRETRAIN_ROWS = 2_400
FINETUNE_ROWS = 6_400
HELD_OUT_PICTURES = 400
HELD_OUT_PAIRS = 100  # rows about two pictures
CHINESE_SHARE = 0.2
TURNS = 6
CAPTION_FIRST = 0.25
NAME_SHARE = 0.4  # of chats about a single shape that ask what it is
SUFFIX_SHARE = 0.5  # of rows whose first question carries LLaVA's short-answer suffix
IN_THE_IMAGE = 0.3  # of yes/no questions in POPE's wording

# kind of finetune row -> share
KINDS = {
    "chat": 0.54,
    "chat_zh": 0.16,
    "two_pictures": 0.08,
    "choice": 0.07,
    "words": 0.05,
    "gqa": 0.05,
    "text": 0.05,
}

Turn = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class Asked:
    """One question as a conversation asks it. `template` is a key of questions.TEMPLATES."""

    template: str
    question_type: str
    answer_type: str
    text: str
    answer: str


def llava_recipe_hash() -> str:
    """The hash that `manifest.json` of a current set holds."""
    return recipe_hash(SOURCES)


def ensure_llava(root: Path = DATA_ROOT / "toy" / "llava", redraw: bool = False) -> Path:
    """The toy LLaVA folder, drawn when it is missing or its recipe has changed.

    Raises UserError when the folder can't be written, or holds something that is not a toy set.
    """
    return ensure_set(root, "toy LLaVA conversations", llava_recipe_hash(), write_llava, redraw)


def write_llava(
    root: Path,
    seed: int = SEED,
    pretrain: int = PRETRAIN_ROWS,
    finetune: int = FINETUNE_ROWS,
    held_out: int = HELD_OUT_PICTURES,
    pairs: int = HELD_OUT_PAIRS,
) -> dict[str, Any]:
    """Draws a set into an empty folder; returns its counts and blind answers."""
    stored = Pictures(root)
    train = Author(stored, f"{seed}/llava_finetune")
    counts = {}
    before = _pretrain_rows(stored, seed, pretrain)
    after = _finetune_rows(train, seed, finetune)
    questions_, captions_ = _held_out_rows(stored, seed, held_out, pairs)
    for name, rows in (
        ("pretrain", before),
        ("finetune", after),
        ("held_out", questions_),
        ("held_out_captions", captions_),
    ):
        write_jsonl(root / f"{name}.jsonl", rows)
        counts[name] = len(rows)
    return {"counts": {**counts, "pictures": len(stored)}, "blind_answers": train.blind_answers()}


class Author:
    """Draws pictures one after another and writes balanced questions about them."""

    def __init__(self, stored: Pictures, key: str) -> None:
        self._stored = stored
        self._key = key
        self._drawn = 0
        self._writers = {"en": QuestionWriter(), "zh": QuestionWriter()}
        self._which: Counter[str] = Counter()
        self._answers: dict[str, Counter[str]] = defaultdict(Counter)

    def picture(self, count: int | None = None) -> tuple[Scene, str]:
        """A new scene and the name of its picture."""
        key = f"{self._key}/{self._drawn}"
        scene, jpeg = scene_and_jpeg(key, count=count)
        return scene, self._store(jpeg)

    def written(self) -> tuple[Scene, str, str]:
        """A new scene with a word on it: (scene, word, name of the picture)."""
        scene, word, jpeg = tasks.written_picture(f"{self._key}/written/{self._drawn}")
        return scene, word, self._store(jpeg)

    def _store(self, jpeg: bytes) -> str:
        split = self._key.split("/")[-1].removeprefix("llava_")
        self._drawn += 1
        return self._stored.add(f"images/{split}_{self._drawn:06d}.jpg", jpeg)

    def ask(self, scene: Scene, count: int, language: str, rng: random.Random) -> list[Asked]:
        """Different questions about one scene, in random order."""
        asked = [
            asked_in(question, language, rng)
            for question in self._writers[language].ask(scene, count, rng)
        ]
        rng.shuffle(asked)
        for one in asked:
            self._answers[f"{language}/{one.question_type}"][one.answer] += 1
        return asked

    def which(
        self, scenes: Sequence[Scene], language: str, count: int, rng: random.Random
    ) -> list[Turn]:
        """Questions about two scenes; `first` and `second` are the answer equally often."""
        turns = which_turns(scenes, language, rng, self._which)[:count]
        for _, answer in turns:
            self._which[answer] += 1
            self._answers[f"{language}/which picture"][answer] += 1
        return turns

    def blind_answers(self) -> dict[str, str]:
        """'en/is there a' -> its commonest answer; a tie goes to the first in order."""
        return {
            kind: min(counts, key=lambda answer: (-counts[answer], answer))
            for kind, counts in sorted(self._answers.items())
        }


def asked_in(question: Question, language: str, rng: random.Random) -> Asked:
    """A question in the wording of a conversation; some yes/no ones in POPE's."""
    kind = (question.template, question.question_type, question.answer_type)
    if language == "zh":
        return Asked(*kind, *question_zh(question))
    text = question.text
    if question.answer_type == "yes/no" and not text.startswith("Is the "):
        where = " in the image?" if rng.random() < IN_THE_IMAGE else "?"
        text = text.removesuffix("?") + where
    return Asked(*kind, text, question.answer)


def caption(scene: Scene, language: str, rng: random.Random) -> str:
    """A caption that names everything in the scene."""
    return caption_zh(scene, rng) if language == "zh" else rng.choice(captions(scene, rng)[:4])


def which_turns(
    scenes: Sequence[Scene], language: str, rng: random.Random, asked: Mapping[str, int]
) -> list[Turn]:
    """Which of two pictures has a thing that only one has; rarer answers of `asked` first."""
    pairs = [{(i.color, i.shape) for i in scene.items} for scene in scenes]
    turns = []
    for number in (0, 1):
        for color, shape in sorted(pairs[number] - pairs[1 - number]):
            if language == "zh":
                question = f"哪张图片里有{COLORS_ZH[color]}的{SHAPES_ZH[shape]}？"
                turns.append((question, ("第一张", "第二张")[number]))
            else:
                question = f"Which picture has the {color} {shape}?"
                turns.append((question, ("first", "second")[number]))
    rng.shuffle(turns)
    return sorted(turns, key=lambda turn: asked.get(turn[1], 0))


def chat_turns(
    asked: Sequence[Asked], scene: Scene, language: str, rng: random.Random
) -> list[Turn]:
    """The turns of a chat from its questions: in a quarter a caption is asked for first."""
    turns = [(one.text, one.answer) for one in asked]
    if language == "en" and rng.random() < SUFFIX_SHARE:
        turns[0] = (f"{turns[0][0]}\n{SHORT_ANSWER}", turns[0][1])
    if len(scene.items) == 1 and rng.random() < NAME_SHARE:
        turns[-1] = _name_turn(scene, language, rng)
    if rng.random() < CAPTION_FIRST:
        prompt = rng.choice(DESCRIBE_ZH if language == "zh" else DESCRIBE)
        turns[0] = (prompt, caption(scene, language, rng))
    return turns


def _name_turn(scene: Scene, language: str, rng: random.Random) -> Turn:
    shape = scene.items[0].shape
    if language == "zh":
        return "这是什么图形？", SHAPES_ZH[shape]
    return rng.choice(("What shape is this?", "What is this?", "What shape is it?")), shape


def text_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """Turns that need no picture: translation, multiple choice, counting what is listed."""
    turns: list[Turn] = []
    for _ in range(rng.randint(2, 4)):
        color, shape = rng.choice(list(COLORS)), rng.choice(KNOWN_SHAPES)
        english, chinese_ = f"{color} {shape}", f"{COLORS_ZH[color]}的{SHAPES_ZH[shape]}"
        kind = rng.choice(("to_zh", "to_en", "choice", "count"))
        if kind == "to_zh":
            turns.append((f"Say in Chinese: {english}", chinese_))
        elif kind == "to_en":
            turns.append((f"用英文说：{chinese_}", english))
        elif kind == "choice":
            choice = tasks.text_choice(scene, rng)
            turns.append((tasks.choice_prompt(choice, rng), tasks.LETTERS[choice.answer]))
        else:
            listed = rng.sample(KNOWN_SHAPES, rng.randint(1, 4))
            names = ", ".join(article(name) for name in listed)
            turns.append((f"How many shapes are these: {names}?", str(len(listed))))
    return turns


def row(
    row_id: str, image: str | list[str] | None, turns: Sequence[Turn], **more: str
) -> dict[str, Any]:
    """A LLaVA row; the first question gets one `<image>` line a picture."""
    pictures_ = [image] if isinstance(image, str) else image or []
    conversations = []
    for number, (question, answer) in enumerate(turns):
        head = "<image>\n" * len(pictures_) if number == 0 else ""
        conversations.append({"from": "human", "value": head + question})
        conversations.append({"from": "gpt", "value": answer})
    shown = {} if image is None else {"image": image}
    return {"id": row_id, **shown, "conversations": conversations, **more}


def _pretrain_rows(stored: Pictures, seed: int, count: int) -> list[dict[str, Any]]:
    author = Author(stored, f"{seed}/llava_pretrain")
    rows = []
    for number in _progress(count, "toy pretrain"):
        rng = random.Random(f"{seed}/llava_pretrain/{number}/text")
        scene, image = author.picture()
        rows.append(row(f"pretrain_{number:06d}", image, [caption_turn(scene, rng)]))
    return rows


def caption_turn(scene: Scene, rng: random.Random) -> Turn:
    """A caption asked for and given, now and then in Chinese."""
    language = "zh" if rng.random() < CHINESE_SHARE else "en"
    return rng.choice(DESCRIBE_ZH if language == "zh" else DESCRIBE), caption(scene, language, rng)


def _finetune_rows(author: Author, seed: int, count: int) -> list[dict[str, Any]]:
    rows = []
    for number in _progress(count, "toy finetune"):
        rng = random.Random(f"{seed}/llava_finetune/{number}/text")
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        image, turns = _finetune_row(author, kind, rng)
        rows.append(row(f"finetune_{number:06d}", image, turns))
    return rows


def _finetune_row(
    author: Author, kind: str, rng: random.Random
) -> tuple[str | list[str] | None, list[Turn]]:
    if kind == "text":
        scene, _ = scene_and_jpeg(f"text/{rng.random()}")
        return None, text_turns(scene, rng)
    if kind == "two_pictures":
        scenes, images = zip(*(author.picture() for _ in range(2)), strict=True)
        turns = author.which(scenes, "zh" if rng.random() < CHINESE_SHARE else "en", 4, rng)
        # Two pictures of the same things: nothing tells them apart.
        return list(images), turns or [("How many pictures are there?", "2")]
    if kind == "words":
        scene, word, image = author.written()
        turns = []
        for question in rng.sample(tasks.WORD_QUESTIONS, 2):
            tokens = tasks.ocr_tokens(word, rng) if rng.random() < 0.7 else None
            turns.append((tasks.word_prompt(question, tokens), word))
        return image, turns
    scene, image = author.picture()
    if kind == "choice":
        choices = list(dict.fromkeys(tasks.picture_choice(scene, rng) for _ in range(3)))
        return image, [(tasks.choice_prompt(c, rng), tasks.LETTERS[c.answer]) for c in choices]
    if kind == "gqa":
        asked = tasks.gqa_questions(scene, rng)
        rng.shuffle(asked)
        return image, [(f"{q.text}\n{SHORT_ANSWER}", q.answer) for q in asked]
    language = "zh" if kind == "chat_zh" else "en"
    return image, chat_turns(author.ask(scene, TURNS, language, rng), scene, language, rng)


def _held_out_rows(
    stored: Pictures, seed: int, count: int, pairs: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two English questions a picture, a Chinese one about every second; questions of two.

    And a caption of every picture, as in pretrain.jsonl.
    """
    author = Author(stored, f"{seed}/llava_held_out")
    rows: list[dict[str, Any]] = []
    captioned: list[dict[str, Any]] = []

    def add(
        image: str | list[str], language: str, question_type: str, answer_type: str, turn: Turn
    ) -> None:
        more = {
            "question_type": question_type,
            "answer_type": answer_type,
            "language": language,
            "answer": turn[1],
        }
        rows.append(row(f"held_out_{len(rows):06d}", image, [turn], **more))

    for number in _progress(count, "toy held_out"):
        rng = random.Random(f"{seed}/llava_held_out/{number}/text")
        scene, image = author.picture()
        turn = caption_turn(scene, random.Random(f"{seed}/llava_held_out/{number}/caption"))
        captioned.append(row(f"held_out_caption_{number:06d}", image, [turn]))
        for language, asked in (("en", 2), ("zh", 1 - number % 2)):
            for one in author.ask(scene, asked, language, rng) if asked else ():
                add(image, language, one.question_type, one.answer_type, (one.text, one.answer))
    for number in range(pairs):
        rng = random.Random(f"{seed}/llava_held_out/pairs/{number}/text")
        scenes, images = zip(*(author.picture() for _ in range(2)), strict=True)
        for turn in author.which(scenes, "en", 1, rng):
            add(list(images), "en", "which picture", "other", turn)
    return rows, captioned


def _progress(count: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(range(count), desc=name, unit="row", disable=None, mininterval=1)
