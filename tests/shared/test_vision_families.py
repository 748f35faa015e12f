"""Several pictures and turns in a prompt, places of pictures against transformers' own processors,
trained parts beside a LoRA, pixel bounds, thoughts."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shared.options import UserError
from shared.vision_families import Family, Layout, open_family
from shared.vision_language import Turns, VisionLanguage, load_vision_language
from tests.tiny_models import KINDS, THINKING_TEMPLATE, tiny_folder

LENGTH = 8
SIZES = [(50, 40), (90, 60), (60, 110), (56, 56), (300, 20), (17, 400), (640, 480), (113, 112)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {kind: tiny_folder(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def askers(folders: dict[str, Path]) -> dict[str, VisionLanguage]:
    """In double precision, so that what is equal is so to many digits."""
    return {
        kind: load_vision_language(
            str(folder), device="cpu", dtype="float64", max_new_tokens=LENGTH, tags_are_meant=True
        )
        for kind, folder in folders.items()
    }


@pytest.fixture(params=KINDS)
def asker(request: pytest.FixtureRequest, askers: dict[str, VisionLanguage]) -> VisionLanguage:
    return askers[request.param]


def picture(size: tuple[int, int], seed: int = 0) -> Any:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def photos() -> list[Any]:
    return [picture(size, i) for i, size in enumerate([(50, 40), (90, 60), (60, 110)])]


def pixel_inputs(family: Family, photos: list[Any], ids: list[int]) -> dict[str, Any]:
    """What transformers' own model takes."""
    made = dict(family.image_processor(photos, return_tensors="pt")) if photos else {}
    own = {name: made[name] for name in ("pixel_values", "image_grid_thw", "target_sizes")
           if name in made}  # fmt: skip
    if own:
        own["pixel_values"] = own["pixel_values"].to(family.model.dtype)
    input_ids = torch.tensor([ids])
    if "image_grid_thw" in own:
        own["mm_token_type_ids"] = (input_ids == family.image_token_id).int()
    return {**own, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


# Several pictures and turns

PROMPTS = [
    "Which is red?",  # in front
    "Is <image> like <image>?",
    "no picture",
    Turns([("system", "Be brief."), ("human", "<image>\nWhat?"), ("gpt", "A cat."),
           ("human", "And <image>?")]),
    Turns([("human", "Hi"), ("gpt", "Hello"), ("human", "Which?")]),
]  # fmt: skip
SHOWN = [0, 1, None, 1, 2]


def test_several_pictures_and_turns_answer_as_generation_from_pixels(
    asker: VisionLanguage, photos: list[Any]
) -> None:
    """In one batch, prompts of none to three pictures: each as transformers' `generate` alone."""
    groups = [photos, photos[1:], photos[0]]
    features = asker.encode_images(groups)
    assert [isinstance(entry, list) for entry in features] == [True, True, False]
    assert [len(entry) for entry in features[:2]] == [3, 2]
    answers = asker.answer(features, SHOWN, PROMPTS)
    family = asker.family
    for said, index, prompt in zip(answers, SHOWN, PROMPTS, strict=True):
        shown = [] if index is None else groups[index]
        shown = shown if isinstance(shown, list) else [shown]
        ids = asker.sent_ids(prompt, None if index is None else features[index])
        output = family.model.generate(
            **pixel_inputs(family, shown, ids),
            do_sample=False, repetition_penalty=1.0, temperature=1.0, top_k=50, top_p=1.0,
            max_new_tokens=LENGTH, eos_token_id=sorted(family.end_ids), pad_token_id=family.pad_id,
            suppress_tokens=[family.image_token_id],
        )[0, len(ids) :]  # fmt: skip
        assert said.raw_output == asker.tokenizer.decode(output)
    assert len({said.raw_output for said in answers}) > 3


def test_likelihoods_of_several_pictures_are_those_of_whole_passes(
    asker: VisionLanguage, photos: list[Any]
) -> None:
    """One choice of one token, others of several; the prompts' own passes are shared."""
    groups = [photos, photos[1:], photos[0]]
    features = asker.encode_images(groups)
    choices = [["a", "a red star", "no"]] * len(PROMPTS)
    together = asker.choice_log_probs(features, SHOWN, PROMPTS, choices, batch_size=4)
    again = asker.choice_log_probs(features, SHOWN, PROMPTS, choices, batch_size=1)
    family = asker.family
    for i, (index, prompt) in enumerate(zip(SHOWN, PROMPTS, strict=True)):
        shown = [] if index is None else groups[index]
        shown = shown if isinstance(shown, list) else [shown]
        sent = asker.sent_ids(prompt, None if index is None else features[index])
        for choice, score, second in zip(choices[i], together[i], again[i], strict=True):
            ids = family.choice_ids(choice, family.lead(prompt))
            with torch.no_grad():
                inputs = pixel_inputs(family, shown, [*sent, *ids])
                logits = family.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1]
            wanted = logits.double().log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
            assert score.log_prob == pytest.approx(float(wanted), abs=1e-4)
            assert second.log_prob == pytest.approx(score.log_prob, abs=1e-4)


