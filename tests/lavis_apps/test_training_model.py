"""The training losses against plain forward passes, what trains, and the layers' learning rates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize

from lavis_apps.blip import Blip, load_blip
from lavis_apps.classification import Classifier
from lavis_apps.clip import load_clip
from lavis_apps.losses import contrastive_loss, hard_negatives, matching_loss
from lavis_apps.processors import blip_caption, blip_question
from lavis_apps.train import parse
from lavis_apps.training_data import Collator, Sample, SeenSamples
from lavis_apps.training_inputs import BlipInputs, ClipInputs
from lavis_apps.training_model import (
    COMPONENTS,
    IDLE,
    Loaded,
    TaskModel,
    class_sentences,
    component_of,
    layer_rates,
    load_for_training,
)
from shared.options import IGNORE_INDEX, UserError
from shared.training import VlmTrainer
from tests.tiny_models import tiny_blip

TOY_CLIP = "data/toy_models/clip"
KINDS = {
    "caption": "caption",
    "vqa": "vqa",
    "retrieval": "matching",
    "classification": "matching",
}
TEXTS = ["a red star", "two blue squares, a star of 5", "is it red", "the blue 7 star of a picture"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("blip")
    return {kind: tiny_blip(kind, root / kind) for kind in set(KINDS.values())}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        pixels = torch.randint(0, 256, (40, 48, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / f"{i}.png")
    return sorted(root.glob("*.png"))


def options_of(task: str, model: Path | str, *more: str):
    argv = ["--task", task, "--model", str(model), "--data_root", "unread", "--augment", "none",
            "--device", "cpu", "--label_smoothing", "0"]  # fmt: skip
    return parse([*argv, *more])


def task_model(task: str, folder: Path | str, *more: str, classes=()) -> TaskModel:
    options, training = options_of(task, folder, *more)
    loaded = load_for_training(options, training)
    collator = Collator(options, loaded.inputs())
    sentences = class_sentences(options, loaded.asked, classes)
    return TaskModel(loaded, options, torch.float32, collator, sentences).eval()


def batch_of(model: TaskModel, samples: list[Sample]) -> dict:
    seen = SeenSamples(samples, 0)
    batch = model.collator([seen[i] for i in range(len(samples))])
    assert batch.pop("skipped") == []
    batch.pop("sample_ids")
    return batch


def loss_of(model: TaskModel, samples: list[Sample]) -> float:
    with torch.no_grad():
        return float(model(**batch_of(model, samples))["loss"])


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


# Inputs


def test_inputs_are_what_the_model_is_asked_with(folders, pictures):
    blip = load_blip(folders["matching"], device="cpu")
    inputs = BlipInputs(blip)
    long = ["a star " * 40, "red"]
    for first in ("[CLS]", "[ENC]"):
        for name, tensor in inputs.tokens(long, first).items():
            assert torch.equal(tensor, blip.tokens(long, first)[name])
    image = opened(pictures[0])
    assert torch.equal(inputs.picture(image)[None], blip.pixel_values([image]))
    clip = load_clip(TOY_CLIP, device="cpu", dtype="float32")
    asked = ClipInputs(clip)
    for name, tensor in asked.tokens(TEXTS, "[CLS]").items():
        assert torch.equal(tensor, clip.tokens(TEXTS)[name])
    assert torch.equal(asked.picture(image)[None], clip.pixel_values([image]))


def test_caption_rows_are_the_tokenizer_s_own(folders, pictures):
    """Piece by piece gives what tokenising prompt and caption together gives."""
    model = task_model("caption", folders["caption"])
    samples = [Sample(t, pictures[0], 0, (t,)) for t in TEXTS]
    batch = batch_of(model, samples)
    blip: Blip = model.asked
    said = [f"a picture of {blip_caption(text)}" for text in TEXTS]
    whole = blip.tokens(said, "[DEC]", 40)
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    assert torch.equal(batch["attention_mask"], whole["attention_mask"])
    learned = batch["labels"] != IGNORE_INDEX
    assert not learned[:, :4].any()  # [DEC] a picture of
    assert torch.equal(learned[:, 4:], batch["attention_mask"][:, 4:].bool())
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])


# Losses


def test_caption_loss_is_that_of_transformers_own_forward(folders, pictures):
    model = task_model("caption", folders["caption"])
    samples = [Sample(t, p, 0, (t,)) for t, p in zip(TEXTS, pictures, strict=True)]
    batch = batch_of(model, samples)
    theirs = model.model(
        pixel_values=batch["pixel_values"],
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    ).loss
    assert loss_of(model, samples) == pytest.approx(theirs.item(), rel=1e-5)


def test_captions_of_one_picture_share_it(folders, pictures):
    model = task_model("caption", folders["caption"], "--texts_per_picture", "2")
    together = Sample("both", pictures[0], 0, tuple(TEXTS[:2]))
    apart = [Sample(text, pictures[0], 0, (text,)) for text in TEXTS[:2]]
    assert batch_of(model, [together])["pixel_values"].shape[0] == 1
    assert loss_of(model, [together]) == pytest.approx(loss_of(model, apart), rel=1e-5)


def test_vqa_loss_by_hand(folders, pictures):
    """Each answer alone, without padding, as BLIP's formula says: weights within a question, the
    mean over questions."""
    model = task_model("vqa", folders["vqa"])
    questions = ["what color is the star?", "is there a red square of 5?"]
    answers = [(("red", 0.7), ("blue star", 0.3)), (("no", 1.0),)]
    samples = [
        Sample(question, path, i, (question,), (own,))
        for i, (question, path, own) in enumerate(zip(questions, pictures, answers, strict=False))
    ]
    blip: Blip = model.asked
    total = 0.0
    with torch.no_grad():
        for question, path, own in zip(questions, pictures, answers, strict=False):
            states = blip.encode_images([opened(path)])
            tokens = blip.tokens([blip_question(question)], "[ENC]")
            fused = blip.fused_states(states, tokens).last_hidden_state
            for answer, weight in own:
                ids = blip.tokens([answer], "[DEC]")["input_ids"]
                logits = blip.model.text_decoder(
                    input_ids=ids, encoder_hidden_states=fused
                ).logits[0]  # fmt: skip
                log_p = logits.log_softmax(-1)
                total -= weight * sum(
                    float(log_p[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)
                )
    assert loss_of(model, samples) == pytest.approx(total / 2, rel=1e-5)
    one_picture = Sample("ab", pictures[0], 0, tuple(questions), tuple(answers))
    apart = [Sample(q, pictures[0], 0, (q,), (a,)) for q, a in zip(questions, answers, strict=True)]
    assert loss_of(model, [one_picture]) == pytest.approx(loss_of(model, apart), rel=1e-5)


def test_retrieval_loss_is_itc_and_itm_as_blip_is_asked(folders, pictures):
    model = task_model("retrieval", folders["matching"], "--temperature", "0.1")
    samples = [Sample(t, p, i, (t,)) for i, (t, p) in enumerate(zip(TEXTS, pictures, strict=True))]
    blip: Blip = model.asked
    same = torch.eye(4, dtype=torch.bool)
    with torch.no_grad():
        states = blip.encode_images([opened(path) for path in pictures])
        cosines = blip.image_features(states) @ blip.text_features(TEXTS).T
        torch.manual_seed(3)
        rows, texts = hard_negatives(cosines / 0.1, same)
        logits = torch.cat([
            blip.match_logits(states, TEXTS),
            blip.match_logits(states[rows], [TEXTS[i] for i in texts]),
        ])  # fmt: skip
    by_hand = contrastive_loss(cosines / 0.1, same) + matching_loss(logits, 4)
    torch.manual_seed(3)
    assert loss_of(model, samples) == pytest.approx(by_hand.item(), rel=1e-4)


def test_true_pairs_are_those_of_one_picture_or_one_text(folders, pictures):
    model = task_model("retrieval", folders["matching"])
    samples = [
        Sample("0", pictures[0], 0, ("a red star",)),
        Sample("1", pictures[0], 0, ("a star",)),
        Sample("2", pictures[1], 1, ("A star.",)),  # the same to BLIP
        Sample("3", pictures[2], 2, ("a square",)),
    ]
    same = batch_of(model, samples)["same"].int().tolist()
    assert same == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_clip_loss_is_transformers_own(pictures):
    model = task_model("retrieval", TOY_CLIP)
    samples = [Sample(t, p, i, (t,)) for i, (t, p) in enumerate(zip(TEXTS, pictures, strict=True))]
    batch = batch_of(model, samples)
    names = ("input_ids", "attention_mask", "pixel_values")
    theirs = model.model(**{name: batch[name] for name in names}, return_loss=True).loss
    assert loss_of(model, samples) == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("family", ["blip", "clip"])
def test_classification_loss_is_that_of_the_classifier_s_probabilities(family, folders, pictures):
    classes = ("red star", "blue square", "two")
    folder = folders["matching"] if family == "blip" else TOY_CLIP
    model = task_model("classification", folder, classes=classes)
    samples = [Sample(str(i), p, i, label=i % 3) for i, p in enumerate(pictures)]
    found = Classifier(model.asked).classify(pictures, classes)
    by_hand = -sum(
        math.log(own.probabilities[classes[i % 3]]) for i, own in enumerate(found)
    ) / len(found)  # fmt: skip
    assert loss_of(model, samples) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("task", KINDS)
def test_the_stand_in_passes_through_all_that_trains(task, folders):
    """In several processes each waits for the gradients of all."""
    model = task_model(task, folders[KINDS[task]], classes=("star",) * (task == "classification"))
    model.train()
    model(**model.stand_in(), num_items_in_batch=math.inf)["loss"].backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


# What trains


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen_tower"])
@pytest.mark.parametrize("task", KINDS)
def test_what_trains(task, tuning, folders):
    options, training = options_of(task, folders[KINDS[task]], "--tuning", tuning)
    model = load_for_training(options, training).model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    every = {n for n, _ in model.named_parameters()}
    idle = {n for n in every if task in IDLE and IDLE[task].search(n)}
    if tuning == "lora":
        assert trained == {n for n in every if ".lora_" in n} - idle
        assert {component_of(n) for n in trained} >= {"vision tower"}
        assert any("crossattention" in n for n in trained) == (task != "classification")
    elif tuning == "frozen_tower":
        assert every - trained == {n for n in every if n.startswith("vision_model.")} | idle
    else:
        assert trained == every - idle
    assert bool(idle) == (task == "classification")


def test_a_model_that_the_task_cannot_train(folders):
    for task, folder in (("caption", folders["vqa"]), ("vqa", TOY_CLIP)):
        options, training = options_of(task, folder)
        with pytest.raises(UserError, match=f"--task {task} trains a BLIP"):
            load_for_training(options, training)


def test_components_name_every_part_of_the_models(folders):
    names = load_blip(folders["vqa"], device="cpu").model.named_parameters()
    assert {component_of(name) for name, _ in names} == set(COMPONENTS)


# Learning rates


@pytest.mark.parametrize(
    ("family", "tuning"), [("blip", "full"), ("blip", "lora"), ("clip", "full")]
)
def test_each_layer_learns_at_its_own_rate_at_every_step(family, tuning, folders, tmp_path):
    """Rate of the tower's layer l of L at a step: learning_rate x decay ** (L + 1 - l) x what
    warm-up and cosine have at that step; LAVIS' schedules overwrite the layers' part."""
    folder = folders["matching"] if family == "blip" else TOY_CLIP
    flags = ["--layer_decay", "0.5", "--learning_rate", "1e-3", "--warmup_steps", "4", "--tuning",
             tuning, "--output_dir", str(tmp_path), "--weight_decay", "0.1"]  # fmt: skip
    options, training = options_of("retrieval", folder, *flags)
    loaded: Loaded = load_for_training(options, training)
    model = TaskModel(loaded, options, torch.float32, Collator(options, loaded.inputs()))
    trainer = VlmTrainer(
        model=model, args=training, train_dataset=[0], data_collator=list, validate=dict,
        selection="loss", keep_best=print, learning_rates=layer_rates(model, 1e-3, 0.5),
    )  # fmt: skip
    trainer.create_optimizer_and_scheduler(num_training_steps=20)
    layers = loaded.model.config.vision_config.num_hidden_layers

    def layer_of(name: str) -> int:
        if "vision_model" not in name:
            return layers + 1
        if "embeddings" in name or "pre_layrnorm" in name:
            return 0
        return int(name.split(".layers.")[1].split(".")[0]) + 1 if ".layers." in name else layers

    for step in range(12):
        schedule = step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))
        rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                expected = 1e-3 * 0.5 ** (layers + 1 - layer_of(name)) * schedule
                assert rates[id(parameter)] == pytest.approx(expected, abs=1e-12), name
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert len({layer_of(n) for n, p in model.named_parameters() if p.requires_grad}) >= layers + 1


def test_without_decay_there_is_one_rate(folders):
    assert layer_rates(task_model("caption", folders["caption"]), 1e-3, 1.0) == {}


# Temperature


def test_temperatures_stay_in_their_bounds(folders, pictures):
    samples = [Sample(t, p, i, (t,)) for i, (t, p) in enumerate(zip(TEXTS, pictures, strict=True))]
    blip = task_model("retrieval", folders["matching"])
    blip.temperature.data.fill_(-3.0)
    loss_of(blip, samples)
    assert blip.learned_temperature() == pytest.approx(0.001)
    clip = task_model("retrieval", TOY_CLIP)
    clip.model.logit_scale.data.fill_(9.0)
    loss_of(clip, samples)
    assert clip.model.logit_scale.exp().item() == pytest.approx(100, rel=1e-3)
    assert clip.learned_temperature() is None


def test_label_smoothing_reaches_the_loss(folders, pictures):
    samples = [Sample("a", pictures[0], 0, ("a star",))]
    plain = task_model("caption", folders["caption"])
    smooth = task_model("caption", folders["caption"], "--label_smoothing", "0.1")
    batch = batch_of(plain, samples)
    logits = plain.model(
        pixel_values=batch["pixel_values"], input_ids=batch["input_ids"]
    ).logits[0, :-1]  # fmt: skip
    by_hand = cross_entropy(logits, batch["labels"][0, 1:], label_smoothing=0.1)
    assert loss_of(smooth, samples) == pytest.approx(by_hand.item(), rel=1e-5)
    assert loss_of(smooth, samples) != pytest.approx(loss_of(plain, samples), rel=1e-3)


def test_several_templates_are_averaged(folders, pictures, tmp_path):
    (tmp_path / "t.txt").write_text("a {}\nthe {} of a picture\n")
    classes = ("red star", "blue square")
    model = task_model(
        "classification", folders["matching"], "--templates", str(tmp_path / "t.txt"),
        classes=classes,
    )  # fmt: skip
    blip: Blip = model.asked
    with torch.no_grad():
        states = blip.encode_images([opened(pictures[0])])
        sentences = [[f"a {name}", f"the {name} of a picture"] for name in classes]
        texts = torch.stack([blip.text_features(own).mean(dim=0) for own in sentences])
        logits = blip.image_features(states) @ normalize(texts, dim=-1).T / 0.07
    by_hand = cross_entropy(logits, torch.tensor([1]))
    own = loss_of(model, [Sample("0", pictures[0], 0, label=1)])
    assert own == pytest.approx(by_hand.item(), rel=1e-4)
