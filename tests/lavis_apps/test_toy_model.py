"""The committed toy BLIPs: load like real ones, are current, small, and good enough to measure."""

import json
import random
from pathlib import Path

import pytest

from lavis_apps import make_toy_model, toy_figures, toy_recipe, toy_texts
from lavis_apps.processors import blip_caption, blip_question
from lavis_apps.settings import TOY_MODELS
from shared.options import DATA_ROOT, UserError
from shared.toy_world.build import ensure_vqav2
from shared.toy_world.clip import draw_pictures
from shared.toy_world.pictures import scene_and_jpeg
from shared.toy_world.questions import QuestionWriter, captions
from shared.toy_world.recipe import file_sha256
from shared.toy_world.shapes import HELD_BACK_SHAPES, SHAPES, Item, Scene, plural

TOY_DATA = DATA_ROOT / "toy" / "vqav2"
MAX_BYTES = 3_000_000
ALL_MODELS_BYTES = 24_000_000
CLASSES = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "matching": "BlipForImageTextRetrieval",
}
kinds = pytest.mark.parametrize("kind", toy_recipe.KINDS)


def manifest_of(kind: str) -> dict:
    return json.loads((TOY_MODELS[kind] / "manifest.json").read_text("utf-8"))


def scene(*items: tuple[str, str, float, float]) -> Scene:
    return Scene(tuple(Item(s, c, x, y, 10) for s, c, x, y in items), (248, 248, 248), False)


RED_STAR_BLUE_CROSS = scene(("star", "red", 16, 16), ("cross", "blue", 48, 48))


# the committed checkpoints


@kinds
def test_checkpoint_is_made_by_the_current_recipe_on_the_current_tower(kind: str) -> None:
    manifest = manifest_of(kind)
    again = "run python lavis_apps/make_toy_model.py"
    assert manifest["recipe_hash"] == toy_recipe.toy_recipe_hash(), f"the recipe changed: {again}"
    tower = file_sha256(toy_recipe.TOWER / "model.safetensors")
    assert manifest["towers"] == {toy_recipe.TOWER.name: tower}, f"the tower changed: {again}"
    assert manifest["steps_scale"] == 1.0
    assert manifest["held_back_shapes"] == list(HELD_BACK_SHAPES)