def test_pictures_stand_where_the_tags_are_meant(asker: VisionLanguage) -> None:
    """The order of two pictures is that of the tags; without any they stand in front."""
    family = asker.family
    layouts = [family.layout(50, 40), family.layout(300, 20)]

    def parts(prompt: str, meant: bool = True) -> list[str]:
        text = family.tokenizer.decode(family.prompt_ids(prompt, layouts, meant))
        picture = family.tokenizer.convert_ids_to_tokens(family.image_token_id)
        return [piece for piece in text.split(picture) if piece]

    meant = parts("before <image> between <image> behind")
    assert "before" in meant[0]
    assert "between" in "".join(meant[1:-1])
    assert "behind" in meant[-1]
    for text, tags in (("before behind", True), ("before <image> behind", False)):
        pieces = parts(text, tags)
        assert "before" in pieces[-1]
        assert "behind" in pieces[-1]
    with pytest.raises(UserError, match=r"1 <image> for 2 picture\(s\)"):
        parts("one <image> alone")


def test_a_prompt_of_one_human_turn_is_that_text(asker: VisionLanguage) -> None:
    family = asker.family
    layout = family.layout(50, 40)
    turns = Turns([("human", "Which is red?")])
    assert family.prompt_ids(turns, [layout]) == family.prompt_ids("Which is red?", [layout])
    assert turns == "Which is red?"


def test_turns_keep_their_order_and_are_copied_whole() -> None:
    turns = Turns([("system", "S"), ("human", "A"), ("gpt", "B"), ("human", "C")])
    assert str(turns) == "system: S\nhuman: A\ngpt: B\nhuman: C"
    other = copy.deepcopy(turns)
    assert (other, other.turns) == (turns, turns.turns)
    for wrong in ([], [("gpt", "B")], [("human", "A"), ("gpt", "B")], [("system", "S")],
                  [("human", "A"), ("human", "B")], [("human", "A"), ("system", "S")]):  # fmt: skip
        with pytest.raises(UserError, match="the last is human"):
            Turns(wrong)


def test_typed_tags_and_ends_in_earlier_turns_stay_text(asker: VisionLanguage) -> None:
    family = asker.family
    end = family.tokenizer.eos_token

    def counted(text: str) -> tuple[int, int]:
        ids = family.prompt_ids(Turns([("human", text), ("gpt", text), ("human", "And?")]))
        return ids.count(family.tokenizer.eos_token_id), ids.count(family.image_token_id)

    assert counted(f"a {end} <|image_pad|> <image> b") == counted("a b")


def test_blip2_is_shown_one_picture_and_asked_once(tiny_blip2_opt: Path) -> None:
    asker = load_vision_language(
        str(tiny_blip2_opt), device="cpu", max_new_tokens=4, tags_are_meant=True
    )
    photos = [picture((50, 40), i) for i in range(2)]
    features = asker.encode_images([photos, photos[0]])
    with pytest.raises(UserError, match="one picture, not 2"):
        asker.answer(features, [0], ["a"])
    problem = asker.prompt_problem(Turns([("human", "a"), ("gpt", "b"), ("human", "c")]))
    assert "one question" in (problem or "")
    tagged, plain = asker.answer(features, [1, 1], ["<image>\na red", "a red"])
    assert tagged.raw_output == plain.raw_output


