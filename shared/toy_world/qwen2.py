"""How the toy Qwen2 is made: tokenizer with ChatML template, configuration, texts, training.

A bilingual language model that knows the toy world from text alone: scenes stand as lists of words
("red star top left") where a LLaVA will have its picture, followed by the same questions, captions
and tasks. So the second stage of a LLaVA has to connect seeing to what is already known, as with
a real language model. Loss on the answers and their end tokens only.

The held-back shapes are in no text: their names are words of the tokenizer whose embeddings stay as
they were drawn. Scenes come from a key range of this recipe's own.

    python -m shared.toy_world.models qwen2         # trains data/toy_models/qwen2, minutes
"""

import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from shared.options import IGNORE_INDEX
from shared.toy_world import chinese, conversations, optimising, pictures, questions, shapes, tasks
from shared.toy_world.chinese import COLORS_ZH, CORNERS_ZH, SHAPES_ZH
from shared.toy_world.conversations import Turn
from shared.toy_world.pictures import sample_scene
from shared.toy_world.questions import QuestionWriter, position
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.shapes import SHAPES, Scene, plural

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

SOURCES = (
    *(
        Path(str(m.__file__))
        for m in (shapes, pictures, questions, chinese, tasks, conversations, optimising)
    ),
    Path(__file__),
)

WIDTH = 128
MAX_POSITIONS = 1024
TEXTS = 16_000
STEPS = 2_600
BATCH = 24
LEARNING_RATE = 2e-3
WARM_UP = 100
HELD_OUT_ROWS = 400
TURNS = 4

IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN)
SYSTEM = "You are a helpful assistant."
# Qwen2's template, and content in parts as processors pass it; a picture is a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2's cutting of a text into words; a word of the training texts is one token.
WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHINESE = "\u4e00-\u9fff"
# Words that the toy's texts don't use but its users may: one token each, never trained.
OTHER_WORDS = """
what which who where when why how is are can do does there it this that these none unknown other
class classes object objects image picture photo colour background small large big not or if only
from list following name list main please yes no hello thanks
"""
VOCABULARY_TEXTS = 2_000
VOCABULARY_MULTIPLE = 64


def qwen2_recipe_hash() -> str:
    """The hash that the manifest of a checkpoint made by this recipe holds."""
    return recipe_hash(SOURCES)


