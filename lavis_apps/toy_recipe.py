"""How the three toy BLIPs are made: tokenizer, processor, configurations, texts, training.

All start from the vision tower of the committed toy BLIP-2, whose patch tokens hold shapes, colours
and places. The caption and the VQA model train their text part on that tower, frozen. The matching
model first trains tower and text together by the contrastive loss (ITC), with a loss on the patches
that puts the evidence for a shape on the shape; then, on that tower, ITC and the matching loss
(ITM) on hard negatives. Those are pictures and captions that the ITC takes for near, and the
caption with one word changed; each is checked against the scene, so that nothing true is called
false.

Captions name shapes and colours; places only the ITM sees, so that fine-tuning can still add some.
Pictures come from a key range of this recipe's own and show no held-back shape.

Used by `python lavis_apps/make_toy_model.py`. A change here makes the committed checkpoints stale.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_apps import toy_texts
from lavis_apps.processors import blip_question
from lavis_apps.toy_texts import caption, changed, holds, vocabulary
from shared.options import DATA_ROOT, IGNORE_INDEX
from shared.toy_world import clip, optimising, pictures, questions, shapes
from shared.toy_world.clip import BATCH, WIDTH, covering, normalise, pair_loss
from shared.toy_world.pictures import SIZE
from shared.toy_world.questions import QuestionWriter, captions
from shared.toy_world.recipe import recipe_hash
from shared.toy_world.shapes import Scene

if TYPE_CHECKING:
    import torch
    from transformers import (
        BertTokenizer,
        BlipForConditionalGeneration,
        BlipForImageTextRetrieval,
        BlipForQuestionAnswering,
        BlipPreTrainedModel,
        BlipProcessor,
    )

SOURCES = (
    Path(shapes.__file__),
    Path(pictures.__file__),
    Path(questions.__file__),
    Path(clip.__file__),
    Path(optimising.__file__),
    Path(toy_texts.__file__),
    Path(__file__),
)
TOWER = DATA_ROOT / "toy_models" / "blip2_opt"
KINDS = ("caption", "vqa", "matching")

TEXT_LAYERS = 2
TEXT_LENGTH = 64
TEXT_INITIALIZER_RANGE = 0.05
PICTURES = 16_000
WARM_UP = 100

CAPTION_STEPS = 400
CAPTION_LEARNING_RATE = 2e-3
CAPTION_COLORED_SHARE = 0.3  # few, so that the captions leave something to fine-tuning

VQA_STEPS = 800
VQA_LEARNING_RATE = 2e-3
VQA_PICTURES_A_BATCH = 24
QUESTIONS_A_PICTURE = 4

MATCHING_STEPS = 1_600
TOWER_SHARE = 0.2  # of the steps, which train the tower
TOWER_LEARNING_RATE = 1e-3
MATCHING_LEARNING_RATE = 2e-3
TEMPERATURE = 0.07  # of the ITC; fixed, as the checkpoint of this class holds none
PATCH_WEIGHT = 20.0  # of the loss on the patches, as in the toy CLIP
PLACE_WEIGHT = 1.0
PLACED_SHARE = 0.3  # of the ITM's captions that name places; the ITC's never do
CHANGED_SHARE = 0.5  # of the ITM's false captions that are the true one with a word changed


def toy_recipe_hash() -> str:
    """The hash that the manifests of checkpoints made by this recipe hold."""
    return recipe_hash(SOURCES)


def build_processor() -> "BlipProcessor":
    """As on the Hub: a BERT tokenizer, which does not hold [DEC] and [ENC] (see `text_config`)."""
    from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor

    ids = {token: number for number, token in enumerate(vocabulary())}
    image_processor = BlipImageProcessor(
        size={"height": SIZE, "width": SIZE},
        image_mean=[clip.PIXEL_MEAN] * 3,
        image_std=[clip.PIXEL_STD] * 3,
    )
    return BlipProcessor(image_processor, BertTokenizer(ids, model_max_length=TEXT_LENGTH))


def build_model(kind: str, tokenizer: "BertTokenizer", seed: int) -> "BlipPreTrainedModel":
    """A model of one of KINDS with the toy BLIP-2's vision tower and an untrained text part.

    [DEC] and [ENC] are the two ids after the tokenizer's last, as in BLIP's checkpoints.
    """
    import torch
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipForImageTextRetrieval,
        BlipForQuestionAnswering,
    )

    text = {
        "vocab_size": len(tokenizer) + 2,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "max_position_embeddings": TEXT_LENGTH,
        "initializer_range": TEXT_INITIALIZER_RANGE,
        "bos_token_id": len(tokenizer),
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    tower, tower_config = read_tower()
    config = BlipConfig(
        text_config=text,
        vision_config=tower_config,
        projection_dim=WIDTH,
        image_text_hidden_size=WIDTH,
        initializer_range=TEXT_INITIALIZER_RANGE,
    )
    torch.manual_seed(seed)
    model = {
        "caption": BlipForConditionalGeneration,
        "vqa": BlipForQuestionAnswering,
        "matching": BlipForImageTextRetrieval,
    }[kind](config)
    model.vision_model.load_state_dict(tower)
    return model


def read_tower() -> tuple[dict[str, "torch.Tensor"], dict[str, object]]:
    """Weights (float32) and configuration of the toy BLIP-2's vision tower."""
    from safetensors import safe_open
    from transformers import Blip2VisionConfig

    config = Blip2VisionConfig.from_pretrained(TOWER)
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "hidden_act",
        "layer_norm_eps",
    )
    prefix = "vision_model."
    with safe_open(TOWER / "model.safetensors", "pt") as weights:
        tower = {
            name.removeprefix(prefix): weights.get_tensor(name).float()
            for name in weights.keys()  # noqa: SIM118 - no dict
            if name.startswith(prefix)
        }
    return tower, {
        **{name: getattr(config, name) for name in names},
        "initializer_range": 0.02,
        "projection_dim": WIDTH,
    }


