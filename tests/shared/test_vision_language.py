"""One asker for every family: batches equal singles, answers equal `generate` from pixels,
likelihoods equal whole forward passes, and the dear steps are counted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.conversations import encode
from shared.options import DATA_ROOT, UserError
from shared.vision_families import Layout
from shared.vision_language import VisionLanguage, load_vision_language
from tests.tiny_models import tiny_folder

LENGTH = 10
CHATTING = ("llava_llama", "llava_qwen2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6")
KINDS = (*CHATTING, "blip2_opt", "blip2_t5")
# What shared/answering.py may be given: long and short prompts, one picture twice, none, another
PROMPTS = ["what color is the shape ?", "is it red ? yes or no ? is it a star ?", "how many ?", "a"]
SHOWN = [0, 2, None, 0]
CHOICES = ["red", "blue circle", "how many are there ?", "star", "no shape is the circle"]
# llava-hf/llava-1.5-7b-hf: nothing behind an answer but a blank, {% generation %} left out
PUBLISHED_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folders(
    tiny_llava_folder: Callable[..., Path],
    write_tiny_blip2: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        "llava_llama": tiny_llava_folder("clip", "llama"),
        "llava_qwen2": tiny_llava_folder("siglip", "qwen2"),
        **{f"blip2_{k}": write_tiny_blip2(root / f"blip2_{k}", k) for k in ("opt", "t5")},
        **{
            kind: tiny_folder(kind, root / kind)
            for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6")
        },
    }


@pytest.fixture(scope="module")
def askers(folders: dict[str, Path]) -> dict[str, VisionLanguage]:
    return {
        kind: load_vision_language(str(folder), device="cpu", max_new_tokens=LENGTH)
        for kind, folder in folders.items()
    }


@pytest.fixture(params=KINDS)
def asker(request: pytest.FixtureRequest, askers: dict[str, VisionLanguage]) -> VisionLanguage:
    return askers[request.param]


@pytest.fixture
def photos(pictures: list) -> list:
    """Of different sizes: Qwen-VL then has different numbers of tokens."""
    return [pictures[0], pictures[1].resize((90, 60)), pictures[2].resize((60, 110))]


def inputs_of(
    asker: VisionLanguage, photo: Any, prompt: str, behind: Sequence[int] = ()
) -> dict[str, Any]:
    """What transformers' own model takes for one prompt and its picture, or list of pictures."""
    family = asker.family
    photos = photo if isinstance(photo, list) else [] if photo is None else [photo]
    own = dict(family.image_processor(photos, return_tensors="pt")) if photos else {}
    own = {name: own[name] for name in ("pixel_values", "image_grid_thw", "target_sizes")
           if name in own}  # fmt: skip
    layouts = [family.layout(*one.size) for one in photos]
    ids = torch.tensor([[*family.prompt_ids(prompt, layouts, asker.tags_are_meant), *behind]])
    if own:
        own["pixel_values"] = own["pixel_values"].to(family.model.dtype)
    inputs = {**own, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "image_grid_thw" in own:
        inputs["mm_token_type_ids"] = (ids == family.image_token_id).int()
    return inputs


def is_t5(asker: VisionLanguage) -> bool:
    return asker.family.decoder.config.is_encoder_decoder


def has_own_text_path(asker: VisionLanguage) -> bool:
    """BLIP-2's `generate` needs a picture."""
    return asker.family.config.model_type != "blip-2"


# Answers


def test_a_batch_gives_the_answers_of_one_by_one(asker: VisionLanguage, photos: list) -> None:
    features = asker.encode_images(photos)
    together = asker.answer(features, SHOWN, PROMPTS)
    for said, picture, prompt in zip(together, SHOWN, PROMPTS, strict=True):
        (alone,) = asker.answer(features, [picture], [prompt])
        assert said.raw_output == alone.raw_output
        assert said.confidence == pytest.approx(alone.confidence, rel=1e-3)
        assert said.first_token_confidence == pytest.approx(alone.first_token_confidence, rel=1e-3)
        assert (said.n_tokens, said.finish_reason) == (alone.n_tokens, alone.finish_reason)
    assert len({said.raw_output for said in together}) == 4  # and it reads
    (other,) = asker.answer(features, [1], PROMPTS[:1])
    seen = together[0].first_token_confidence  # and looks: another picture, another probability
    assert other.first_token_confidence != pytest.approx(seen, rel=0.01)


def test_answers_are_those_of_generation_from_pixels(asker: VisionLanguage, photos: list) -> None:
    """transformers' own greedy `generate`, one prompt without padding."""
    family = asker.family
    answers = asker.answer(asker.encode_images(photos), SHOWN, PROMPTS)
    for said, picture, prompt in zip(answers, SHOWN, PROMPTS, strict=True):
        if picture is None and not has_own_text_path(asker):
            continue
        inputs = inputs_of(asker, None if picture is None else photos[picture], prompt)
        output = family.model.generate(
            **inputs,
            do_sample=False, repetition_penalty=1.0, temperature=1.0, top_k=50, top_p=1.0,
            max_new_tokens=LENGTH, eos_token_id=sorted(family.end_ids), pad_token_id=family.pad_id,
            suppress_tokens=[family.image_token_id],
        )[0]  # fmt: skip
        new = output[1:] if is_t5(asker) else output[inputs["input_ids"].shape[1] :]
        assert said.raw_output == asker.tokenizer.decode(new)
        assert said.n_tokens == len(new)


def test_confidence_is_the_mean_of_the_words_and_of_the_first(
    asker: VisionLanguage, photos: list
) -> None:
    """Against a whole forward pass over prompt and answer; the end token is not part of it."""
    family = asker.family
    features = asker.encode_images(photos)
    for picture, prompt in ((0, PROMPTS[0]), (1, PROMPTS[0]), (2, PROMPTS[1])):
        with torch.no_grad():
            state = asker.start(features, [picture], [prompt])
        (said,) = asker.answer(features, [picture], [prompt])
        first = state.logits.float().log_softmax(-1)
        allowed = first.clone()
        allowed[:, family.image_token_id] = -torch.inf
        assert said.first_token_confidence == pytest.approx(
            float(first[0, allowed.argmax()].exp()), rel=1e-4
        )
        assert 0 < said.confidence <= 1
        assert said.finish_reason == ("length" if said.n_tokens == LENGTH else "stop")


def test_an_empty_answer_has_no_confidence(askers: dict[str, VisionLanguage]) -> None:
    asker = askers["llava_llama"]
    said = asker.make_answer([2, 5], torch.tensor([-0.5, -1.0]))
    assert (said.answer, said.confidence, said.first_token_confidence) == ("", None, None)
    assert (said.finish_reason, said.n_tokens) == ("stop", 1)
    ids = [*asker.family.ids_behind_prompt("red"), 2, 7]
    said = asker.make_answer(ids, torch.tensor([-0.1, -0.2, -0.3, -9.0, -9.0]))
    assert (said.answer, said.finish_reason, said.n_tokens) == ("red", "stop", 4)
    assert said.confidence == pytest.approx(float(torch.tensor(-0.2).exp()))


def test_an_end_that_is_no_token_ends_the_answer(
    folders: dict[str, Path], tmp_path: Path, photos: list
) -> None:
    """A template whose answers end with "##" in letters."""
    folder = copied(folders["llava_llama"], tmp_path / "hashes")
    set_template(folder, PUBLISHED_TEMPLATE.replace("+ ' '}}", "+ '##'}}"))
    asker = load_vision_language(str(folder), device="cpu", max_new_tokens=LENGTH)
    assert asker.family.end_text == "##"
    said = asker.make_answer(asker.family.ids_behind_prompt("no##x"), torch.full((5,), -0.5))
    assert (said.answer, said.raw_output, said.finish_reason) == ("no", "no##", "stop")
    assert said.n_tokens == 4
    assert len(asker.answer(asker.encode_images(photos), [0], ["a"])[0].raw_output)


# Likelihood


def whole_pass(asker: VisionLanguage, photo: Any, prompt: str, choice: str) -> tuple[float, int]:
    """log P of a choice by one forward pass from pixels over all of it, without any cache."""
    family = asker.family
    ids = family.choice_ids(choice, family.lead(prompt))
    if is_t5(asker):
        inputs = inputs_of(asker, photo, prompt)
        logits = family.model(**inputs, labels=torch.tensor([ids])).logits
    else:
        inputs = inputs_of(asker, photo, prompt, ids)
        logits = family.model(**inputs, use_cache=False).logits[:, -len(ids) - 1 : -1]
    log_probs = logits[0].float().log_softmax(-1)
    return float(log_probs.gather(1, torch.tensor(ids)[:, None]).sum()), len(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_whole_forward_passes(
    folders: dict[str, Path], photos: list, kind: str
) -> None:
    """Prompts of different length side by side, choices of one token and of many, other choices
    for each prompt. In double precision: T5 with random weights turns rounding into 3e-4."""
    asker = load_vision_language(
        str(folders[kind]), device="cpu", dtype="float64", max_new_tokens=32
    )
    shown, prompts = [0, 1, 0], [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    choices = [CHOICES, CHOICES[2:0:-1], CHOICES[:1]]
    features = asker.encode_images(photos)
    with torch.no_grad():
        expected = [
            [whole_pass(asker, photos[picture], prompt, choice) for choice in own]
            for picture, prompt, own in zip(shown, prompts, choices, strict=True)
        ]
    for batch_size in (1, 3, 16):
        scores = asker.choice_log_probs(features, shown, prompts, choices, batch_size)
        for found, wanted in zip(scores, expected, strict=True):
            assert [score.n_tokens for score in found] == [n for _, n in wanted]
            assert [score.log_prob for score in found] == pytest.approx(
                [log_prob for log_prob, _ in wanted], abs=1e-4, rel=0
            )
    assert len({round(score.log_prob, 3) for score in scores[0]}) == len(CHOICES)


def test_likelihoods_with_a_sliding_window(
    tiny_llava_folder: Callable[..., Path], tmp_path: Path, photos: list
) -> None:
    """Mistral's cache keeps the last keys alone; the prompt is longer than the window."""
    folder = copied(tiny_llava_folder("clip", "mistral"), tmp_path / "mistral")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["sliding_window"] = 12
    (folder / "config.json").write_text(json.dumps(config))
    asker = load_vision_language(str(folder), device="cpu", dtype="float64")
    features = asker.encode_images(photos)
    for batch_size in (2, 16):
        scores = asker.choice_log_probs(
            features, [0, 1], PROMPTS[:2], [CHOICES, CHOICES], batch_size
        )
        state = asker.start(features, [0], ["a"])
        assert any(layer.is_sliding for layer in state.cache.layers)
        for found, picture, prompt in zip(scores, (0, 1), PROMPTS[:2], strict=True):
            with torch.no_grad():
                wanted = [whole_pass(asker, photos[picture], prompt, c)[0] for c in CHOICES]
            assert [s.log_prob for s in found] == pytest.approx(wanted, abs=1e-4, rel=0)


def test_answers_and_scores_of_files_on_disk(
    askers: dict[str, VisionLanguage], photos: list, tmp_path: Path
) -> None:
    """Through `answer_questions` and `score_choices`, a job without a picture among them."""
    from shared.answering import Job, answer_questions, score_choices
    from shared.vqav2 import Question

    jobs = []
    for i, photo in enumerate([*photos, None]):
        path = None if photo is None else tmp_path / f"{i}.png"
        if photo is not None:
            photo.save(path)
        name = "" if path is None else path.name
        jobs.append(Job(Question(f"q{i}", path, name, i, PROMPTS[0], ()), PROMPTS[0]))
    asker = askers["llava_llama"]
    settings = {"batch_size": 3, "progress": False}
    answered = answer_questions(asker, jobs, tmp_path / "a.jsonl", **settings)
    scored = score_choices(
        asker, jobs, tmp_path / "c.jsonl", choices=lambda job: CHOICES[:2], **settings
    )
    features = asker.encode_images(photos)
    for i in range(4):
        shown = [i] if i < 3 else [None]
        (said,) = asker.answer(features, shown, PROMPTS[:1])
        assert answered[f"q{i}"]["answer"] == said.answer
        (scores,) = asker.choice_log_probs(features, shown, PROMPTS[:1], [CHOICES[:2]])
        assert scored[f"q{i}"]["choice_log_probs"] == pytest.approx(
            [score.log_prob for score in scores], rel=1e-4
        )


def test_probabilities_of_all_single_tokens_sum_to_one(
    askers: dict[str, VisionLanguage], photos: list
) -> None:
    """An absolute check: what is returned is a normalised probability, not a score."""
    asker = askers["blip2_t5"]
    family = asker.family
    n_words = family.model.get_output_embeddings().weight.shape[0]
    words = [str(i) for i in range(n_words)]
    for i, word in enumerate(words):
        family._choice_ids[word, ""] = [i]
    try:
        (scores,) = asker.choice_log_probs(asker.encode_images(photos), [0], ["a"], [words])
    finally:
        family._choice_ids.clear()
    total = torch.tensor([score.log_prob for score in scores]).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)


class Counter:
    """Notes the shapes that a module is called with."""

    def __init__(self, module: torch.nn.Module, name: str | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.name = name
        self.handle = module.register_forward_hook(self.note, with_kwargs=True)

    def note(self, module: Any, given: tuple, named: dict[str, Any], output: Any) -> None:
        for value in (named.get("inputs_embeds"), named.get("input_ids"), *given,
                      named.get("pixel_values"), named.get("decoder_input_ids")):  # fmt: skip
            if isinstance(value, torch.Tensor):
                self.shapes.append(tuple(value.shape[:2]))
                return


def tower(asker: VisionLanguage) -> torch.nn.Module:
    model = asker.family.model
    if asker.family.config.model_type == "blip-2":
        return model.vision_model
    return model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.visual


def test_the_picture_is_encoded_once_and_the_prompt_run_once(
    asker: VisionLanguage, photos: list
) -> None:
    """80 classes with two names each and more cost one prompt a job and short continuations."""
    decoder = asker.family.decoder
    if asker.family.config.model_type == "minicpmv4_6":  # its head is applied to one place alone
        decoder = decoder.model
    towers, decoders = Counter(tower(asker)), Counter(decoder)
    encoders = Counter(asker.family.decoder.encoder) if is_t5(asker) else None
    names = ["red star", "blue circle", "no", "how many", "yes"] * 32
    try:
        features = asker.encode_images(photos[:2])
        asker.choice_log_probs(features, [0, 1], PROMPTS[:2], [names, names], batch_size=40)
    finally:
        for counter in (towers, decoders, encoders):
            if counter is not None:
                counter.handle.remove()
    if asker.family.config.model_type.startswith("qwen"):
        assert len(towers.shapes) == 1  # the patches of both, in one call
        n_patches = 4 * sum(len(picture.vectors) for picture in features)
        assert towers.shapes[0][0] == n_patches
    elif asker.family.config.model_type == "minicpmv4_6":
        assert towers.shapes == [(1, 3)]  # both pictures with their slices in one strip of patches
    else:
        assert [shape[0] for shape in towers.shapes] == [2]
    ids = [asker.family.choice_ids(name, asker.family.lead("a")) for name in names]
    longer = 2 * sum(len(own) > 1 for own in ids)
    assert longer
    prompts, *continuations = decoders.shapes
    assert prompts[0] == 2  # both jobs in one pass
    assert len(continuations) == -(-longer // 40)
    assert sum(shape[0] for shape in continuations) == longer
    assert all(shape[1] <= max(map(len, ids)) - 1 for shape in continuations)
    if encoders is not None:
        assert len(encoders.shapes) == 1


# Forms


def test_llava_asks_and_answers_as_in_training(askers: dict[str, VisionLanguage]) -> None:
    """Prompt, choice and end token are together the ids that a training row has."""
    for kind in ("llava_llama", "llava_qwen2"):
        family = askers[kind].family
        for choice in ("red", "a red star, and more"):
            turns = [("human", "<image>\nwhat is it ?"), ("gpt", choice)]
            said = [{"from": who, "value": text} for who, text in turns]
            row = {"conversations": said, "image": "a.jpg"}
            learned = encode(row, family.tokenizer, None, family.n_image_tokens)["input_ids"]
            prompt = family.prompt_ids("what is it ?", [Layout(family.n_image_tokens)])
            answer = family.choice_ids(choice, family.lead("what is it ?"))
            end = learned[len(prompt) + len(answer) :]
            assert learned[: -len(end)] == prompt + answer
            assert end[0] in family.end_ids


def test_a_choice_begins_with_a_blank_where_the_models_answers_do(
    askers: dict[str, VisionLanguage],
) -> None:
    asked = "Question: what color is it? Answer:"
    leads = {kind: asker.family.lead(asked) for kind, asker in askers.items()}
    assert leads == {
        "llava_llama": " ", "llava_qwen2": "", "blip2_opt": " ", "blip2_t5": "", "qwen2_vl": "",
        "qwen2_5_vl": "", "qwen3_vl": "", "minicpmv4_6": "",
    }  # fmt: skip
    opt = askers["blip2_opt"].family
    assert (opt.lead(""), opt.lead("a photo of "), opt.lead("a photo of")) == ("", "", " ")
    qwen, llava = askers["qwen2_vl"].family, askers["llava_llama"].family
    assert qwen.tokenizer.decode(qwen.choice_ids(" red ", "")) == "red"
    assert llava.tokenizer.decode(llava.choice_ids("red", " ")) == " red"


def test_the_published_template_can_be_asked(
    folders: dict[str, Path], tmp_path: Path, photos: list
) -> None:
    """LLaVA-1.5's writes no end token behind an answer; older folders keep it in a JSON file."""
    folder = copied(folders["llava_llama"], tmp_path / "published")
    set_template(folder, None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": PUBLISHED_TEMPLATE}))
    asker = load_vision_language(str(folder), device="cpu", max_new_tokens=LENGTH)
    family = asker.family
    text = family.tokenizer.decode(family.prompt_ids("what is it ?", [Layout(2)]))
    assert text == "<s>USER: <image><image>\nwhat is it ? ASSISTANT:"
    assert family.tokenizer.decode(family.choice_ids("red", family.lead("a"))) == " red"
    assert family.end_ids == {2}
    assert family.end_text is None
    assert len(asker.answer(asker.encode_images(photos), [0], ["a"])) == 1


def test_a_sentencepiece_choice_has_the_tokens_of_the_whole_text(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Llama's tokenizer puts a blank before a text on its own: "▁▁red" would be another token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoConfig, CLIPImageProcessor, PreTrainedTokenizerFast

    from shared.vision_families import LlavaFamily

    letters = "abcdefghijklmnopqrstuvwxyzUSERAINT:?\n"
    words = ["<unk>", "<s>", "</s>", "<image>", "▁", *letters, "▁r", "▁re", "▁red"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.BPE(vocabulary, [("▁", "r"), ("▁r", "e"), ("▁re", "d")]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=["<image>"], chat_template=PUBLISHED_TEMPLATE,
    )  # fmt: skip
    config = AutoConfig.from_pretrained(folders["llava_llama"])
    config.image_token_id = config.image_token_index = vocabulary["<image>"]
    family = LlavaFamily(folders["llava_llama"], config, tokenizer, CLIPImageProcessor())
    prompt = family.prompt_ids("what", [Layout(1)])
    choice = family.choice_ids("red", family.lead("what"))
    assert tokenizer.convert_ids_to_tokens(choice) == ["▁red"]
    whole = tokenizer("USER: <image>\nwhat ASSISTANT: red")["input_ids"]
    assert prompt + choice == whole


def test_what_is_typed_stays_text(asker: VisionLanguage, photos: list) -> None:
    """A typed picture tag or end token would ask for features that are not there, or end a turn."""
    family = asker.family
    for typed in ("<image>", "<|image_pad|>", "</s>", "<|im_end|>"):
        plain = family.prompt_ids("a ?", [Layout(3, slices=(3,))])
        ids = family.prompt_ids(f"a {typed} ?", [Layout(3, slices=(3,))])
        assert ids.count(family.image_token_id) == plain.count(family.image_token_id) == 3
        assert sum(i in family.end_ids for i in ids) == sum(i in family.end_ids for i in plain)


def test_the_places_for_a_picture_are_counted_before_the_forward_pass(
    asker: VisionLanguage, photos: list
) -> None:
    features = asker.encode_images(photos[:1])
    n = len(features[0].vectors) - 1
    ids = torch.tensor([asker.family.prompt_ids("a", [Layout(n, slices=(n,))])])
    with pytest.raises(UserError, match=r"prompt 0 of the batch has \d+ image tokens for pict"):
        asker.embed(ids, [features])
    if asker.family.config.model_type != "blip-2":  # transformers' BLIP-2 looks at nothing then
        n = asker.family.n_image_tokens
        assert len(features[0].vectors) <= n
    assert asker.encode_images([]) == []


# Refusals


def test_a_prompt_needs_room(asker: VisionLanguage) -> None:
    assert asker.prompt_problem(PROMPTS[0]) is None
    problem = asker.prompt_problem("is it red ? " * 400) or ""
    assert "the model has room for" in problem
    assert f"beside {LENGTH} for the answer" in problem


def test_choices_that_cannot_be_scored_are_told(askers: dict[str, VisionLanguage]) -> None:
    asker = askers["llava_qwen2"]
    assert asker.choices_problem("a", ["red", "blue"]) is None
    for choices, reason in (
        ([], "no choice is given"),
        (["red", " "], "choice ' ' is empty"),
        (["red", "blue<|im_end|>"], "holds a special token"),
        (["red", "x" * 500], "has 500 tokens, the prompt"),
        (["\ud83d"], "half a character"),
    ):
        assert reason in (asker.choices_problem("a", choices) or "")


def test_folders_that_cannot_be_asked_say_why(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"clip .*supported: llava, blip-2, qwen2_vl, qwen2_5_vl, q"
    ):
        load_vision_language(str(DATA_ROOT / "toy_models" / "clip"))
    folder = copied(folders["llava_llama"], tmp_path / "no_template")
    set_template(folder, None)
    with pytest.raises(UserError, match=r"no chat template; llava_repro/convert\.py --template"):
        load_vision_language(str(folder))
    config = json.loads((folder / "config.json").read_text())
    set_template(folder, PUBLISHED_TEMPLATE)
    for change, reason in (
        ({"image_token_index": 5}, r"<image> is token \d+ of its tokenizer, config.json says 5"),
        ({"vision_config": {**config["vision_config"], "model_type": "pixtral"}}, "pixtral tower"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=reason):
            load_vision_language(str(folder))
    for file in folder.glob("*processor*"):
        file.unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its image processor cannot be loaded"):
        load_vision_language(str(folder))
    with pytest.raises(UserError, match="--max_new_tokens 0: at least 1"):
        load_vision_language(str(folders["llava_llama"]), device="cpu", max_new_tokens=0)


# Pictures


def test_llavas_pictures_are_made_square_as_in_training(
    folders: dict[str, Path], tmp_path: Path, photos: list
) -> None:
    padded = copied(folders["llava_llama"], tmp_path / "llava-hf" / "llava-1.5-7b-hf")
    loaded = {
        handling: load_vision_language(str(padded), device="cpu", image_handling=handling)
        for handling in ("model", "pad", "crop")
    }
    plain = load_vision_language(str(folders["llava_llama"]), device="cpu")
    wide = photos[1]
    seen = {name: asker.encode_images([wide])[0].vectors for name, asker in loaded.items()}
    assert torch.equal(seen["model"], seen["pad"])
    assert not torch.allclose(seen["pad"], seen["crop"], atol=1e-3)
    pixels = plain.family.image_processor([wide], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        untouched = plain.family.model.get_image_features(pixel_values=pixels).pooler_output[0]
    assert torch.equal(plain.encode_images([wide])[0].vectors, untouched)
    assert loaded["model"].notes == []
    assert "does not say how pictures were made square" in plain.notes[0]


# Against the experiments' own paths


def test_llava_answers_as_its_experiment(askers: dict[str, VisionLanguage], photos: list) -> None:
    """llava_repro has its own model class and loader; prompts, answers, confidences agree."""
    from llava_repro.answering import LlavaAnswerer, load_llava
    from llava_repro.asking import Decoding, human_text

    for kind in ("llava_llama", "llava_qwen2"):
        asker = askers[kind]
        own = LlavaAnswerer(
            *load_llava(str(asker.family.folder), device="cpu"), Decoding(max_new_tokens=LENGTH)
        )
        counts = [int(picture is not None) for picture in SHOWN]
        prompts = [human_text(p, n) for p, n in zip(PROMPTS, counts, strict=True)]
        theirs = own.answer(own.encode_images(photos), SHOWN, prompts)
        ours = asker.answer(asker.encode_images(photos), SHOWN, PROMPTS)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.raw_output, a.answer, a.finish_reason, a.n_tokens) == (
                b.raw_output, b.answer, b.finish_reason, b.n_tokens)  # fmt: skip
            assert a.confidence == pytest.approx(b.confidence, rel=1e-3)
            assert a.first_token_confidence == pytest.approx(b.first_token_confidence, rel=1e-3)


def test_blip2_answers_as_its_experiment(askers: dict[str, VisionLanguage], photos: list) -> None:
    from blip2_qlora.blip2 import Blip2Answerer, Decoding, answer_ids, load_blip2
    from shared.options import ModelOptions

    for kind in ("opt", "t5"):
        asker = askers[f"blip2_{kind}"]
        model, processor = load_blip2(ModelOptions(str(asker.family.folder), device="cpu"), None)
        greedy = Decoding(num_beams=1, max_new_tokens=LENGTH, min_new_tokens=0)
        own = Blip2Answerer(model, processor, greedy)
        theirs = own.answer(own.encode_images(photos), [0, 1, 2], PROMPTS[:3])
        ours = asker.answer(asker.encode_images(photos), [0, 1, 2], PROMPTS[:3])
        for a, b in zip(ours, theirs, strict=True):
            assert (a.raw_output, a.answer, a.finish_reason) == (
                b.raw_output, b.answer, b.finish_reason)  # fmt: skip
            assert a.confidence == pytest.approx(b.confidence, rel=1e-3)
        family = asker.family
        learned = answer_ids(processor, "red star", 2, kind)
        assert family.choice_ids("red star", family.lead("Answer:")) == learned[:-1]


# Loading


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["llava_llama", "blip2_opt", "qwen2_vl", "qwen3_vl", "minicpmv4_6"]
)
def test_only_the_language_model_is_quantised(
    folders: dict[str, Path], kind: str, photos: list
) -> None:
    """The names that stay out are matched from a module's full name: easily none matches."""
    pytest.importorskip("bitsandbytes")
    asker = load_vision_language(str(folders[kind]), "nf4", device="cpu", max_new_tokens=3)
    four_bit = {
        name for name, module in asker.family.model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }  # fmt: skip
    assert four_bit
    assert all("language_model" in name for name in four_bit)
    assert not any(re.search("lm_head|in_proj_[ab]$", name) for name in four_bit)
    features = asker.encode_images(photos[:1])
    assert len(asker.answer(features, [0], ["what color ?"])) == 1
    (scores,) = asker.choice_log_probs(features, [0], ["what color ?"], [["red", "blue"]])
    assert all(score.log_prob < 0 for score in scores)


def made_different(model: torch.nn.Module, seed: int = 0) -> None:
    """LoRA's B is zero at first, which changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1


def manifest_of(folder: Path, **more: Any) -> dict[str, Any]:
    from shared.loading import fingerprint

    return {"parts": {"model": str(folder)}, "base_model": str(folder), "template": None,
            "base_fingerprint": fingerprint(folder), **more}  # fmt: skip


def llava_adapter(folder: Path, target: Path, **more: Any) -> Path:
    """What llava_repro/train.py leaves: LoRA of the language model and the projector beside it."""
    from peft import LoraConfig, get_peft_model

    from llava_repro.model import Llava
    from llava_repro.results import save_lora

    model = Llava.from_pretrained(folder, device="cpu")
    view = get_peft_model(
        model.language_model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    made_different(view)
    torch.manual_seed(1)
    for weight in model.projector.parameters():
        weight.data += torch.randn_like(weight) * 0.2
    save_lora(target, model, view, manifest_of(folder, **more))
    return target


def test_an_adapter_of_llavas_experiment_with_its_projector(
    folders: dict[str, Path], tmp_path: Path, photos: list, askers: dict[str, VisionLanguage]
) -> None:
    """The language model's LoRA and the projector change what they change in llava_repro."""
    from llava_repro.answering import LlavaAnswerer, load_llava
    from llava_repro.asking import Decoding, human_text

    folder = folders["llava_llama"]
    adapter = llava_adapter(folder, tmp_path / "adapter", image_aspect_ratio="pad")
    asker = load_vision_language(
        str(folder), device="cpu", adapter=str(adapter), max_new_tokens=LENGTH
    )
    own = LlavaAnswerer(
        *load_llava(str(folder), device="cpu", adapter=str(adapter)),
        Decoding(max_new_tokens=LENGTH),
    )
    assert asker.notes == []  # the adapter says how its pictures were made square
    features, theirs = asker.encode_images(photos), own.encode_images(photos)
    torch.testing.assert_close(features[1].vectors, theirs[1], atol=1e-4, rtol=1e-4)
    prompts = [human_text(prompt, 1) for prompt in PROMPTS[:3]]
    expected = own.answer(theirs, [0, 1, 2], prompts)
    found = asker.answer(features, [0, 1, 2], PROMPTS[:3])
    assert [a.raw_output for a in found] == [a.raw_output for a in expected]
    assert [a.confidence for a in found] == pytest.approx(
        [a.confidence for a in expected], rel=1e-3
    )
    base = askers["llava_llama"]
    before = base.answer(base.encode_images(photos), [0, 1, 2], PROMPTS[:3])
    assert [a.raw_output for a in before] != [a.raw_output for a in found]


@pytest.mark.slow
def test_an_adapter_on_a_four_bit_base(
    folders: dict[str, Path], tmp_path: Path, photos: list
) -> None:
    """peft must be told that the layers are of 4 bits; both ways quantise the same weights."""
    pytest.importorskip("bitsandbytes")
    from llava_repro.answering import LlavaAnswerer, load_llava
    from llava_repro.asking import human_text

    folder = folders["llava_llama"]
    adapter = str(llava_adapter(folder, tmp_path / "adapter"))
    asker = load_vision_language(str(folder), "nf4", device="cpu", adapter=adapter)
    own = LlavaAnswerer(*load_llava(str(folder), "nf4", device="cpu", adapter=adapter))
    kinds = {type(module).__name__ for module in asker.family.model.modules()}
    assert "Linear4bit" in kinds
    features, theirs = asker.encode_images(photos[:1]), own.encode_images(photos[:1])
    (scores,) = asker.choice_log_probs(features, [0], PROMPTS[:1], [CHOICES])
    rows = [asker.family.choice_ids(choice, asker.family.lead("a")) for choice in CHOICES]
    prompt = own.prompt_ids([("human", human_text(PROMPTS[0], 1))])
    expected = own.answer_log_probs(theirs[[0] * len(rows)], [prompt] * len(rows), rows)
    assert [score.log_prob for score in scores] == pytest.approx(
        [float(log_probs.sum()) for log_probs in expected], rel=1e-3
    )


def test_adapters_that_do_not_fit_here_say_what_to_give(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["llava_llama"]
    adapter = llava_adapter(folder, tmp_path / "adapter")
    manifest = json.loads((adapter / "manifest.json").read_text())
    for change, reason in (
        ({"parts": {"vision_tower": "a", "language_model": "b"}}, "not on one LLaVA folder"),
        ({"template": "vicuna_v1"}, r"the named prompt vicuna_v1.* model/ folder"),
        ({"base_fingerprint": "0"}, "was trained on"),
    ):
        (adapter / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=reason):
            load_vision_language(str(folder), device="cpu", adapter=str(adapter))
    (adapter / "manifest.json").write_text(json.dumps(manifest))
    (adapter / "projector.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"projector\.safetensors: cannot be read"):
        load_vision_language(str(folder), device="cpu", adapter=str(adapter))


@pytest.mark.parametrize(
    "kind", ["llava_qwen2", "blip2_opt", "qwen2_vl", "qwen3_vl", "minicpmv4_6"]
)
def test_plain_peft_folders_of_the_whole_model(
    folders: dict[str, Path], kind: str, tmp_path: Path, photos: list
) -> None:
    """LoRA put by peft on transformers' own class; the answer is that of the merged model."""
    import transformers
    from peft import LoraConfig, get_peft_model

    folder = folders[kind]
    merged, adapter = copied(folder, tmp_path / "merged"), tmp_path / "adapter"
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    targets = r".*language_model.*(q_proj|v_proj)"
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    made_different(tuned)
    tuned.save_pretrained(adapter)
    tuned.merge_and_unload().save_pretrained(merged)
    settings = {"device": "cpu", "max_new_tokens": LENGTH}
    with pytest.warns(UserWarning, match="no manifest of this project"):
        asker = load_vision_language(str(folder), adapter=str(adapter), **settings)
    whole, bare = (load_vision_language(str(f), **settings) for f in (merged, folder))
    found, expected, before = (
        a.choice_log_probs(a.encode_images(photos), [0], PROMPTS[:1], [CHOICES])[0]
        for a in (asker, whole, bare)
    )
    assert [s.log_prob for s in found] == pytest.approx([s.log_prob for s in expected], rel=1e-4)
    assert [s.log_prob for s in found] != pytest.approx([s.log_prob for s in before], rel=1e-3)


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def set_template(folder: Path, template: str | None) -> None:
    for file in folder.glob("chat_template*"):
        file.unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