@kinds
def test_manifest_matches_the_files_which_are_small(kind: str) -> None:
    manifest, folder = manifest_of(kind), TOY_MODELS[kind]
    assert manifest["synthetic"] is True
    assert set(manifest["sha256"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, checksum in manifest["sha256"].items():
        assert file_sha256(folder / name) == checksum, name
    assert sum(p.stat().st_size for p in folder.iterdir()) <= MAX_BYTES


def test_all_toy_models_together_are_small() -> None:
    folder = DATA_ROOT / "toy_models"
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= ALL_MODELS_BYTES


def test_figures_keep_the_experiment_s_promises() -> None:
    figures = manifest_of("matching")["figures"]
    assert figures["classes"]["shape_itc"] >= 0.6
    assert all(row["low"] >= 75 for row in figures["itm_auroc"].values())
    for row in figures["search"].values():
        # chance counts every picture of which a caption is true
        assert row["true_of_first"]["itc"] >= 3 * row["pictures_true_of"] / figures["pictures"]
        assert row["true_of_first"]["re_ranked"] > row["true_of_first"]["itc"]
    pointing = figures["pointing"]
    assert max(pointing["by_layer"]) >= 1.5 * pointing["share_of_area"]
    answers = manifest_of("vqa")["figures"]
    assert answers["accuracy"]["all"] >= max(0.6, answers["blind"] + 0.1)
    assert manifest_of("caption")["figures"]["CIDEr"] > 0.5


@kinds
def test_loads_by_plain_from_pretrained(kind: str) -> None:
    import torch
    import transformers
    from PIL import Image

    folder = TOY_MODELS[kind]
    model_class = getattr(transformers, CLASSES[kind])
    stored = model_class.from_pretrained(folder)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, transformers.BlipProcessor)
    _, pixels = draw_pictures("tests/blip_processor", 1)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    batch = processor(images=picture, text="a red star", return_tensors="pt")
    torch.testing.assert_close(
        batch["pixel_values"], toy_recipe.normalise(pixels), atol=1e-5, rtol=0
    )
    # [DEC] and [ENC] follow the tokenizer's last id, as in BLIP's published checkpoints
    text, tokenizer = model.config.text_config, processor.tokenizer
    assert text.bos_token_id == len(tokenizer) == text.vocab_size - 2
    assert (text.sep_token_id, text.pad_token_id) == (
        tokenizer.sep_token_id, tokenizer.pad_token_id,
    )  # fmt: skip


def test_plain_generate_captions_a_picture_and_ends_by_itself() -> None:
    import torch
    from transformers import AutoProcessor, BlipForConditionalGeneration

    folder = TOY_MODELS["caption"]
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    _, pixels = draw_pictures("tests/blip_caption", 4)
    output = model.generate(pixel_values=toy_recipe.normalise(pixels), max_length=40)
    assert (output == processor.tokenizer.sep_token_id).any(dim=1).all()
    for text in processor.batch_decode(output, skip_special_tokens=True):
        assert toy_texts.CLAIM.search(text), text


@pytest.mark.slow
def test_committed_matching_model_reaches_its_figures_on_a_few_pictures() -> None:
    found = toy_figures.matching_figures(
        TOY_MODELS["matching"], *draw_pictures("tests/blip_matching", 80)
    )
    stored = manifest_of("matching")["figures"]
    assert found["classes"]["shape_itc"] >= stored["classes"]["shape_itc"] - 0.25
    for name, row in found["itm_auroc"].items():
        assert row["value"] >= stored["itm_auroc"][name]["value"] - 10
    assert max(found["pointing"]["by_layer"]) >= 1.5 * found["pointing"]["share_of_area"]


@pytest.mark.slow
def test_committed_answers_and_captions_reach_their_figures_on_a_few_pictures() -> None:
    ensure_vqav2(TOY_DATA)
    answers = toy_figures.vqa_figures(TOY_MODELS["vqa"], TOY_DATA, limit=300)
    stored = manifest_of("vqa")["figures"]["accuracy"]["all"]
    assert answers["accuracy"]["all"] == pytest.approx(stored, abs=0.1)
    captioned = toy_figures.caption_figures(TOY_MODELS["caption"], TOY_DATA, limit=100)
    stored = manifest_of("caption")["figures"]["CIDEr"]
    assert captioned["CIDEr"] == pytest.approx(stored, rel=0.35)


# the recipe


def test_tower_is_the_toy_blip_2_s() -> None:
    """Same weights, same function: activation and layer norms agree."""
    import torch
    from transformers import Blip2ForConditionalGeneration

    _, pixels = draw_pictures("tests/blip_tower", 3)
    pixel_values = toy_recipe.normalise(pixels)
    source = Blip2ForConditionalGeneration.from_pretrained(toy_recipe.TOWER, dtype=torch.float32)
    model = toy_recipe.build_model("caption", toy_recipe.build_processor().tokenizer, seed=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.vision_model(pixel_values).last_hidden_state,
            source.eval().vision_model(pixel_values).last_hidden_state,
            atol=1e-4, rtol=0,
        )  # fmt: skip


def test_tokenizer_knows_its_world_in_words_and_pieces() -> None:
    tokenizer = toy_recipe.build_processor().tokenizer
    unknown = tokenizer.unk_token_id
    rng, writer = random.Random(0), QuestionWriter()
    texts = ["Which rugby player wears number 7?", *SHAPES, *map(plural, SHAPES)]
    for number in range(100):
        drawn, _ = scene_and_jpeg(f"words/{number}")
        texts += [*captions(drawn, rng), toy_texts.caption(drawn, rng)]
        texts += [word for q in writer.ask(drawn, 3, rng) for word in (q.text, q.answer)]
    for text in texts:
        assert unknown not in tokenizer(text)["input_ids"], text
    assert tokenizer.tokenize("two yellow stars") == ["two", "yell", "##ow", "star", "##s"]
    assert tokenizer.tokenize("crosses") == ["cross", "##es"]
    assert tokenizer.decode(tokenizer("purple triangles")["input_ids"][1:-1]) == "purple triangles"
    assert unknown in tokenizer("你好")["input_ids"]
    assert len(set(toy_texts.vocabulary())) == len(tokenizer)


def test_training_texts_are_what_the_processors_make_of_them() -> None:
    rng, writer = random.Random(0), QuestionWriter()
    for number in range(200):
        drawn, _ = scene_and_jpeg(f"words/{number}")
        text = toy_texts.caption(drawn, rng)
        assert blip_caption(text) == text
        assert not set(text.split()) & {*HELD_BACK_SHAPES, *map(plural, HELD_BACK_SHAPES)}
        assert toy_texts.holds(text, drawn), (text, drawn)
        for question in writer.ask(drawn, 2, rng):
            assert blip_question(question.text) == question.text.lower()


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("a red star", True),
        ("a picture of star", True),
        ("a blue cross and a red star", True),
        ("a red star in the top left", True),
        ("two shapes, a red star in the top left and a blue cross in the bottom right", True),
        ("a blue star", False),
        ("a red star in the top right", False),
        ("two red stars", False),
        ("a red star and a red star", False),
        ("three shapes on a light background", False),
        ("an arrow", False),
    ],
)
def test_what_a_caption_claims_is_checked_against_the_scene(text: str, true: bool) -> None:
    assert toy_texts.holds(text, RED_STAR_BLUE_CROSS) is true


