"""How the toy BLIP-2 is made: tokenizer, processor, configuration, its texts and two stages.

Stage 1 teaches the vision tower which coloured shapes are in a picture (multi-label loss on the
patch tokens): learning to see through the language-model loss alone is many times slower. Stage 2
trains Q-Former, projection and OPT on the frozen tower with captions, bare questions and a few rows
in the paper's prompt form; their share sets how good zero-shot VQA is. All pictures are drawn for
this recipe from key ranges that no split of the toy VQAv2 set uses, without held-back shapes.

Used by `python blip2_qlora/make_toy_model.py`. A change here makes the committed checkpoint stale.
"""

import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.options import IGNORE_INDEX
from shared.toy_world import pictures, questions, shapes
from shared.toy_world.pictures import SIZE, scene_and_jpeg
from shared.toy_world.questions import NUMBER_WORDS, SYNONYMS, QuestionWriter, captions
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.shapes import COLORS, KNOWN_SHAPES, SHAPES, Scene, plural

if TYPE_CHECKING:
    import torch
    from transformers import Blip2ForConditionalGeneration, Blip2Processor, PreTrainedTokenizerFast

SOURCES = (
    Path(shapes.__file__),
    Path(pictures.__file__),
    Path(questions.__file__),
    Path(__file__),
)

# The prompt of the paper for OPT (BLIP-2, arXiv:2301.12597, section 4.1).
VQA_PROMPT = "Question: {} Answer:"

NUM_QUERY_TOKENS = 8
PIXEL_MEAN, PIXEL_STD = 0.93, 0.25  # of light pictures
VOCABULARY_SIZE = 320  # words, fewer than this, are filled up with unused ones

# Stage 1: the vision tower.
TOWER_PICTURES = 24_000
TOWER_STEPS = 4_000
TOWER_BATCH = 64
TOWER_LEARNING_RATE = 2e-3
# Stage 2: Q-Former, projection and OPT. Each step takes some texts about each of its pictures.
LANGUAGE_STEPS = 4_000
LANGUAGE_PICTURES_A_BATCH = 16
TEXTS_A_PICTURE = 4
LANGUAGE_LEARNING_RATE = 1e-3
CAPTION_SHARE = 0.8
VQA_SHARE = 0.01  # rows in the form of VQA_PROMPT; the rest are bare questions
QUESTIONS_A_PICTURE = 8

WARM_UP = 100
WEIGHT_DECAY = 0.01
GRADIENT_CLIP = 1.0

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # ids as in OPT: 0, 1, 2, 3
# Words that the toy's own questions don't use but its users may; what is not here is <unk>.
OTHER_WORDS = """
question answer short long caption photo image picture drawing of in on at the a an and or is are
was were be there this that these those it its they what which who where when why how many much
any some all no not yes none do does did can could shape shapes color colors colour colours
colored object objects thing things item items one two three four five six seven eight nine ten 0
1 2 3 4 5 6 7 8 9 10 left right top bottom upper lower middle center centre corner side above
below under over next to between behind front near far left-most background light dark white black
grey gray orange pink brown big small large little bigger smaller biggest smallest same different
other more less than most with without see seen show shows shown visible look looks like name tell
describe me you i we please give count number total only just also both each every first second
third last than person people man woman cat dog car tree house
"""


@dataclass(frozen=True)
class Text:
    """One training text: `prompt` is given, `target` (and the end token) is learned."""

    prompt: str
    target: str


def toy_recipe_hash() -> str:
    """The hash that the manifest of a checkpoint made by this recipe holds."""
    return recipe_hash(SOURCES)


def vocabulary() -> list[str]:
    """Special tokens, then every word that a question, answer, caption or prompt can hold."""
    words: list[str] = []
    for text in (OTHER_WORDS, *NUMBER_WORDS, *SYNONYMS, *(w for s in SYNONYMS.values() for w in s)):
        words += text.split()
    for noun in (*SHAPES, "shape"):
        words += [noun, plural(noun)]
    words += [*COLORS, *"?:,.!'"]
    unique = list(dict.fromkeys((*SPECIAL_TOKENS, *words)))
    unused = [f"<unused{i}>" for i in range(VOCABULARY_SIZE - 1 - len(unique))]
    return unique + unused  # the processor appends <image> as the last one


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Lower-casing, word-level, with OPT's special tokens; </s> opens a text as in OPT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=True,
    )


def build_processor() -> "Blip2Processor":
    from transformers import Blip2Processor, BlipImageProcessor

    image_processor = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return Blip2Processor(image_processor, build_tokenizer(), num_query_tokens=NUM_QUERY_TOKENS)