def vocabulary_words() -> list[str]:
    """What becomes one token each: the words of the training texts, with the blank that Qwen2's
    tokenizer leaves before them; every shape's name, the held-back ones included."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            # A run of Chinese is one word to Qwen2; here it is cut into the toy world's words.
            pre_tokenizers.Split(
                Regex("|".join([*chinese.words_zh(), f"[{CHINESE}]"])), "isolated"
            ),
        ]
    )
    writer = TextWriter("vocabulary")
    texts = ["".join(text for text, _ in writer.pieces()) for _ in range(VOCABULARY_TEXTS)]
    for noun in (*SHAPES, "shape"):
        texts += [noun, f" {noun}", f" {plural(noun)}"]
    for word in OTHER_WORDS.split():
        texts += [f" {word}", word.capitalize()]
    texts += [*chinese.words_zh(), *"，。？！："]
    words: dict[str, None] = {}
    for text in texts:
        for special in SPECIAL_TOKENS:
            text = text.replace(special, "\n")
        for word, _ in cut.pre_tokenize_str(text):
            if word[0] not in " '" and not word[0].isalpha() and word[-1].isalpha():
                word = word[1:]  # "(A": the bracket and the letter stay tokens of their own
            words[word] = None
    return sorted(words)


def build_tokenizer() -> "Qwen2Tokenizer":
    """A Qwen2 tokenizer (byte-level BPE, no text is unknown) with ChatML template and `<image>`."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # no limit: until every word is one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary_words(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", IMAGE_TOKEN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_model(tokenizer: "Qwen2Tokenizer", seed: int) -> "Qwen2ForCausalLM":
    """The untrained model. All widths are multiples of 64, as 4-bit kernels on CPUs need."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.06,  # wide, or a model of this size learns much slower
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


Piece = tuple[str, bool]  # text, learned
Encoded = tuple[list[int], list[int]]  # input_ids, labels


def chat_pieces(turns: Sequence[Turn]) -> list[Piece]:
    """A conversation in ChatML; answers and their end tokens are learned."""
    pieces: list[Piece] = [(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", False)]
    for question, answer in turns:
        pieces.append((f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces += [(f"{answer}<|im_end|>", True), ("\n", False)]
    return pieces


def listing(scene: Scene, rng: random.Random, language: str) -> str:
    """A scene as words, in random order: 'red star top left, blue cross'."""
    parts = []
    for item in rng.sample(scene.items, len(scene.items)):
        corner = position(item) or ""
        if language == "zh":
            corner = CORNERS_ZH.get(corner, "")
            parts.append(f"{COLORS_ZH[item.color]}{SHAPES_ZH[item.shape]}{corner}")
        else:
            parts.append(f"{item.color} {item.shape} {corner}".strip())
    return ", ".join(parts)


class TextWriter:
    """Training texts without end, balanced as the conversations are."""

    def __init__(self, key: str) -> None:
        self._rng = random.Random(key)
        self._writers = {"en": QuestionWriter(), "zh": QuestionWriter()}

    def pieces(self) -> list[Piece]:
        """One text. Most are chats about a listed scene."""
        rng = self._rng
        scene = sample_scene(rng, count=1 if rng.random() < 0.2 else None)
        draw = rng.random()
        language = "zh" if rng.random() < 0.25 else "en"
        seen = listing(scene, rng, "zh" if language == "zh" and rng.random() < 0.5 else "en")
        if draw < 0.15:  # as stage 1 will show captions
            caption = conversations.caption(scene, language, rng)
            return [(f"{seen}\n", False), (f"{caption}\n", True)]
        if draw < 0.23:
            return chat_pieces(conversations.text_turns(scene, rng))
        if draw < 0.33:
            return chat_pieces(self._two(scene, rng))
        if draw < 0.45:
            return chat_pieces(_about(seen, self._task(scene, rng)))
        asked = [
            conversations.asked_in(question, language, rng)
            for question in self._writers[language].ask(scene, TURNS, rng)
        ]
        rng.shuffle(asked)
        return chat_pieces(_about(seen, conversations.chat_turns(asked, scene, language, rng)))

    def _two(self, scene: Scene, rng: random.Random) -> list[Turn]:
        other = sample_scene(rng)
        turns = conversations.which_turns([scene, other], "en", rng, {})[:3]
        seen = f"{listing(scene, rng, 'en')}\n{listing(other, rng, 'en')}"
        return _about(seen, turns or [("How many pictures are there?", "2")])

    def _task(self, scene: Scene, rng: random.Random) -> list[Turn]:
        kind = rng.choice(("choice", "gqa", "word"))
        if kind == "choice":
            choice = tasks.picture_choice(scene, rng)
            return [(tasks.choice_prompt(choice, rng), tasks.LETTERS[choice.answer])]
        if kind == "word":
            word = rng.choice(tasks.WRITTEN_WORDS)
            prompt = tasks.word_prompt(
                rng.choice(tasks.WORD_QUESTIONS), tasks.ocr_tokens(word, rng)
            )
            return [(prompt, word)]
        asked = rng.sample(tasks.gqa_questions(scene, rng), 1)
        return [(f"{q.text}\n{tasks.SHORT_ANSWER}", q.answer) for q in asked]


def _about(seen: str, turns: Sequence[Turn]) -> list[Turn]:
    """The first question opens with what is seen, as it will with the picture."""
    (question, answer), *rest = turns
    return [(f"{seen}\n{question}", answer), *rest]


def encode_pieces(tokenizer: "Qwen2Tokenizer", pieces: Sequence[Piece]) -> Encoded:
    """(input_ids, labels); labels are IGNORE_INDEX where nothing is learned."""
    ids: list[int] = []
    labels: list[int] = []
    encoded = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
    for new, (_, learned) in zip(encoded, pieces, strict=True):
        ids += new
        labels += new if learned else [IGNORE_INDEX] * len(new)
    return ids, labels


def collate(tokenizer: "Qwen2Tokenizer", encoded: Sequence[Encoded]) -> dict[str, "torch.Tensor"]:
    """input_ids, attention_mask, labels (B, T), padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in encoded)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": padded([ids for ids, _ in encoded], tokenizer.pad_token_id),
        "attention_mask": padded([[1] * len(ids) for ids, _ in encoded], 0),
        "labels": padded([labels for _, labels in encoded], IGNORE_INDEX),
    }


