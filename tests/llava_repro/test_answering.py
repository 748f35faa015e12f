"""Answers: batches equal singles, one encoding equals generation from pixels, adapters load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_repro.answering import LlavaAnswerer, left_pad, load_llava
from llava_repro.asking import Decoding, human_text
from llava_repro.streaming import stream, until
from llava_repro.templates import TEMPLATES
from shared.conversations import encode
from shared.options import UserError

SHORT = Decoding(max_new_tokens=12)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def loaded(request: pytest.FixtureRequest, tiny_llava_folder: Callable[..., Path]) -> tuple:
    return load_llava(str(tiny_llava_folder("clip", request.param)), device="cpu")


@pytest.fixture(scope="module")
def answerer(loaded: tuple) -> LlavaAnswerer:
    return LlavaAnswerer(*loaded, SHORT)


def mixed(answerer: LlavaAnswerer, pictures: list) -> tuple[Any, list, list[str]]:
    """Features, pictures and prompts: one picture, none, two, a long question, the same again."""
    features = answerer.encode_images(pictures)
    shown = [0, None, [2, 1], 1, 0]
    texts = ["what is it?", "what is two and two, and why?", "same?", "color? " * 9, "what is it?"]
    counts = [1, 0, 2, 1, 1]
    prompts = [human_text(t, n) for t, n in zip(texts, counts, strict=True)]
    return features, shown, prompts


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_gives_the_answers_of_one_by_one(loaded: tuple, pictures: list, beams: int) -> None:
    """Different lengths, padded on the left; text alone, one and two pictures side by side."""
    answerer = LlavaAnswerer(*loaded, Decoding(num_beams=beams, max_new_tokens=12))
    features, shown, prompts = mixed(answerer, pictures)
    together = answerer.answer(features, shown, prompts)
    for said, picture, prompt in zip(together, shown, prompts, strict=True):
        (alone,) = answerer.answer(features, [picture], [prompt])
        assert said.raw_output == alone.raw_output
        assert said.confidence == pytest.approx(alone.confidence, rel=1e-4)
        assert (said.n_tokens, said.finish_reason) == (alone.n_tokens, alone.finish_reason)
    assert len({said.raw_output for said in together}) == 4  # and it looks and reads


def test_one_encoding_gives_the_tokens_of_generation_from_pixels(
    answerer: LlavaAnswerer, pictures: list
) -> None:
    """`Llava.generate` with pixel_values, one prompt without padding: the readable path."""
    features, shown, prompts = mixed(answerer, pictures)
    answers = answerer.answer(features, shown, prompts)
    for said, picture, prompt in zip(answers, shown, prompts, strict=True):
        own = [] if picture is None else [picture] if isinstance(picture, int) else picture
        pixels = None
        if own:
            images = [pictures[i] for i in own]
            pixels = answerer.image_processor(images, return_tensors="pt")["pixel_values"]
        ids = answerer.prompt_ids([("human", prompt)])
        output = answerer.model.generate(
            torch.tensor([ids]), pixel_values=pixels, do_sample=False,
            max_new_tokens=SHORT.max_new_tokens,
            suppress_tokens=[answerer.model.config.image_token_index],
        )[0, len(ids) :]  # fmt: skip
        assert said.raw_output == answerer.tokenizer.decode(output)


def test_each_picture_is_encoded_once(
    answerer: LlavaAnswerer, pictures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    tower = answerer.model.vision_tower
    forward = tower.forward
    monkeypatch.setattr(
        tower, "forward", lambda pixels, **k: (passes.append(len(pixels)), forward(pixels, **k))[1]
    )
    features = answerer.encode_images(pictures)
    answerer.answer(features, [0, 0, 1, 2], [human_text(f"{i}?", 1) for i in range(4)])
    assert passes == [3]
    assert answerer.encode_images([]).shape == (0, 16, 64)
    assert passes == [3]


def test_confidence_is_the_mean_probability_of_the_answer_s_tokens(
    answerer: LlavaAnswerer, pictures: list
) -> None:
    """What generation noted equals a forward pass over prompt and answer."""
    features, shown, prompts = mixed(answerer, pictures)
    rows = [answerer.prompt_ids([("human", prompt)]) for prompt in prompts]
    own = features[[0, 2, 1, 1, 0]]
    output, noted = answerer.generate(rows, own, SHORT)
    assert noted is not None
    cut = [answerer.tokens_of_answer(ids) for ids in output]
    words = [ids[:n] for ids, n in cut]
    again = answerer.answer_log_probs(own, rows, words)
    answers = answerer.answer(features, shown, prompts)
    for said, log_prob, recorded, (_, n) in zip(answers, again, noted, cut, strict=True):
        assert torch.allclose(log_prob, recorded[:n], atol=1e-4)
        assert said.confidence == pytest.approx(float(log_prob.mean().exp()), rel=1e-3)
        assert said.first_token_confidence == pytest.approx(float(log_prob[0].exp()), rel=1e-3)
        assert 0 < said.confidence <= 1


def test_log_probs_of_given_answers_do_not_depend_on_the_batch(
    answerer: LlavaAnswerer, pictures: list
) -> None:
    features = answerer.encode_images(pictures[:2])
    rows = [answerer.prompt_ids([("human", human_text(t, 1))]) for t in ("a?", "and this one?")]
    answers = [[70, 71, 72], [], ]  # fmt: skip
    both = answerer.answer_log_probs(features, rows, answers)
    assert [len(each) for each in both] == [3, 0]
    (alone,) = answerer.answer_log_probs(features[:1], rows[:1], answers[:1])
    assert torch.allclose(both[0], alone, atol=1e-4)


def test_the_folder_s_generation_config_does_not_decide(
    loaded: tuple, pictures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen's samples with a repetition penalty; an evaluation is greedy all the same."""
    answerer = LlavaAnswerer(*loaded, SHORT)
    features, shown, prompts = mixed(answerer, pictures)
    before = answerer.answer(features, shown, prompts)
    theirs = answerer.model.language_model.generation_config
    for name, value in {"do_sample": True, "temperature": 3.0, "top_k": 20, "num_beams": 1,
                        "repetition_penalty": 5.0, "min_new_tokens": 9}.items():  # fmt: skip
        monkeypatch.setattr(theirs, name, value)
    assert answerer.answer(features, shown, prompts) == before


