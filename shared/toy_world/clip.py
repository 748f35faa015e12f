"""How the toy CLIP is made: tokenizer, processor, configuration, captions, training, figures.

The contrastive loss on captions, plus 20 times a multi-label loss on the patch tokens of the second
to last layer, the one that a LLaVA reads: which (shape, colour) pairs are in the picture. The
contrastive loss alone needs many times longer before its patches hold anything. Evidence for a pair
is asked for on the patches that the shape covers and nowhere else, so that a patch also says where.

The held-back shapes are in no picture and in no caption: their names are words of the tokenizer
whose embeddings stay as they were drawn. Pictures come from a key range of this recipe's own.

    python -m shared.toy_world.models clip          # trains data/toy_models/clip, minutes
"""

import io
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.toy_world import optimising, pictures, questions, shapes
from shared.toy_world.pictures import SIZE, scene_and_jpeg
from shared.toy_world.questions import NUMBER_WORDS, article
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.shapes import COLORS, KNOWN_SHAPES, SHAPES, Scene, plural

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

SOURCES = (
    Path(shapes.__file__),
    Path(pictures.__file__),
    Path(questions.__file__),
    Path(optimising.__file__),
    Path(__file__),
)

PIXEL_MEAN, PIXEL_STD = 0.93, 0.25  # of light pictures
PATCH_SIZE = 8
WIDTH = 64
READ_LAYER = -2  # whose patch tokens LLaVA reads
TEXT_LENGTH = 32

PICTURES = 24_000
SINGLE_SHARE = 0.4  # of pictures with one shape
HELD_OUT = 500
STEPS = 3_000
BATCH = 64
LEARNING_RATE = 2e-3
WARM_UP = 100
MULTI_LABEL_WEIGHT = 20.0
COLORLESS_SHARE = 0.15  # of captions that leave the colours out
OPENING_SHARE = 0.5  # of captions that open with "a picture of"

SPECIAL_TOKENS = ("<pad>", "<unk>", "<|startoftext|>", "<|endoftext|>")
WORDS = """
a an the of and or with on in at is are there one two three no shape shapes picture photo image
drawing background light white top bottom left right corner center middle this that it , . ? !
"""
PAIRS = [(shape, color) for shape in KNOWN_SHAPES for color in COLORS]


def clip_recipe_hash() -> str:
    """The hash that the manifest of a checkpoint made by this recipe holds."""
    return recipe_hash(SOURCES)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Lower-casing, word-level; opens and ends a text as CLIP's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    nouns = [word for noun in SHAPES for word in (noun, plural(noun))]
    words = dict.fromkeys((*SPECIAL_TOKENS, *WORDS.split(), *nouns, *COLORS))
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = SPECIAL_TOKENS[2:]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=TEXT_LENGTH,
    )


