"""The committed toy CLIP and Qwen2: load like real ones, are current, small, unknowing."""

import json
import random
from pathlib import Path

import pytest

from shared.conversations import encode
from shared.options import DATA_ROOT, UserError
from shared.toy_world import clip, conversations, models, qwen2
from shared.toy_world.conversations import ensure_llava
from shared.toy_world.pictures import scene_and_jpeg
from shared.toy_world.recipe import file_sha256
from shared.toy_world.shapes import COLORS, HELD_BACK_SHAPES, KNOWN_SHAPES, SHAPES, Item, Scene

CHECKPOINTS = {name: DATA_ROOT / "toy_models" / name for name in models.MODELS}
HASHES = {"clip": clip.clip_recipe_hash, "qwen2": qwen2.qwen2_recipe_hash}
MAX_BYTES = 3_000_000
each_model = pytest.mark.parametrize("name", models.MODELS)


def manifest(name: str) -> dict:
    return json.loads((CHECKPOINTS[name] / "manifest.json").read_text("utf-8"))


@each_model
def test_checkpoint_is_made_by_the_current_recipe(name: str) -> None:
    assert manifest(name)["recipe_hash"] == HASHES[name](), (
        f"the recipe changed and the checkpoint did not: run python -m shared.toy_world.models "
        f"{name}, then python llava_repro/make_toy_model.py"
    )
    assert manifest(name)["steps_scale"] == 1.0