def tokens(
    tokenizer: "BertTokenizer", texts: Sequence[str], first: int
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """input_ids and attention_mask (B, T), right-padded, the first token set to the id `first`."""
    batch = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
    batch["input_ids"][:, 0] = first
    return batch["input_ids"], batch["attention_mask"]


# Training


def train(
    model: "BlipPreTrainedModel",
    kind: str,
    tokenizer: "BertTokenizer",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    seed: int,
    steps_scale: float = 1.0,
) -> dict[str, float]:
    """Trains a model of one of KINDS in place; returns the last losses by name.

    `steps_scale` multiplies the steps (a smoke test takes 0.01).
    """
    fit, steps = {
        "caption": (train_caption, CAPTION_STEPS),
        "vqa": (train_vqa, VQA_STEPS),
        "matching": (train_matching, MATCHING_STEPS),
    }[kind]
    return fit(model, tokenizer, scenes, pixels, max(2, round(steps * steps_scale)), seed)


def encode(model: "BlipPreTrainedModel", pixels: "torch.Tensor") -> "torch.Tensor":
    """Vision states of the frozen tower, (B, 65, D) in bfloat16 to halve the memory."""
    import torch

    with torch.no_grad():
        return torch.cat(
            [
                model.vision_model(normalise(part)).last_hidden_state.bfloat16()
                for part in pixels.split(256)
            ]
        )


def language_loss(
    decoder: "torch.nn.Module",
    ids: "torch.Tensor",
    mask: "torch.Tensor",
    states: "torch.Tensor",
    states_mask: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """Mean loss of all tokens after the first, with teacher forcing."""
    return decoder(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=states,
        encoder_attention_mask=states_mask,
        labels=ids.masked_fill(mask == 0, IGNORE_INDEX),
    ).loss


def train_caption(
    model: "BlipForConditionalGeneration",
    tokenizer: "BertTokenizer",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Trains the decoder in place, the tower frozen."""
    features = encode(model, pixels)
    rng = random.Random(f"{seed}/blip_captions")
    decoder = model.text_decoder.train()
    parameters = list(decoder.parameters())
    start = model.config.text_config.bos_token_id
    losses: list[float] = []
    for optimizer in optimising.optimizer_steps(
        parameters, steps, CAPTION_LEARNING_RATE, WARM_UP, "caption decoder"
    ):
        index = [rng.randrange(len(scenes)) for _ in range(BATCH)]
        ids, mask = tokens(
            tokenizer, [caption(scenes[i], rng, CAPTION_COLORED_SHARE) for i in index], start
        )
        loss = language_loss(decoder, ids, mask, features[index].float())
        optimising.update(loss, parameters, optimizer)
        losses.append(loss.item())
    model.eval()
    return {"language": _last_mean(losses)}


def train_vqa(
    model: "BlipForQuestionAnswering",
    tokenizer: "BertTokenizer",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Trains question encoder and answer decoder in place, the tower frozen."""
    features = encode(model, pixels)
    rng = random.Random(f"{seed}/blip_questions")
    writer = QuestionWriter()
    trained = [model.text_encoder.train(), model.text_decoder.train()]
    parameters = [p for part in trained for p in part.parameters()]
    start = model.config.text_config.bos_token_id
    losses: list[float] = []
    for optimizer in optimising.optimizer_steps(
        parameters, steps, VQA_LEARNING_RATE, WARM_UP, "question encoder, answer decoder"
    ):
        index = [rng.randrange(len(scenes)) for _ in range(VQA_PICTURES_A_BATCH)]
        asked = [q for i in index for q in writer.ask(scenes[i], QUESTIONS_A_PICTURE, rng)]
        image = features[index].float().repeat_interleave(QUESTIONS_A_PICTURE, dim=0)
        ids, mask = tokens(tokenizer, [blip_question(q.text) for q in asked], start + 1)
        states = model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state  # (B, T, D)
        answer_ids, answer_mask = tokens(tokenizer, [q.answer for q in asked], start)
        loss = language_loss(model.text_decoder, answer_ids, answer_mask, states, mask)
        optimising.update(loss, parameters, optimizer)
        losses.append(loss.item())
    model.eval()
    return {"language": _last_mean(losses)}


def train_matching(
    model: "BlipForImageTextRetrieval",
    tokenizer: "BertTokenizer",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Trains in place: first the tower with the ITC, then ITC and ITM on the tower as it is."""
    model.train()
    tower_steps = max(1, round(steps * TOWER_SHARE))
    tower_losses = train_tower(model, tokenizer, scenes, pixels, tower_steps, seed)
    features = encode(model, pixels)
    rng = random.Random(f"{seed}/blip_matching")
    trained = (model.text_encoder, model.vision_proj, model.text_proj, model.itm_head)
    parameters = [p for part in trained for p in part.parameters()]
    enc = model.config.text_config.bos_token_id + 1
    losses: dict[str, list[float]] = {"itc": [], "itm": []}
    for optimizer in optimising.optimizer_steps(
        parameters, steps - tower_steps, MATCHING_LEARNING_RATE, WARM_UP, "matching"
    ):
        index = [rng.randrange(len(scenes)) for _ in range(BATCH)]
        chosen, states = [scenes[i] for i in index], features[index].float()
        texts = [caption(scene, rng) for scene in chosen]
        similarity = contrast(model, tokenizer, states, texts) / TEMPERATURE
        placed = [
            captions(scene, rng)[1] if rng.random() < PLACED_SHARE else text
            for scene, text in zip(chosen, texts, strict=True)
        ]
        rows, said = matching_rows(similarity.detach(), chosen, placed, rng)
        itc = contrastive_loss(similarity, texts)
        itm = matching_loss(model, tokens(tokenizer, said, enc), states[rows])
        optimising.update(itc + itm, parameters, optimizer)
        losses["itc"].append(itc.item())
        losses["itm"].append(itm.item())
    model.eval()
    return {**tower_losses, **{name: _last_mean(values) for name, values in losses.items()}}


def train_tower(
    model: "BlipForImageTextRetrieval",
    tokenizer: "BertTokenizer",
    scenes: Sequence[Scene],
    pixels: "torch.Tensor",
    steps: int,
    seed: int,
) -> dict[str, float]:
    """The ITC through all weights, so that the first token comes to hold the picture; the losses
    on the patches keep what each holds: the shape that it shows, its row and column."""
    import torch
    from torch.nn.functional import mse_loss

    pair_head = torch.nn.Linear(WIDTH, len(clip.PAIRS))  # no part of the checkpoint, as the other
    torch.nn.init.constant_(pair_head.bias, -3.0)
    place_head = torch.nn.Linear(WIDTH, 2)
    side = SIZE // clip.PATCH_SIZE
    places = torch.cartesian_prod(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side))
    rng = random.Random(f"{seed}/blip_tower")
    parameters = [*model.parameters(), *pair_head.parameters(), *place_head.parameters()]
    losses: dict[str, list[float]] = {"patches": [], "places": []}
    for optimizer in optimising.optimizer_steps(
        parameters, steps, TOWER_LEARNING_RATE, WARM_UP, "tower"
    ):
        index = [rng.randrange(len(scenes)) for _ in range(BATCH)]
        chosen = [scenes[i] for i in index]
        texts = [caption(scene, rng) for scene in chosen]
        states = model.vision_model(normalise(pixels[index])).last_hidden_state  # (B, 65, D)
        similarity = contrast(model, tokenizer, states, texts) / TEMPERATURE
        patches = states[:, 1:]
        found = pair_loss(pair_head(patches), covering(chosen))
        place = mse_loss(place_head(patches), places.expand(BATCH, -1, -1))
        loss = contrastive_loss(similarity, texts) + PATCH_WEIGHT * found + PLACE_WEIGHT * place
        optimising.update(loss, parameters, optimizer)
        losses["patches"].append(found.item())
        losses["places"].append(place.item())
    return {name: _last_mean(values) for name, values in losses.items()}


def contrastive_loss(similarity: "torch.Tensor", texts: Sequence[str]) -> "torch.Tensor":
    """Of logits (pictures, texts), both ways; equal texts are each other's positives as well."""
    import torch
    from torch.nn.functional import cross_entropy

    same = torch.tensor([[float(a == b) for b in texts] for a in texts])
    same /= same.sum(dim=1, keepdim=True)
    return (cross_entropy(similarity, same) + cross_entropy(similarity.T, same)) / 2


def matching_loss(
    model: "BlipForImageTextRetrieval",
    texts: tuple["torch.Tensor", "torch.Tensor"],
    states: "torch.Tensor",
) -> "torch.Tensor":
    """Of the ITM head on texts (ids, mask) that attend to states, the first BATCH of them true."""
    import torch
    from torch.nn.functional import cross_entropy

    fused = model.text_encoder(
        input_ids=texts[0], attention_mask=texts[1], encoder_hidden_states=states
    ).last_hidden_state
    truth = torch.zeros(len(states), dtype=torch.long)
    truth[:BATCH] = 1
    return cross_entropy(model.itm_head(fused[:, 0]), truth)


def contrast(
    model: "BlipForImageTextRetrieval",
    tokenizer: "BertTokenizer",
    states: "torch.Tensor",
    texts: Sequence[str],
) -> "torch.Tensor":
    """Cosines (pictures, texts) of the ITC: picture and text alone, each by its first token."""
    from torch.nn.functional import normalize

    ids, mask = tokens(tokenizer, texts, tokenizer.cls_token_id)
    text = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    image = normalize(model.vision_proj(states[:, 0]), dim=-1)
    return image @ normalize(model.text_proj(text), dim=-1).T


def matching_rows(
    similarity: "torch.Tensor", scenes: Sequence[Scene], texts: Sequence[str], rng: random.Random
) -> tuple[list[int], list[str]]:
    """Pictures (as rows of the batch) and captions of one ITM step.

    First the B true pairs; then false captions for the pictures, then false pictures for captions.
    Those are drawn by the ITC's similarity (B, B); a caption without a false picture is left out.
    """
    count = len(scenes)
    by_picture = similarity.softmax(dim=1).tolist()
    by_text = similarity.softmax(dim=0).T.tolist()
    rows, said = list(range(count)), list(texts)
    for row, scene in enumerate(scenes):
        false = changed(texts[row], scene, rng) if rng.random() < CHANGED_SHARE else None
        for other in rng.choices(range(count), by_picture[row], k=10):
            if false is None and not holds(texts[other], scene):
                false = texts[other]
        if false:
            rows.append(row)
            said.append(false)
    for row, text in enumerate(texts):
        for other in rng.choices(range(count), by_text[row], k=10):
            if not holds(text, scenes[other]):
                rows.append(other)
                said.append(text)
                break
    return rows, said


def _last_mean(values: Sequence[float]) -> float:
    """Of the last tenth of the steps."""
    last = values[-max(1, len(values) // 10) :]
    return round(sum(last) / len(last), 4)