def build_processor() -> "CLIPProcessor":
    from transformers import CLIPImageProcessor, CLIPProcessor

    return CLIPProcessor(
        CLIPImageProcessor(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
            image_mean=[PIXEL_MEAN] * 3,
            image_std=[PIXEL_STD] * 3,
        ),
        build_tokenizer(),
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "CLIPModel":
    """The untrained model. All widths are multiples of 64, as 4-bit kernels on CPUs need."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    # An eos_token_id of 2 would switch the pooling of texts to a legacy rule: see SPECIAL_TOKENS.
    text = {
        **shared,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": PATCH_SIZE}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    with torch.no_grad():
        # A tower of this size finds positions much sooner when they start out distinct.
        model.vision_model.embeddings.position_embedding.weight.normal_(std=0.3)
    return model


def draw_pictures(
    key: str, count: int, single_share: float = SINGLE_SHARE
) -> tuple[list[Scene], "torch.Tensor"]:
    """Scenes and pictures (count, 3, 64, 64) uint8, after JPEG, of the key range `key`."""
    import numpy as np
    import torch
    from PIL import Image
    from tqdm import tqdm

    scenes: list[Scene] = []
    pixels = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for number in tqdm(range(count), desc="drawing", unit="picture", disable=None, mininterval=2):
        name = f"{key}/{number}"
        single = random.Random(name + "/single").random() < single_share
        scene, jpeg = scene_and_jpeg(name, count=1 if single else None)
        scenes.append(scene)
        pixels[number] = np.asarray(Image.open(io.BytesIO(jpeg)))
    return scenes, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: "torch.Tensor") -> "torch.Tensor":
    """uint8 pixels -> what the image processor makes of them."""
    return (pixels.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def caption(scene: Scene, rng: random.Random) -> str:
    """'a picture of a red star and two blue crosses'; places are left out, as pictures are
    mirrored in training."""
    with_color = rng.random() >= COLORLESS_SHARE
    counts = Counter(f"{i.color} {i.shape}" if with_color else i.shape for i in scene.items)
    phrases = [
        article(words) if n == 1 else f"{NUMBER_WORDS[n]} {plural(words)}"
        for words, n in rng.sample(list(counts.items()), len(counts))
    ]
    opening = "a picture of " if rng.random() < OPENING_SHARE else ""
    if len(phrases) == 1:
        return opening + phrases[0]
    return opening + ", ".join(phrases[:-1]) + " and " + phrases[-1]


def presence(scenes: Sequence[Scene]) -> "torch.Tensor":
    """(B, 48) 1.0 where the scene holds that pair of known shape and colour."""
    import torch

    index = {pair: number for number, pair in enumerate(PAIRS)}
    target = torch.zeros(len(scenes), len(PAIRS))
    for row, scene in enumerate(scenes):
        for item in scene.items:
            target[row, index[item.shape, item.color]] = 1.0
    return target


def covering(scenes: Sequence[Scene]) -> "torch.Tensor":
    """(B, 64, 48) bool, True where a patch's centre lies on a shape of that pair (its circle)."""
    import torch

    index = {pair: number for number, pair in enumerate(PAIRS)}
    side = SIZE // PATCH_SIZE
    centers = torch.arange(side) * PATCH_SIZE + PATCH_SIZE / 2
    covered = torch.zeros(len(scenes), side, side, len(PAIRS), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        for item in scene.items:
            near = (centers[:, None] - item.y) ** 2 + (centers - item.x) ** 2 <= item.radius**2
            covered[row, :, :, index[item.shape, item.color]] |= near
    return covered.flatten(1, 2)


def pair_loss(logits: "torch.Tensor", covered: "torch.Tensor") -> "torch.Tensor":
    """Mean binary cross-entropy of the strongest evidence for each pair, on its shapes and off.

    logits (B, 64, 48) of the patches; covered as `covering` gives it. On a pair's own patches the
    strongest logit must be high, anywhere else the strongest must be low.
    """
    from torch.nn.functional import softplus

    low = float("-inf")
    on = logits.masked_fill(~covered, low).amax(dim=1)  # (B, 48), -inf where the pair is absent
    off = logits.masked_fill(covered, low).amax(dim=1)
    present = covered.any(dim=1)
    loss = softplus(off)
    return (loss.sum() + softplus(-on[present]).sum()) / loss.numel()


def train(
    seed: int, steps_scale: float = 1.0
) -> tuple["CLIPModel", "CLIPProcessor", dict[str, float]]:
    """Draws, trains and measures, in float32. Returns model, processor and figures.

    `steps_scale` multiplies the steps and the number of pictures (a smoke test takes 0.01).
    """
    count, steps = (max(2, round(n * steps_scale)) for n in (PICTURES, STEPS))
    scenes, pixels = draw_pictures(f"{seed}/clip_training", count)
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)
    held_out = draw_pictures(f"{seed}/clip_held_out", HELD_OUT if steps_scale >= 1 else 20)
    head = fit(model, processor.tokenizer, scenes, pixels, steps, seed)
    return model, processor, measure(model, processor.tokenizer, head, *held_out)


def fit(
    model: "CLIPModel",
    tokenizer: "PreTrainedTokenizerFast",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    steps: int,
    seed: int,
) -> "torch.nn.Linear":
    """Trains in place. Returns the multi-label head, which is no part of the checkpoint."""
    import torch
    from torch.nn.functional import cross_entropy

    head = torch.nn.Linear(WIDTH, len(PAIRS))
    torch.nn.init.constant_(head.bias, -3.0)
    parameters = [*model.parameters(), *head.parameters()]
    generator = torch.Generator().manual_seed(seed)
    rng = random.Random(f"{seed}/clip_captions")
    model.train()
    for optimizer in optimising.optimizer_steps(
        parameters, steps, LEARNING_RATE, WARM_UP, "toy CLIP"
    ):
        index = torch.randint(len(scenes), (BATCH,), generator=generator)
        chosen = [scenes[i] for i in index]
        batch, covered = normalise(pixels[index]), covering(chosen)
        if torch.rand((), generator=generator) < 0.5:  # mirrored: captions hold no places
            side = SIZE // PATCH_SIZE
            batch = batch.flip(-1)
            covered = covered.unflatten(1, (side, side)).flip(2).flatten(1, 2)
        text = tokenizer(
            [caption(scene, rng) for scene in chosen], padding=True, return_tensors="pt"
        )
        output = model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            pixel_values=batch,
            output_hidden_states=True,
        )
        # Scenes with equal captions are each other's positives as well.
        same = _same_rows(text["input_ids"])
        contrastive = (
            cross_entropy(output.logits_per_image, same)
            + cross_entropy(output.logits_per_text, same)
        ) / 2
        patches = output.vision_model_output.hidden_states[READ_LAYER][:, 1:]  # (B, 64, D)
        loss = contrastive + MULTI_LABEL_WEIGHT * pair_loss(head(patches), covered)
        optimising.update(loss, parameters, optimizer)
    model.eval()
    return head