# The end of an answer


def forced(answerer: LlavaAnswerer, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says exactly this (ids of the text, one after the other), whatever it is asked."""
    wanted = answerer.tokenizer(text, add_special_tokens=False)["input_ids"]
    forward = type(answerer.model.language_model).forward
    start: dict[str, int] = {}  # length of the prompt

    def say(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        past = kwargs["past_key_values"].get_seq_length()
        start["at"] = past if kwargs.get("inputs_embeds") is not None else start["at"]
        place = past - start["at"]
        output.logits[:] = 0.0
        output.logits[:, -1, wanted[min(place, len(wanted) - 1)]] = 9.0
        return output

    monkeypatch.setattr(type(answerer.model.language_model), "forward", say)


@pytest.mark.parametrize(
    ("template", "said", "answer", "finish", "n_tokens"),
    [
        (None, "a cat<END>rest", "a cat", "stop", 6),
        ("vicuna_v1", " yes</s>", "yes", "stop", 5),
        ("llava_v0", "two dogs###Human: no", "two dogs", "stop", 11),
        ("llava_v0", "# one # two ##", "# one # two ##", "length", 14),
        ("plain", "a red ball\nnext", "a red ball", "stop", 11),
    ],
)
def test_an_answer_ends_where_its_template_says(
    tiny_llava_folder: Callable[..., Path], pictures: list, monkeypatch: pytest.MonkeyPatch,
    template: str | None, said: str, answer: str, finish: str, n_tokens: int,
) -> None:  # fmt: skip
    """An end token, or a text such as ### that may be spread over tokens; streamed alike."""
    folder = tiny_llava_folder("clip", "llama")
    decoding = Decoding(max_new_tokens=14)
    answerer = LlavaAnswerer(*load_llava(str(folder), device="cpu", template=template), decoding)
    forced(answerer, said.replace("<END>", "</s>"), monkeypatch)
    features = answerer.encode_images(pictures[:2])
    for result in answerer.answer(features, [0, 1], [human_text("hi", 1)] * 2):
        assert (result.answer, result.finish_reason) == (answer, finish)
        assert result.n_tokens == n_tokens
        assert result.confidence is not None
    turns = [("human", human_text("hi", 1))]
    assert "".join(stream(answerer, features[:1], turns)) == answer


def test_an_empty_answer_has_no_confidence(
    tiny_llava_folder: Callable[..., Path], pictures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for template, said in ((None, "</s>"), ("llava_v0", "###")):
        answerer = LlavaAnswerer(
            *load_llava(str(tiny_llava_folder("clip", "llama")), device="cpu", template=template)
        )
        with monkeypatch.context() as patch:
            forced(answerer, said, patch)
            features = answerer.encode_images(pictures[:1])
            (result,) = answerer.answer(features, [0], [human_text("hi", 1)])
        assert (result.answer, result.confidence, result.finish_reason) == ("", None, "stop")


# Prompts


def test_the_prompt_is_what_training_puts_before_the_answer(answerer: LlavaAnswerer) -> None:
    turns = [("human", "<image>\nwhat?"), ("gpt", "a cat"), ("human", "sure?")]
    row = {
        "id": "1", "image": "x.png",
        "conversations": [{"from": who, "value": text} for who, text in [*turns, ("gpt", "yes")]],
    }  # fmt: skip
    trained = encode(row, answerer.tokenizer, answerer.template, answerer.n_image_tokens)
    asked = answerer.prompt_ids(turns)
    assert trained["input_ids"][: len(asked)] == asked
    assert trained["labels"][len(asked) - 1] == -100 != trained["labels"][len(asked)]


def test_a_typed_image_tag_or_end_token_stays_text(answerer: LlavaAnswerer) -> None:
    end = "<|im_end|>" if "<|im_end|>" in answerer.tokenizer.get_vocab() else "</s>"
    text = human_text(f"what is <image>? {end}", 1, answerer.tokenizer)
    ids = answerer.prompt_ids([("human", text)])
    assert ids.count(answerer.model.config.image_token_index) == answerer.n_image_tokens
    plain = answerer.prompt_ids([("human", human_text("what is it?", 1))])
    end_id = answerer.tokenizer.convert_tokens_to_ids(end)
    assert ids.count(end_id) == plain.count(end_id)


def test_what_cannot_be_answered_says_why(answerer: LlavaAnswerer, pictures: list) -> None:
    assert answerer.prompt_problem(human_text("what?", 1)) is None
    told = answerer.prompt_problem(human_text("x" * 600, 2))
    assert told is not None
    assert "32 of them for pictures" in told
    assert f"room for {512 - SHORT.max_new_tokens}" in told
    features = answerer.encode_images(pictures[:1])
    with pytest.raises(UserError, match="1 images, its text has places for 2"):
        answerer.answer(features, [0], [human_text("what?", 2)])
    plain = LlavaAnswerer(
        answerer.model, answerer.tokenizer, answerer.image_processor, TEMPLATES["plain"]
    )
    assert "pictures alone" in (plain.prompt_problem("text alone") or "")
    assert plain.prompt_problem(human_text("", 1)) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_beams": 0}, "--num_beams 0: at least 1"),
        ({"max_new_tokens": 0}, "--max_new_tokens 0: at least 1"),
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 0.0}, "--top_p 0.0"),
        ({"num_beams": 2, "temperature": 0.2}, "searches, --temperature samples"),
    ],
)
def test_decoding_that_means_nothing_is_refused(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoding(**flags)


# Pictures


def test_each_way_to_handle_a_picture_that_is_no_square(answerer: LlavaAnswerer) -> None:
    from PIL import Image

    wide = Image.new("RGB", (80, 40), (255, 0, 0))
    wide.paste((0, 0, 255), (20, 0, 60, 40))
    padded = answerer.prepare(wide, "pad")
    mean = tuple(int(255 * value) for value in answerer.image_processor.image_mean)
    assert padded.size == (80, 80)
    assert padded.getpixel((0, 0)) == mean
    cropped = answerer.prepare(wide, "crop")
    assert cropped.size == (40, 40)
    assert cropped.getcolors() == [(1600, (0, 0, 255))]
    assert answerer.prepare(wide, "resize").size == (32, 32)
    assert answerer.prepare(wide, "model") is wide
    answerer.model.config.image_aspect_ratio = "pad"
    try:
        assert answerer.prepare(wide, "model").size == (80, 80)
    finally:
        answerer.model.config.image_aspect_ratio = "square"


# Streaming


def read(pieces: Any) -> tuple[list[str], Any]:
    """What a stream gives and what it returns."""
    shown = []
    while True:
        try:
            shown.append(next(pieces))
        except StopIteration as end:
            return shown, end.value


def test_a_stream_joined_is_the_answer(answerer: LlavaAnswerer, pictures: list) -> None:
    features, shown, prompts = mixed(answerer, pictures)
    for said, picture, prompt in zip(
        answerer.answer(features, shown, prompts), shown, prompts, strict=True
    ):
        own = [] if picture is None else [picture] if isinstance(picture, int) else picture
        pieces, answer = read(stream(answerer, features[own], [("human", prompt)]))
        assert "".join(pieces) == answer.answer == said.answer
        assert answer.confidence == pytest.approx(said.confidence, rel=1e-4)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([" a ", "red ", "dog", "##", "#Human"], "a red dog"),
        (["a #", " b", " ##"], "a # b ##"),
        (["###"], ""),
        (["yes", "\n ", "\nno "], "yes\n \nno"),
    ],
)
def test_a_stream_holds_back_what_may_be_the_end_mark(pieces: list[str], shown: str) -> None:
    assert "".join(until(pieces, "###")) == shown