@each_model
def test_manifest_matches_the_files_which_are_small(name: str) -> None:
    folder = CHECKPOINTS[name]
    assert manifest(name)["synthetic"] is True
    files = {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert set(manifest(name)["sha256"]) == files
    for file, checksum in manifest(name)["sha256"].items():
        assert file_sha256(folder / file) == checksum, file
    assert sum(p.stat().st_size for p in folder.iterdir()) <= MAX_BYTES


def test_figures_mean_something() -> None:
    seen = manifest("clip")["figures"]
    assert seen["shape"] > 0.8  # chance 0.125
    assert seen["pair"] > 0.8  # chance 0.02
    assert manifest("qwen2")["figures"]["answers_right"] > 0.6


@pytest.mark.slow
def test_clip_s_figures_are_those_of_its_files() -> None:
    import torch
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(CHECKPOINTS["clip"], dtype=torch.float32).eval()
    tokenizer = CLIPProcessor.from_pretrained(CHECKPOINTS["clip"]).tokenizer
    head = torch.nn.Linear(clip.WIDTH, len(clip.PAIRS))  # not saved, so its figure is not compared
    figures = clip.measure(
        model, tokenizer, head, *clip.draw_pictures("0/clip_held_out", clip.HELD_OUT)
    )
    stored = manifest("clip")["figures"]
    assert figures["shape"] == pytest.approx(stored["shape"], abs=0.01)
    assert figures["pair"] == pytest.approx(stored["pair"], abs=0.01)


def test_clip_loads_by_plain_from_pretrained_and_pools_at_its_end_token() -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

    folder = CHECKPOINTS["clip"]
    model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    processor = CLIPProcessor.from_pretrained(folder)
    text = model.config.text_config
    assert text.eos_token_id == processor.tokenizer.eos_token_id != 2  # 2: a legacy pooling rule
    assert text.max_position_embeddings == processor.tokenizer.model_max_length
    ids = processor.tokenizer("a red star")["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(folder)("a red star")["input_ids"]
    assert (ids[0], ids[-1]) == (text.bos_token_id, text.eos_token_id)
    picture = Image.new("RGB", (100, 80), "white")
    image = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    assert image["pixel_values"].shape == (1, 3, 64, 64)


def test_clip_s_training_sees_and_names_known_shapes_only_and_pixels_are_the_processor_s() -> None:
    import torch
    from PIL import Image

    scenes, pixels = clip.draw_pictures("test", 200)
    assert {item.shape for scene in scenes for item in scene.items} == set(KNOWN_SHAPES)
    rng = random.Random(0)
    said = " ".join(clip.caption(scene, rng) for scene in scenes)
    assert not any(shape in said for shape in HELD_BACK_SHAPES)
    unknown = clip.build_tokenizer().unk_token_id
    assert unknown not in clip.build_tokenizer()(said)["input_ids"]
    assert not any(unknown in clip.build_tokenizer()(s)["input_ids"] for s in SHAPES)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    processed = clip.build_processor().image_processor(picture, return_tensors="pt")
    torch.testing.assert_close(
        processed["pixel_values"], clip.normalise(pixels[:1]), atol=1e-5, rtol=0
    )


def test_pair_loss_asks_for_evidence_on_the_shape_and_nowhere_else() -> None:
    import torch

    scene = Scene((Item("star", "red", 12, 12, 10),), (248, 248, 248), False)
    covered = clip.covering([scene])
    pair = clip.PAIRS.index(("star", "red"))
    assert covered[0, :, pair].unflatten(0, (8, 8))[:3, :3].any()
    assert not covered[0, :, pair].unflatten(0, (8, 8))[4:, :].any()
    assert covered.sum() == covered[0, :, pair].sum() > 0
    low = torch.full((1, 64, len(clip.PAIRS)), -8.0)
    right, elsewhere = low.clone(), low.clone()
    right[0, covered[0, :, pair].nonzero()[0], pair] = 8.0
    elsewhere[0, 63, pair] = 8.0
    assert clip.pair_loss(right, covered) < 0.01
    assert clip.pair_loss(elsewhere, covered) > clip.pair_loss(low, covered) > 0.1


def test_qwen2_loads_by_plain_from_pretrained_and_answers_about_a_listed_scene() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

    folder = CHECKPOINTS["qwen2"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, Qwen2Tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.tie_word_embeddings
    assert len(tokenizer) <= model.config.vocab_size
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "red star top left\nWhat color is the star?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    new = output[0, prompt["input_ids"].shape[1] :]
    assert new[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(new, skip_special_tokens=True) == "red"


def test_names_are_one_token_each_and_no_text_is_unknown() -> None:
    tokenizer = qwen2.build_tokenizer()
    for word in (*SHAPES, *COLORS, *conversations.SHAPES_ZH.values()):
        assert len(tokenizer(word)["input_ids"]) == 1, word
    for word in (*SHAPES, *COLORS):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1, word
    for text in ("Which rugby player? \U0001f600", "你今天吃饭了吗？\n\n再见", "  a  b\t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("<image>")["input_ids"]) == 1


def test_chat_pieces_are_the_chat_template_s_and_labels_those_of_training() -> None:
    """What the language model was trained on is what a LLaVA's training and inference write."""
    tokenizer = qwen2.build_tokenizer()
    turns = [("<image>\nIs there a red star?", "yes"), ("星形在哪里？", "左上角")]
    row = conversations.row("x", "a.jpg", [("Is there a red star?", "yes"), turns[1]])
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    pieces = qwen2.chat_pieces(turns)
    assert "".join(text for text, _ in pieces) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    ids, labels = qwen2.encode_pieces(tokenizer, pieces)
    encoded = encode(row, tokenizer, None, n_image_tokens=1)
    assert encoded["input_ids"] == ids
    assert encoded["labels"] == labels


def test_no_training_text_names_a_held_back_shape() -> None:
    writer = qwen2.TextWriter("names")
    said = " ".join(text for _ in range(500) for text, _ in writer.pieces()).lower()
    names = [*HELD_BACK_SHAPES, *(conversations.SHAPES_ZH[s] for s in HELD_BACK_SHAPES)]
    words = set(said.replace("?", " ").replace(",", " ").replace(".", " ").split())
    assert not words & set(names)
    assert not any(name in said for name in names if not name.isascii())
    assert words & set(KNOWN_SHAPES)


def test_answer_weights_are_of_their_answers_and_in_the_losses_order() -> None:
    import torch

    labels = torch.tensor([[-100, -100, 5, 6, 7, 8, -100, 9], [-100, 3, -100, -100, 4, 5, 6, 7]])
    weights = qwen2.answer_weights(labels)
    assert weights.tolist() == [0.5] * 4 + [1.0] + [1.0] + [0.5] * 4


@each_model
@pytest.mark.slow
def test_recipe_runs_and_writes_a_whole_checkpoint(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = models.make_toy_model(name, folder, seed=1, steps_scale=0.002)
    assert made == json.loads((folder / "manifest.json").read_text("utf-8"))
    assert {p.name for p in folder.iterdir()} == {p.name for p in CHECKPOINTS[name].iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no toy model"):
        models.make_toy_model("clip", tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_towers_pictures_are_in_no_toy_set() -> None:
    """Key ranges cannot meet; this looks at the content of a sample."""
    root = ensure_llava()
    stored = {path.read_bytes() for path in (root / "images").iterdir()}
    assert not any(scene_and_jpeg(f"0/clip_training/{n}")[1] in stored for n in range(200))