def _same_rows(ids: "torch.Tensor") -> "torch.Tensor":
    """(B, B) target distribution: equal shares for the rows with the same tokens."""
    same = (ids[:, None] == ids[None]).all(dim=-1).float()
    return same / same.sum(dim=1, keepdim=True)


def measure(
    model: "CLIPModel",
    tokenizer: "PreTrainedTokenizerFast",
    head: "torch.nn.Linear",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
) -> dict[str, float]:
    """Shares (0..1) on unseen pictures of known shapes.

    `shape` and `pair`: zero-shot classification of single-shape pictures among 8 names and among
    48 coloured ones; `pictures_exactly_right`: the head finds exactly the pairs that are there.
    """
    import torch

    singles = [n for n, scene in enumerate(scenes) if len(scene.items) == 1]
    with torch.no_grad():
        vision = model.vision_model(normalise(pixels), output_hidden_states=True)
        found = head(vision.hidden_states[READ_LAYER][:, 1:]).amax(dim=1) > 0
        exact = (found == presence(scenes).bool()).all(dim=1).float().mean().item()
        image = model.visual_projection(vision.pooler_output[singles])

        def classify(names: Sequence[str]) -> list[int]:
            text = tokenizer(
                [f"a picture of {article(name)}" for name in names],
                padding=True,
                return_tensors="pt",
            )
            output = model.text_model(**text).pooler_output
            names_ = torch.nn.functional.normalize(model.text_projection(output), dim=-1)
            return (image @ names_.T).argmax(dim=1).tolist()

        shapes_found = classify(KNOWN_SHAPES)
        pairs_found = classify([f"{color} {shape}" for shape, color in PAIRS])
    items = [scenes[n].items[0] for n in singles]
    shape_right = [KNOWN_SHAPES[s] == i.shape for s, i in zip(shapes_found, items, strict=True)]
    pair_right = [PAIRS[p] == (i.shape, i.color) for p, i in zip(pairs_found, items, strict=True)]
    return {
        "single_shape_pictures": len(singles),
        "shape": round(sum(shape_right) / len(singles), 4),
        "pair": round(sum(pair_right) / len(singles), 4),
        "pictures": len(scenes),
        "pictures_exactly_right": round(exact, 4),
    }
