"""The committed toy LLaVA: loads like a real one, is current, small, and sees its pictures."""

import json
from pathlib import Path

import pytest

from llava_repro import make_toy_model, toy_figures, toy_recipe
from shared.options import DATA_ROOT, UserError
from shared.toy_world.conversations import ensure_llava
from shared.toy_world.recipe import file_sha256

CHECKPOINT = DATA_ROOT / "toy_models" / "llava"
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((CHECKPOINT / "manifest.json").read_text("utf-8"))


def test_checkpoint_is_made_by_the_current_recipe_on_the_current_towers(manifest: dict) -> None:
    again = "run python llava_repro/make_toy_model.py"
    assert manifest["recipe_hash"] == toy_recipe.toy_recipe_hash(), f"the recipe changed: {again}"
    assert manifest["towers"] == toy_recipe.tower_hashes(), f"a tower changed: {again}"
    assert manifest["max_steps"] == 0
    assert manifest["settings"] == toy_recipe.TRAINING


def test_manifest_matches_the_files_which_are_small(manifest: dict) -> None:
    assert manifest["synthetic"] is True
    assert set(manifest["sha256"]) == {p.name for p in CHECKPOINT.iterdir()} - {"manifest.json"}
    for name, checksum in manifest["sha256"].items():
        assert file_sha256(CHECKPOINT / name) == checksum, name
    assert sum(p.stat().st_size for p in CHECKPOINT.iterdir()) <= MAX_BYTES


def test_figures_keep_the_experiment_s_promises(manifest: dict) -> None:
    captions, answers = manifest["figures"]["stage_1"], manifest["figures"]["stage_2"]
    assert captions["caption_loss"] < captions["caption_loss_shuffled"]
    assert captions["p"] < 0.01
    assert answers["model"]["all"] >= answers["blind"]["all"] + 0.20
    assert abs(answers["shuffled"]["all"] - answers["blind"]["all"]) <= 0.05
    assert answers["yes_no_above_blind"]["low"] > 0
    assert answers["chinese_answered_in_chinese"] > 0.95


def test_loads_in_transformers_and_answers_in_the_language_of_the_question() -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    data = ensure_llava()
    picture = Image.open(data / "images" / "held_out_000001.jpg")
    answers = []
    for question in ("How many shapes are there?", "图中有几个图形？"):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=picture, text=text, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert new[-1] == processor.tokenizer.eos_token_id  # it ends by itself
        answers.append(processor.decode(new, skip_special_tokens=True).strip())
    assert answers[0] in {"0", "1", "2", "3"}
    assert answers[1] in {"零个", "一个", "两个", "三个"}


@pytest.mark.slow
def test_committed_weights_reach_the_committed_figures(manifest: dict) -> None:
    """On a part of the held-out rows: well above blind, and not without the right picture."""
    figures = toy_figures.answer_figures(CHECKPOINT, ensure_llava(), limit=300)
    stored = manifest["figures"]["stage_2"]["model"]["all"]
    assert figures["model"]["all"] == pytest.approx(stored, abs=0.08)
    assert figures["model"]["all"] >= figures["blind"]["all"] + 0.15
    assert figures["shuffled"]["all"] <= figures["blind"]["all"] + 0.10


def test_other_pictures_are_as_many_and_never_the_own() -> None:
    shown = [[Path(f"{n}.jpg")] for n in range(20)]
    shown += [[Path(f"{n}a.jpg"), Path(f"{n}b.jpg")] for n in range(20)] + [[]]
    other = toy_figures.other_pictures(shown)
    assert [len(paths) for paths in other] == [len(paths) for paths in shown]
    assert all(a != b for a, b in zip(other, shown, strict=True) if b)


def test_shares_and_difference_by_hand() -> None:
    rows = [
        {"answer": a, "answer_type": kind, "language": language, "image": image}
        for a, kind, language, image in (
            ("yes", "yes/no", "en", "1"),
            ("no", "yes/no", "en", "2"),
            ("red", "other", "en", ["3", "4"]),
            ("红色", "other", "zh", "5"),
        )
    ]
    found = toy_figures.shares(rows, ["yes", "yes", "red", "red"])
    assert found == {
        "all": 0.5, "yes/no": 0.5, "other": 0.5, "en": 0.6667, "zh": 0.0, "two pictures": 1.0,
    }  # fmt: skip
    better = toy_figures.difference(rows, ["yes", "no", "", ""], ["yes", "yes", "", ""], "yes/no")
    assert better["mean"] == 0.5


@pytest.mark.slow
def test_recipe_runs_and_writes_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = make_toy_model.make_toy_model(folder, seed=1, max_steps=2, limit=10)
    assert made == json.loads((folder / "manifest.json").read_text("utf-8"))
    assert made["figures"]["stage_2"]["questions"] == 10
    assert {p.name for p in folder.iterdir()} == {p.name for p in CHECKPOINT.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no toy model"):
        make_toy_model.make_toy_model(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