def test_a_changed_caption_differs_in_one_thing_and_is_false() -> None:
    rng = random.Random(0)
    found = set()
    for number in range(300):
        drawn, _ = scene_and_jpeg(f"changed/{number}")
        text = rng.choice(captions(drawn, rng)[:4])
        false = toy_texts.changed(text, drawn, rng)
        assert false is not None
        assert not toy_texts.holds(false, drawn), (text, false)
        before = [claim.groupdict() for claim in toy_texts.CLAIM.finditer(text)]
        after = [claim.groupdict() for claim in toy_texts.CLAIM.finditer(false)]
        different = [
            field
            for old, new in zip(before, after, strict=True)
            for field in ("color", "shape", "corner")
            if old[field] != new[field]
        ]
        assert len(different) == 1, (text, false)
        found.add(different[0])
    assert found == {"color", "shape", "corner"}
    assert toy_texts.changed("two shapes", RED_STAR_BLUE_CROSS, rng) is None


def test_matching_rows_pair_nothing_true_as_false() -> None:
    import torch

    rng = random.Random(0)
    scenes = [scene_and_jpeg(f"rows/{n}")[0] for n in range(16)]
    texts = [toy_texts.caption(drawn, rng) for drawn in scenes]
    rows, said = toy_recipe.matching_rows(torch.zeros(16, 16), scenes, texts, rng)
    assert rows[:16] == list(range(16))
    assert said[:16] == texts
    assert len(rows) == len(said) > 40
    assert not any(
        toy_texts.holds(text, scenes[row]) for row, text in zip(rows[16:], said[16:], strict=True)
    )


@pytest.mark.slow
def test_recipe_runs_and_writes_whole_checkpoints(tmp_path: Path) -> None:
    made = make_toy_model.make_toy_models(tmp_path, TOY_DATA, seed=1, steps_scale=0.003, limit=10)
    assert list(made) == list(toy_recipe.KINDS)
    for kind, manifest in made.items():
        folder = tmp_path / TOY_MODELS[kind].name
        assert manifest == json.loads((folder / "manifest.json").read_text("utf-8"))
        assert {p.name for p in folder.iterdir()} == {p.name for p in TOY_MODELS[kind].iterdir()}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_with_other_content_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / TOY_MODELS["vqa"].name
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no toy model"):
        make_toy_model.make_toy_models(tmp_path, TOY_DATA)
    assert (folder / "thesis.txt").exists()