def build_model(processor: "Blip2Processor", seed: int) -> "Blip2ForConditionalGeneration":
    """The untrained model. All widths are multiples of 64, as 4-bit kernels on CPUs need."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    tokenizer = processor.tokenizer
    torch.manual_seed(seed)
    vision = Blip2VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        initializer_range=0.02,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        encoder_hidden_size=vision.hidden_size,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=64,
    )
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=NUM_QUERY_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        # The class starts the queries at zero, all alike; LAVIS draws them.
        model.query_tokens.normal_(std=1.0)
        # A tower of this size finds positions much sooner when they start out distinct.
        model.vision_model.embeddings.position_embedding.normal_(std=0.3)
    return model


def train(
    processor: "Blip2Processor", seed: int, steps_scale: float = 1.0
) -> tuple["Blip2ForConditionalGeneration", dict[str, float]]:
    """Both stages from nothing, in float32. Returns the model and what each stage reached.

    `steps_scale` multiplies the steps and the number of pictures (a smoke test takes 0.01).
    """

    def scaled(number: int) -> int:
        return max(2, round(number * steps_scale))

    model = build_model(processor, seed)
    scenes, pixels = draw_training_pictures(seed, scaled(TOWER_PICTURES))
    exact = train_tower(model, scenes, pixels, scaled(TOWER_STEPS), seed)
    features = encode(model, pixels)
    texts = training_texts(scenes, seed)
    loss = train_language(model, processor.tokenizer, features, texts, scaled(LANGUAGE_STEPS), seed)
    return model, {"tower_pictures_exactly_right": round(exact, 4), "last_loss": round(loss, 4)}


def draw_training_pictures(seed: int, count: int) -> tuple[list[Scene], "torch.Tensor"]:
    """Scenes and pictures (count, 3, 64, 64) uint8, after JPEG, of the recipe's own range."""
    import numpy as np
    import torch
    from PIL import Image
    from tqdm import tqdm

    scenes: list[Scene] = []
    pixels = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for number in tqdm(range(count), desc="drawing", unit="picture", disable=None):
        scene, jpeg = scene_and_jpeg(f"{seed}/blip2_training/{number}")
        scenes.append(scene)
        pixels[number] = np.asarray(Image.open(io.BytesIO(jpeg)))
    return scenes, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: "torch.Tensor") -> "torch.Tensor":
    """uint8 pixels -> what the image processor makes of them."""
    return (pixels.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def presence(scenes: Sequence[Scene]) -> "torch.Tensor":
    """(B, 48) 1.0 where the scene holds that pair of known shape and colour."""
    import torch

    pairs = {(s, c): i for i, (s, c) in enumerate((s, c) for s in KNOWN_SHAPES for c in COLORS)}
    target = torch.zeros(len(scenes), len(pairs))
    for row, scene in enumerate(scenes):
        for item in scene.items:
            target[row, pairs[item.shape, item.color]] = 1.0
    return target


def train_tower(
    model: "Blip2ForConditionalGeneration",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    steps: int,
    seed: int,
) -> float:
    """Stage 1. Returns the share of 500 pictures, kept out, whose set of pairs is exact."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

    tower = model.vision_model.train()
    head = torch.nn.Linear(tower.config.hidden_size, len(KNOWN_SHAPES) * len(COLORS))
    torch.nn.init.constant_(head.bias, -3.0)
    # Presence alone lets the tower forget places, and "where is the star?" stays at chance: each
    # patch token also keeps its row and column.
    place_head = torch.nn.Linear(tower.config.hidden_size, 2)
    side = tower.config.image_size // tower.config.patch_size
    places = torch.cartesian_prod(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side))
    target = presence(scenes)

    def patch_tokens(batch: "torch.Tensor") -> "torch.Tensor":
        return tower(pixel_values=batch).last_hidden_state[:, 1:]  # (B, 64, D)

    def logits(patches: "torch.Tensor") -> "torch.Tensor":
        return head(patches).amax(dim=1)  # (B, 48)

    held_out = min(500, len(scenes) // 5)
    generator = torch.Generator().manual_seed(seed)
    parameters = [*tower.parameters(), *head.parameters(), *place_head.parameters()]
    for optimizer in _optimizer_steps(parameters, steps, TOWER_LEARNING_RATE, "vision tower"):
        index = torch.randint(len(scenes) - held_out, (TOWER_BATCH,), generator=generator)
        batch = normalise(pixels[index])
        if torch.rand((), generator=generator) < 0.5:
            batch = batch.flip(-1)
        patches = patch_tokens(batch)
        seen = binary_cross_entropy_with_logits(logits(patches), target[index])
        loss = seen * target.shape[1] + mse_loss(
            place_head(patches), places.expand(len(index), -1, -1)
        )
        _update(loss, parameters, optimizer)
    tower.eval()
    with torch.no_grad():
        found = logits(patch_tokens(normalise(pixels[-held_out:]))) > 0
    return (found == target[-held_out:].bool()).all(dim=1).float().mean().item()


def encode(model: "Blip2ForConditionalGeneration", pixels: "torch.Tensor") -> "torch.Tensor":
    """Features of the frozen tower, (B, 65, D)."""
    import torch

    with torch.no_grad():
        return torch.cat(
            [
                model.vision_model(pixel_values=normalise(part)).last_hidden_state
                for part in pixels.split(256)
            ]
        )


def training_texts(scenes: Sequence[Scene], seed: int) -> list[tuple[list[Text], list[Text]]]:
    """Per scene its captions, and its questions (bare: the prompt is the question alone)."""
    writer = QuestionWriter()
    texts = []
    for number, scene in enumerate(scenes):
        rng = random.Random(f"{seed}/blip2_texts/{number}")
        asked = writer.ask(scene, QUESTIONS_A_PICTURE, rng)
        texts.append(
            (
                [Text("", caption) for caption in captions(scene, rng)],
                [Text(question.text, question.answer) for question in asked],
            )
        )
    return texts


def pick_text(captioned: Sequence[Text], asked: Sequence[Text], rng: random.Random) -> Text:
    draw = rng.random()
    if draw < CAPTION_SHARE:
        return rng.choice(captioned)
    question = rng.choice(asked)
    if draw < CAPTION_SHARE + VQA_SHARE:
        return Text(VQA_PROMPT.format(question.prompt), question.target)
    return question


def collate(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[Text]
) -> dict[str, "torch.Tensor"]:
    """input_ids, attention_mask, labels (B, T): image placeholders, </s>, prompt, target, </s>.

    Only the target and its end token carry labels. Padding is on the right; the mask hides it.
    """
    import torch

    image = [tokenizer.convert_tokens_to_ids("<image>")] * NUM_QUERY_TOKENS
    rows, labels = [], []
    for text in texts:
        given = [*image, *tokenizer(text.prompt)["input_ids"]]
        learned = tokenizer(text.target, add_special_tokens=False)["input_ids"]
        learned.append(tokenizer.eos_token_id)
        rows.append(given + learned)
        labels.append([IGNORE_INDEX] * len(given) + learned)
    width = max(len(row) for row in rows)

    def padded(lists: list[list[int]], value: int) -> "torch.Tensor":
        return torch.tensor([row + [value] * (width - len(row)) for row in lists])

    return {
        "input_ids": padded(rows, tokenizer.pad_token_id),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "labels": padded(labels, IGNORE_INDEX),
    }


def train_language(
    model: "Blip2ForConditionalGeneration",
    tokenizer: "PreTrainedTokenizerFast",
    features: "torch.Tensor",
    texts: Sequence[tuple[list[Text], list[Text]]],
    steps: int,
    seed: int,
) -> float:
    """Stage 2, the tower frozen. Returns the mean loss of the last tenth of the steps."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    rng = random.Random(f"{seed}/blip2_language")
    trained = [model.qformer, model.language_projection, model.language_model.train()]
    parameters = [p for part in trained for p in part.parameters()] + [model.query_tokens]
    losses: list[float] = []
    for optimizer in _optimizer_steps(parameters, steps, LANGUAGE_LEARNING_RATE, "Q-Former, OPT"):
        index = [rng.randrange(len(texts)) for _ in range(LANGUAGE_PICTURES_A_BATCH)]
        batch = collate(
            tokenizer,
            [pick_text(*texts[i], rng) for i in index for _ in range(TEXTS_A_PICTURE)],
        )
        queries = model.qformer(
            query_embeds=model.query_tokens.expand(len(index), -1, -1),
            encoder_hidden_states=features[index].float(),
        ).last_hidden_state  # (pictures, N, D)
        image = model.language_projection(queries).repeat_interleave(TEXTS_A_PICTURE, dim=0)
        encoded = BaseModelOutputWithPooling(pooler_output=image)
        encoded.qformer_outputs = encoded.vision_outputs = None
        loss = model(pixel_values=None, mm_encoder_outputs={"image": encoded}, **batch).loss
        _update(loss, parameters, optimizer)
        losses.append(loss.item())
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def _optimizer_steps(
    parameters: Sequence["torch.nn.Parameter"], steps: int, learning_rate: float, name: str
) -> Iterator["torch.optim.Optimizer"]:
    """Yields an AdamW optimizer `steps` times, with warm-up and cosine decay."""
    import torch
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    for step in tqdm(range(steps), desc=name, unit="step", disable=None, mininterval=2):
        warm = min(1.0, (step + 1) / WARM_UP)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = learning_rate * warm * cosine
        yield optimizer


def _update(
    loss: "torch.Tensor",
    parameters: Sequence["torch.nn.Parameter"],
    optimizer: "torch.optim.Optimizer",
) -> None:
    """One step of the optimizer. Raises FloatingPointError when the loss is not finite."""
    import torch

    if not torch.isfinite(loss):
        raise FloatingPointError("the loss is not finite; no step was taken")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
    optimizer.step()