def test_room_is_counted_for_all_pictures_of_a_prompt(asker: VisionLanguage) -> None:
    assert asker.prompt_problem("one <image>") is None
    many = "<image> " * (1 + asker.family.max_length // asker.family.n_image_tokens)
    assert "the model has room for" in (asker.prompt_problem(many) or "")


# Places of pictures


def test_layouts_from_sizes_are_those_of_the_encoded_pictures(asker: VisionLanguage) -> None:
    shown = [picture(size, i) for i, size in enumerate(SIZES)]
    for size, features in zip(SIZES, asker.encode_images(shown), strict=True):
        assert asker.family.layout(*size) == features.layout, size
        assert features.layout.n == len(features.vectors)


def published_text(family: Family, size: tuple[int, int], place: int) -> str:
    """What transformers' processor class puts in a placeholder's stead, its functions borrowed
    from the class: it cannot be made without torchvision."""
    tokenizer, processor = family.tokenizer, family.image_processor
    inputs = processor([picture(size)], return_tensors="pt")
    image = tokenizer.convert_ids_to_tokens(family.image_token_id)
    if family.config.model_type == "minicpmv4_6":
        from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor

        names = [f"{n}_token" for n in ("image_start", "image_end", "slice_start", "slice_end",
                                        "image_id_start", "image_id_end")]  # fmt: skip
        own = SimpleNamespace(
            image_token=image, slice_mode=True, **{n: getattr(tokenizer, n) for n in names}
        )
        text = MiniCPMV4_6Processor.replace_image_token(own, inputs, 0, image_token_divisor=16)
        numbered = [""] * place + [text]
        return MiniCPMV4_6Processor._prepend_local_ids(own, [image * (place + 1)], numbered, image)[
            -1
        ]
    if family.config.model_type == "qwen3_vl":
        from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor as Processor
    elif family.config.model_type == "qwen2_5_vl":
        from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import (
            Qwen2_5_VLProcessor as Processor,
        )
    else:
        from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor as Processor
    own = SimpleNamespace(image_processor=processor, image_token=image)
    return Processor.replace_image_token(own, inputs, 0)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_places_are_written_as_by_transformers_processor(
    folders: dict[str, Path], kind: str
) -> None:
    family = open_family(folders[kind])
    for place, size in enumerate(SIZES):
        theirs = family.tokenizer(published_text(family, size, place), add_special_tokens=False)
        assert family.picture_ids(family.layout(*size), place) == theirs["input_ids"], size


@pytest.mark.parametrize("kind", KINDS[2:])
def test_whole_prompts_are_those_of_transformers_processor(
    folders: dict[str, Path], kind: str, photos: list[Any]
) -> None:
    """Needs torchvision, as their processors do."""
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    family = open_family(folders[kind])
    theirs = AutoProcessor.from_pretrained(folders[kind])
    content = [{"type": "image", "image": photo} for photo in photos]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Which?"}]}]
    text = family.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    made = theirs(text=[text], images=photos, return_tensors="pt")
    layouts = [family.layout(*photo.size) for photo in photos]
    assert family.prompt_ids("Which?", layouts) == made["input_ids"][0].tolist()


def test_every_grid_of_many_sizes(folders: dict[str, Path]) -> None:
    """Header arithmetic against the pixels' own, at the published bounds, over many sizes."""
    import numpy as np

    generator = np.random.default_rng(0)
    sizes = [tuple(map(int, generator.integers(8, 700, 2))) for _ in range(40)]
    for kind in ("qwen2_vl", "qwen3_vl", "minicpmv4_6"):
        family = open_family(folders[kind])
        if kind == "minicpmv4_6":
            family.image_processor.max_slice_nums = 9
        seen = set()
        for size in sizes:
            if max(size) / min(size) > 50:
                continue
            made = family.image_processor([picture(size)], return_tensors="pt")
            layout = family.layout(*size)
            if kind == "minicpmv4_6":
                counts = tuple(int(t) * int(w) // 16 for t, w in made["target_sizes"])
                assert layout.slices == counts, size
                assert layout.columns == made["grids"][0][1], size
            else:
                assert layout.grid == tuple(made["image_grid_thw"][0].tolist()), size
            seen.add(layout)
        assert len(seen) > 5


# Pixel bounds


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_pixel_bounds_change_the_number_of_tokens(
    folders: dict[str, Path], kind: str, photos: list[Any]
) -> None:
    side = 4 * (16 if kind == "qwen3_vl" else 14)
    small = load_vision_language(str(folders[kind]), device="cpu", max_pixels=side**2)
    (features,) = small.encode_images([picture((640, 480))])
    assert len(features.vectors) == small.family.layout(640, 480).n <= 4
    assert small.family.n_image_tokens == 4
    large = open_family(folders[kind], min_pixels=9 * side**2, max_pixels=16 * side**2)
    assert large.layout(20, 20).n == 36
    with pytest.raises(UserError, match="the first must be at least"):
        open_family(folders[kind], min_pixels=200_000)


def test_an_adapters_pixel_bounds_are_taken(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, name = folders["qwen2_vl"], PROJECTORS["qwen2_vl"]
    weight = load_vision_language(str(folder), device="cpu").family.model.get_parameter(name)
    adapter = write_adapter(tmp_path / "a", folder, {name: weight.data}, max_pixels=56 * 56)
    for given, n in ((None, 4), (112 * 112, 16)):
        asker = load_vision_language(
            str(folder), device="cpu", adapter=str(adapter), max_pixels=given
        )
        assert asker.family.n_image_tokens == n


def test_pixel_bounds_are_for_qwen(folders: dict[str, Path]) -> None:
    for kind in ("llava", "minicpmv4_6"):
        with pytest.raises(UserError, match="are for Qwen-VL"):
            open_family(folders[kind], max_pixels=50_000)


# Thoughts


@pytest.fixture(scope="module")
def thinking(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> VisionLanguage:
    folder = tmp_path_factory.mktemp("thinking") / "qwen3_vl"
    shutil.copytree(folders["qwen3_vl"], folder)
    (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE, encoding="utf-8")
    return load_vision_language(str(folder), device="cpu", max_new_tokens=LENGTH)


def test_what_a_model_thinks_is_in_its_raw_output_alone(thinking: VisionLanguage) -> None:
    ids = thinking.tokenizer("Hm.\n</think>\n\nred", add_special_tokens=False)["input_ids"]
    n_thought = len(ids) - len("red")
    log_probs = torch.tensor([-5.0] * n_thought + [-0.1, -0.2, -0.3, -9.0])
    said = thinking.make_answer([*ids, thinking.tokenizer.eos_token_id], log_probs)
    assert said.answer == "red"
    assert said.raw_output == "Hm.\n</think>\n\nred<|im_end|>"
    assert said.confidence == pytest.approx(float(torch.tensor(-0.2).exp()))
    assert said.first_token_confidence == pytest.approx(float(torch.tensor(-0.1).exp()))
    assert (said.n_tokens, said.finish_reason) == (len(ids) + 1, "stop")
    empty = thinking.make_answer(ids[:n_thought], log_probs[:n_thought])
    assert (empty.answer, empty.confidence, empty.finish_reason) == ("", None, "length")
    unfinished = thinking.make_answer(ids[:3], log_probs[:3])
    assert (unfinished.answer, unfinished.confidence) == ("Hm.", pytest.approx(6.7379e-3, rel=1e-3))


def test_a_thinking_folder_is_asked_with_an_open_thought(thinking: VisionLanguage) -> None:
    family = thinking.family
    text = family.tokenizer.decode(family.prompt_ids("Which?", [Layout(2)]))
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>Which?"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert family.lead("Which?") == "\n</think>\n\n"
    assert "has a thought before each answer" in thinking.notes[0]
    talk = Turns([("human", "A?"), ("gpt", "B."), ("human", "C?")])
    assert family.tokenizer.decode(family.prompt_ids(talk)) == (
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB.<|im_end|>\n"
        "<|im_start|>user\nC?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


# Trained parts beside a LoRA

PROJECTORS = {
    "llava": "model.multi_modal_projector.linear_1.weight",
    "qwen2_vl": "model.visual.merger.mlp.0.weight",
    "qwen3_vl": "model.visual.merger.linear_fc1.weight",
    "minicpmv4_6": "model.merger.mlp.0.linear_1.weight",
}


def write_adapter(target: Path, folder: Path, tensors: dict[str, Any], **more: Any) -> Path:
    from safetensors.torch import save_file

    from shared.loading import fingerprint

    target.mkdir()
    save_file(tensors, target / "projector.safetensors")
    manifest = {"base_model": str(folder), "base_fingerprint": fingerprint(folder),
                "parts": {"model": str(folder)}, **more}  # fmt: skip
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize("kind", list(PROJECTORS))
def test_a_projector_alone_and_with_a_lora(
    folders: dict[str, Path],
    askers: dict[str, VisionLanguage],
    tmp_path: Path,
    photos: list[Any],
    kind: str,
) -> None:
    """The trained projector changes the answer's likelihood as in a model whose weights were set
    by hand; with LoRA files beside it both count."""
    import transformers
    from peft import LoraConfig, get_peft_model

    folder, name = folders[kind], PROJECTORS[kind]
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    weight = dict(model.named_parameters())[name]
    torch.manual_seed(3)
    weight.data += torch.randn_like(weight) * 0.3
    adapter = write_adapter(tmp_path / "adapter", folder, {name: weight.data.clone()})

    def scores(source: Path, given: Path | None) -> list[float]:
        asker = load_vision_language(
            str(source), device="cpu", adapter=None if given is None else str(given)
        )
        (found,) = asker.choice_log_probs(
            asker.encode_images(photos[:1]), [0], ["Which?"], [["red", "no"]]
        )
        return [score.log_prob for score in found]

    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    model.save_pretrained(changed)
    assert scores(folder, adapter) == pytest.approx(scores(changed, None), rel=1e-5)
    assert scores(folder, adapter) != pytest.approx(scores(folder, None), rel=1e-3)

    view = get_peft_model(
        model, LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)")
    )
    for own, matrix in view.named_parameters():
        if ".lora_B." in own:
            matrix.data.normal_(std=0.3)
    view.save_pretrained(adapter)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    view.merge_and_unload().save_pretrained(whole)
    assert scores(folder, adapter) == pytest.approx(scores(whole, None), rel=1e-4)
    assert scores(whole, None) != pytest.approx(scores(changed, None), rel=1e-3)


def test_trained_parts_that_do_not_fit_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, name = folders["qwen2_vl"], PROJECTORS["qwen2_vl"]
    cases = {
        "no parameter of this": {"model.visual.merger.none": torch.zeros(2)},
        r"has the shape \(2,\), this model's has": {name: torch.zeros(2)},
    }
    for i, (reason, tensors) in enumerate(cases.items()):
        adapter = write_adapter(tmp_path / str(i), folder, tensors)
        with pytest.raises(UserError, match=reason):
            load_vision_language(str(folder), device="cpu", adapter=str(adapter))
    with pytest.raises(UserError, match="was trained on"):
        load_vision_language(str(folders["llava"]), device="cpu", adapter=str(adapter))
    (adapter / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"without a manifest\.json"):
        load_vision_language(str(folder), device="cpu", adapter=str(adapter))
    (adapter / "projector.safetensors").unlink()
    with pytest.raises(UserError, match="not an adapter folder"):
        load_vision_language(str(folder), device="cpu", adapter=str(adapter))


# Folders


def test_folders_of_minicpm_that_do_not_fit_say_why(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "minicpm"
    shutil.copytree(folders["minicpmv4_6"], folder)
    file = folder / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({**saved, "downsample_mode": "4x"}))
    with pytest.raises(UserError, match=r"downsample_mode 4x, its config\.json says 16x"):
        open_family(folder)
    file.write_text(json.dumps(saved))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("extra_special_tokens", "model_specific_special_tokens", "slice_start_token"):
        config.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"names no .*slice_start"):
        open_family(folder)


def test_the_mixture_of_experts_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "moe"
    shutil.copytree(folders["qwen3_vl"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl_moe"}))
    with pytest.raises(UserError, match=r"model_type qwen3_vl_moe .*supported: llava"):
        open_family(folder)
