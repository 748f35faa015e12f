"""The committed toy BLIP-2: loads like a real one, is current, small, and its recipe still runs."""

import json
from pathlib import Path

import pytest

from blip2_qlora import make_toy_model, toy_recipe
from shared.options import DATA_ROOT, UserError
from shared.toy_world.recipe import file_sha256
from shared.toy_world.shapes import HELD_BACK_SHAPES, KNOWN_SHAPES

CHECKPOINT = DATA_ROOT / "toy_models" / "blip2_opt"
TOY_DATA = DATA_ROOT / "toy" / "vqav2"
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((CHECKPOINT / "manifest.json").read_text("utf-8"))


def test_checkpoint_is_made_by_the_current_recipe(manifest: dict) -> None:
    assert manifest["recipe_hash"] == toy_recipe.toy_recipe_hash(), (
        "the recipe changed and the checkpoint did not: run python blip2_qlora/make_toy_model.py"
    )
    assert manifest["steps_scale"] == 1.0


def test_manifest_says_what_it_is_and_matches_the_files(manifest: dict) -> None:
    assert manifest["synthetic"] is True
    assert manifest["vqa_row_share"] == toy_recipe.VQA_SHARE
    assert manifest["training_seconds"] > 0
    files = {p.name for p in CHECKPOINT.iterdir()} - {"manifest.json"}
    assert set(manifest["sha256"]) == files
    for name, checksum in manifest["sha256"].items():
        assert file_sha256(CHECKPOINT / name) == checksum, name
    figures = manifest["figures"]
    assert figures["questions"] == 3000
    # Zero-shot must see the picture, or a comparison before/after means nothing.
    assert figures["zero_shot"]["all"] >= figures["blind"] + 0.10


def test_checkpoint_is_small() -> None:
    assert sum(p.stat().st_size for p in CHECKPOINT.iterdir()) <= MAX_BYTES


def test_loads_by_plain_from_pretrained_and_answers() -> None:
    import torch
    from PIL import Image
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    processor = Blip2Processor.from_pretrained(CHECKPOINT)
    stored = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT)
    assert {p.dtype for p in stored.language_model.parameters()} == {torch.bfloat16}
    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    assert processor.num_query_tokens == model.config.num_query_tokens
    picture = Image.open(Path(make_toy_model.__file__).parent / "baseline_images/shapes_01.jpg")
    inputs = processor(
        images=picture, text="Question: Is there a star? Answer:", return_tensors="pt"
    )
    image_token = model.config.image_token_id
    assert (inputs["input_ids"][0, : processor.num_query_tokens] == image_token).all()
    assert (inputs["input_ids"] == image_token).sum() == processor.num_query_tokens
    assert inputs["input_ids"][0, processor.num_query_tokens] == processor.tokenizer.bos_token_id
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=10)
    new = output[0, inputs["input_ids"].shape[1] :]
    assert new[-1] == model.generation_config.eos_token_id  # it ends by itself
    assert processor.decode(new, skip_special_tokens=True).strip() in {"yes", "no"}


def test_widths_suit_4_bit_kernels() -> None:
    """bitsandbytes on CPUs repacks NF4 weights only when in_features is a multiple of 64."""
    import torch
    from transformers import Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.in_features % 64 == 0, name


def test_tokenizer_knows_its_world_and_survives_others() -> None:
    tokenizer = toy_recipe.build_processor().tokenizer
    unknown = tokenizer.unk_token_id
    texts = ["a photo of", toy_recipe.VQA_PROMPT.format("Is there a red cross?")]
    for captions, asked in toy_recipe.training_texts(
        [toy_recipe.scene_and_jpeg(f"words/{n}")[0] for n in range(100)], seed=0
    ):
        texts += [t.target for t in captions] + [f"{t.prompt} {t.target}" for t in asked]
    texts += [word for words in toy_recipe.SYNONYMS.values() for word in words]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert unknown not in ids, text
        assert ids[0] == tokenizer.bos_token_id
    assert unknown in tokenizer("Which rugby player? 你好 \U0001f600")["input_ids"]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (1, 2)  # as in OPT


def test_training_texts_learn_exactly_target_and_end() -> None:
    tokenizer = toy_recipe.build_processor().tokenizer
    batch = toy_recipe.collate(
        tokenizer,
        [
            toy_recipe.Text("Question: Is there a star? Answer:", "yes"),
            toy_recipe.Text("", "a red star in the top left"),
        ],
    )
    learned = [row[row != -100].tolist() for row in batch["labels"]]
    end = tokenizer.eos_token_id
    assert learned[0] == [tokenizer.convert_tokens_to_ids("yes"), end]
    assert tokenizer.decode(learned[1][:-1]) == "a red star in the top left"
    assert learned[1][-1] == end
    image = tokenizer.convert_tokens_to_ids("<image>")
    queries = toy_recipe.NUM_QUERY_TOKENS
    for row, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        assert (row[:queries] == image).all()
        assert row[queries] == tokenizer.bos_token_id
        assert (labels[: queries + 1] == -100).all()
        assert (labels[mask == 0] == -100).all()
        assert (row[labels != -100] == labels[labels != -100]).all()


def test_training_pictures_match_the_image_processor_and_hold_nothing_held_back() -> None:
    import torch
    from PIL import Image

    scenes, pixels = toy_recipe.draw_training_pictures(seed=0, count=200)
    shapes = {item.shape for scene in scenes for item in scene.items}
    assert shapes == set(KNOWN_SHAPES)
    assert not shapes & set(HELD_BACK_SHAPES)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    processed = toy_recipe.build_processor().image_processor(picture, return_tensors="pt")
    torch.testing.assert_close(
        processed["pixel_values"], toy_recipe.normalise(pixels[:1]), atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_recipe_runs_and_writes_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    manifest = make_toy_model.make_toy_model(folder, TOY_DATA, seed=1, steps_scale=0.003, limit=10)
    assert manifest == json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["figures"]["questions"] == 10
    assert {p.name for p in folder.iterdir()} == {p.name for p in CHECKPOINT.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no toy model"):
        make_toy_model.make_toy_model(tmp_path, TOY_DATA)
    assert (tmp_path / "thesis.txt").exists()