def write_texts(tokenizer: "Qwen2Tokenizer", key: str, count: int) -> list[Encoded]:
    """Training texts of the key range `key`, encoded."""
    from tqdm import tqdm

    writer = TextWriter(key)
    progress = tqdm(range(count), desc="writing", unit="text", disable=None, mininterval=2)
    return [encode_pieces(tokenizer, writer.pieces()) for _ in progress]


def train(
    seed: int, steps_scale: float = 1.0
) -> tuple["Qwen2ForCausalLM", "Qwen2Tokenizer", dict[str, float]]:
    """Writes texts, trains and measures, in float32. Returns model, tokenizer and figures.

    `steps_scale` multiplies the steps and the number of texts (a smoke test takes 0.01).
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    texts, steps = (max(2, round(n * steps_scale)) for n in (TEXTS, STEPS))
    fit(model, tokenizer, write_texts(tokenizer, f"{seed}/qwen2_training", texts), steps, seed)
    rows = HELD_OUT_ROWS if steps_scale >= 1 else 20
    held_out = write_texts(tokenizer, f"{seed}/qwen2_held_out", rows)
    return model, tokenizer, measure(model, tokenizer, held_out)


def fit(
    model: "Qwen2ForCausalLM",
    tokenizer: "Qwen2Tokenizer",
    texts: Sequence[Encoded],
    steps: int,
    seed: int,
) -> None:
    """Trains in place."""
    rng = random.Random(f"{seed}/qwen2_order")
    model.train()
    parameters = list(model.parameters())
    for optimizer in optimising.optimizer_steps(
        parameters, steps, LEARNING_RATE, WARM_UP, "toy Qwen2"
    ):
        batch = collate(tokenizer, rng.choices(texts, k=BATCH))
        weights = answer_weights(batch["labels"])
        loss = (learned_losses(model, **batch) * weights).sum() / weights.sum()
        optimising.update(loss, parameters, optimizer)
    model.eval()


def answer_weights(labels: "torch.Tensor") -> "torch.Tensor":
    """One over the root of its answer's length for each learned token, in `learned_losses`' order.

    Else the captions, with their many easy tokens, drown the answers of one word.
    """
    import torch

    weights: list[float] = []
    for row in (labels[:, 1:] != IGNORE_INDEX).tolist():
        for learned, run in groupby(row):
            if learned:
                length = len(list(run))
                weights += [length**-0.5] * length
    return torch.tensor(weights)


def learned_losses(
    model: "Qwen2ForCausalLM",
    input_ids: "torch.Tensor",
    attention_mask: "torch.Tensor",
    labels: "torch.Tensor",
) -> "torch.Tensor":
    """Cross-entropy of each learned token; only these positions go through the LM head."""
    from torch.nn.functional import cross_entropy

    hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != IGNORE_INDEX
    logits = model.lm_head(hidden[:, :-1][learned])
    return cross_entropy(logits, targets[learned], reduction="none")


def measure(
    model: "Qwen2ForCausalLM", tokenizer: "Qwen2Tokenizer", texts: Sequence[Encoded]
) -> dict[str, float]:
    """On unseen texts: loss a token, and the share (0..1) of the answers in chats whose every token
    is the most likely one; captions, whose order is free, are mostly not."""
    import torch

    losses: list[torch.Tensor] = []
    right: list[bool] = []
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    with torch.no_grad():
        for n in range(0, len(texts), BATCH):
            batch = collate(tokenizer, texts[n : n + BATCH])
            losses.append(learned_losses(model, **batch))
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            learned = labels != IGNORE_INDEX
            hits = (logits.argmax(-1) == labels) | ~learned
            for ids, row_hits, row_learned in zip(
                batch["input_ids"], hits.tolist(), learned.tolist(), strict=True
            ):
                if start in ids:
                    right += _runs(row_hits, row_learned)
    return {
        "loss": round(torch.cat(losses).mean().item(), 4),
        "answers": len(right),
        "answers_right": round(sum(right) / len(right), 4),
    }


def _runs(hits: Sequence[bool], learned: Sequence[bool]) -> list[bool]:
    """For each run of learned positions, whether all of it was hit."""
    return [
        all(hit for _, hit in run)
        for in_answer, run in groupby(zip(learned, hits, strict=True), key=lambda pair: pair[0])
        if in_answer
    ]