def test_a_stream_that_nobody_reads_on_stops(
    answerer: LlavaAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visitor who closed the page, or pressed stop, must not keep the model busy."""
    forced(answerer, "a b c d e f g h i j k l m n o p q r s t u v w x y z", monkeypatch)
    steps = []
    forward = type(answerer.model.language_model).forward
    monkeypatch.setattr(
        type(answerer.model.language_model), "forward",
        lambda *a, **k: (steps.append(1), forward(*a, **k))[1],
    )  # fmt: skip
    pieces = stream(
        answerer, answerer.encode_images([]), [("human", "go")], Decoding(max_new_tokens=400)
    )
    next(pieces)
    pieces.close()
    assert len(steps) < 200


def test_an_error_in_generation_reaches_the_reader(
    answerer: LlavaAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(answerer.model.language_model, "generate", full)
    with pytest.raises(torch.OutOfMemoryError):
        list(stream(answerer, answerer.encode_images([]), [("human", "go")]))


def test_padding_is_on_the_left() -> None:
    ids, mask = left_pad([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


# Adapters


def trained_adapter(folder: Path, data: Path, *parts: str) -> Path:
    """Four steps of LoRA by train.py."""
    from llava_repro.train import main, parse

    main(*parse([
        *parts, "--stage", "finetune", "--train_type", "lora", "--lora_rank", "4",
        "--data", str(data), "--image_root", str(data.parent / "images"),
        "--output_dir", str(folder), "--device", "cpu", "--max_steps", "4",
        "--per_device_train_batch_size", "4", "--learning_rate", "3e-2", "--warmup_steps", "0",
        "--validation_samples", "0", "--dataloader_num_workers", "0", "--disable_tqdm", "true",
        "--image_aspect_ratio", "pad", "--template", "mpt",
    ]))  # fmt: skip
    return folder / "adapter"


@pytest.fixture
def adapter_on_parts(
    tiny_parts: Callable[..., tuple[Path, Path]], shared_conversations: Path, tmp_path: Path
) -> Path:
    from llava_repro.assembling import LlavaParts, assemble
    from llava_repro.results import save_projector

    tower, text = map(str, tiny_parts("clip", "qwen2"))
    made_of = LlavaParts(vision_tower=tower, language_model=text, vision_feature_layer=-1)
    torch.manual_seed(0)
    assembled = assemble(
        made_of, None, device=torch.device("cpu"), dtype=torch.float32,
        language_model_dtype=torch.float32, quantization="none",
    )  # fmt: skip
    save_projector(tmp_path / "stage1" / "projector", assembled.model, {})
    return trained_adapter(
        tmp_path / "run", shared_conversations, "--vision_tower", tower, "--language_model", text,
        "--projector", str(tmp_path / "stage1"), "--vision_feature_layer", "-1",
    )  # fmt: skip


@pytest.mark.slow
def test_an_adapter_brings_its_parts_its_template_and_its_way_with_pictures(
    adapter_on_parts: Path, pictures: list, capsys: pytest.CaptureFixture
) -> None:
    capsys.readouterr()
    loaded = load_llava("nobody/nothing", device="cpu", adapter=str(adapter_on_parts))
    told = capsys.readouterr()
    assert told.out == ""  # a script's answers go there
    assert "which" in told.err
    model, _, _, template = loaded
    assert template is TEMPLATES["mpt"]
    assert model.config.vision_feature_layer == -1
    answerer = LlavaAnswerer(*loaded, SHORT)
    assert answerer.prepare(pictures[0], "model").size == (50, 50)  # padded, as in training
    assert (
        "<|im_end|>"
        not in answerer.answer(
            answerer.encode_images(pictures[:1]), [0], [human_text("what color?", 1)]
        )[0].answer
    )
    other = "chatml_direct"
    named = load_llava(
        "nobody/nothing", device="cpu", adapter=str(adapter_on_parts), template=other
    )
    assert named[3] is TEMPLATES[other]


@pytest.mark.slow
def test_an_adapter_is_refused_when_its_tower_has_changed(adapter_on_parts: Path) -> None:
    file = adapter_on_parts / "manifest.json"
    content = json.loads(file.read_text())
    content["part_fingerprints"]["vision_tower"] = "of another"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="put the tower of that time back"):
        load_llava("nobody/nothing", device="cpu", adapter=str(adapter_on_parts))


@pytest.mark.slow
def test_an_evaluation_records_the_base_that_answers(
    adapter_on_parts: Path, tiny_llava_folder: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """--model need not be there, be the base, or be a whole LLaVA: the adapter names its parts."""
    from llava_repro.evaluate import EvaluateOptions, main
    from shared.loading import fingerprint

    parts = json.loads((adapter_on_parts / "manifest.json").read_text())["parts"]
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": "a.png", "question": "what?", "answer": "red"}))
    whole = str(tiny_llava_folder("clip", "qwen2"))
    for i, model in enumerate(("nobody/nothing", whole, parts["language_model"])):
        asked = {
            "task": "file", "data": str(rows), "adapter": str(adapter_on_parts), "model": model,
            "output_dir": str(tmp_path / f"run{i}"), "device": "cpu", "max_new_tokens": 2,
        }  # fmt: skip
        main(EvaluateOptions(**asked, dry_run=True))
        said = capsys.readouterr().out
        assert f"model:    {parts['vision_tower']} + {parts['language_model']} + " in said
        assert "memory:   about" in said
        main(EvaluateOptions(**asked))
        config = json.loads((tmp_path / f"run{i}" / "config.json").read_text())
        assert config["model"] == parts["language_model"]
        assert config["vision_tower"] == parts["vision_tower"]
        assert config["model_fingerprint"] == fingerprint(Path(parts["language_model"]))
        assert config["asked"]["template"] == "mpt"


@pytest.mark.slow
def test_an_adapter_on_a_whole_llava_changes_its_answers(
    tiny_llava_folder: Callable[..., Path], shared_conversations: Path, tmp_path: Path,
    pictures: list,
) -> None:  # fmt: skip
    folder = tiny_llava_folder("clip", "qwen2")
    adapter = trained_adapter(tmp_path / "run", shared_conversations, "--model", str(folder))
    prompts = [human_text(f"what color is shape {i}?", 1) for i in range(3)]
    said = []
    for model, given in ((str(folder), None), (str(folder), adapter), ("nobody/nothing", adapter)):
        loaded = load_llava(model, device="cpu", adapter=str(given) if given else None,
                            template="mpt")  # fmt: skip
        answerer = LlavaAnswerer(*loaded, SHORT)
        features = answerer.encode_images(pictures, "model" if given else "pad")
        said.append([answer.raw_output for answer in answerer.answer(features, [0, 1, 2], prompts)])
    assert said[0] != said[1] == said[2]


def test_a_published_model_is_padded_though_its_config_is_silent(
    tiny_llava_folder: Callable[..., Path], pictures: list, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """llava-hf's config.json lacks the key that the original's has; of others it is said."""
    tiny = tiny_llava_folder("clip", "llama")
    snapshot = tmp_path / "models--llava-hf--llava-1.5-13b-hf" / "snapshots" / "0"
    for folder in (tmp_path / "llava-hf" / "llava-1.5-7b-hf", snapshot):
        shutil.copytree(tiny, folder)
        answerer = LlavaAnswerer(*load_llava(str(folder), device="cpu"), SHORT)
        assert answerer.prepare(pictures[0], "model").size == (50, 50)
    assert "image_aspect_ratio" not in capsys.readouterr().err
    answerer = LlavaAnswerer(*load_llava(str(tiny), device="cpu"), SHORT)
    assert answerer.prepare(pictures[0], "model").size == pictures[0].size != (50, 50)
    assert "--image_handling pad for LLaVA v1.5" in capsys.readouterr().err


def test_what_is_no_llava_folder_says_what_to_do(
    tiny_llava_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"shared\.download nobody/nothing"):
        load_llava("nobody/nothing")
    folder = tmp_path / "bare"
    shutil.copytree(tiny_llava_folder("clip", "llama"), folder)
    for file in folder.glob("*processor*"):
        file.unlink()
    with pytest.raises(UserError, match=r"convert\.py makes a whole folder"):
        load_llava(str(folder), device="cpu")
    with pytest.raises(UserError, match="--template vicuna: not one of"):
        load_llava(str(folder), device="cpu", template="vicuna")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"no tokenizer in it: .*tokenizer\.json"):
        load_llava(str(folder), device="cpu")


def test_a_published_llava_is_asked_as_it_was_trained(tiny_llava_folder, tmp_path, capsys) -> None:
    """Its own chat template has neither the system text nor an answer's end."""
    folder = tmp_path / "llava-hf" / "llava-1.5-7b-hf"
    shutil.copytree(tiny_llava_folder("clip", "llama"), folder)
    published = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + ' ' }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(published, encoding="utf-8")
    *_, template = load_llava(str(folder), device="cpu")
    assert template.name == "vicuna_v1"
    assert "vicuna_v1" in capsys.readouterr().err
    *_, template = load_llava(str(folder), device="cpu", template="v1_mmtag")
    assert template.name == "v1_mmtag"
    copy = folder.rename(tmp_path / "copy")
    with pytest.raises(UserError, match="--template"):
        load_llava(str(copy), device="cpu")
