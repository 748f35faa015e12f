"""One loaded base and its adapters: each side answers as it does alone, and the base comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwen_clip_llava_lora.contrast import (
    Asked,
    Contrast,
    Decoding,
    Reply,
    Trained,
    chooser,
    load_contrast,
    named_adapters,
    trained_of,
)
from shared.options import UserError, read_json, write_json
from shared.vision_language import load_vision_language
from tests.tiny_models import KINDS, tiny_adapter, tiny_folder

PROMPT = "<image>\nWhat is it?"
SHORT = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Path]]:
    """kind -> base, an adapter of LoRA and projector, one of the projector, one of LoRA alone."""

    @cache
    def write(kind: str = "llava") -> dict[str, Path]:
        root = tmp_path_factory.mktemp(kind)
        base = tiny_folder(kind, root / "model")
        return {
            "base": base,
            "both": tiny_adapter(base, root / "both" / "adapter", seed=1),
            "align": tiny_adapter(base, root / "align" / "adapter", seed=2, lora=False),
            "lora": tiny_adapter(
                base, root / "lora" / "adapter", seed=3, projector=False, rank=2,
                layers="q_proj,down_proj",
            ),
        }  # fmt: skip

    return write


@pytest.fixture(scope="module")
def contrasts(folders: Callable[..., dict[str, Path]]) -> Callable[..., Contrast]:
    @cache
    def load(kind: str = "llava") -> Contrast:
        base, *adapters = folders(kind).values()
        return load_contrast(str(base), [str(a) for a in adapters], device="cpu")

    return load


def final(contrast: Contrast, names: list[str], asked: Asked, decoding: Decoding) -> list[Reply]:
    last = dict(contrast.ask(names, asked, decoding))
    assert all(reply.answer is not None for reply in last.values())
    return [last[number] for number in range(len(names))]


def state_of(contrast: Contrast) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in contrast.model.state_dict().items()}


def logits_of(contrast: Contrast, side: str, image: Any) -> torch.Tensor:
    with contrast.side(side) as asker, torch.no_grad():
        return asker.start(asker.encode_images([image]), [0], [PROMPT]).logits


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_answers_as_a_model_of_its_own(kind, folders, contrasts, pictures):
    """As `load_vision_language` with that adapter, which evaluate.py asks: words, confidence,
    likelihood; the sides in any order, and in all families."""
    asked = Asked(PROMPT, (pictures[0],), "a red circle")
    names = ["base", "both", "align", "lora"]
    found = {}
    for order in (names, ["lora", "base", "both", "align"]):
        for name, reply in zip(order, final(contrasts(kind), order, asked, SHORT), strict=True):
            assert found.setdefault(name, reply.answer) == reply.answer
            alone = load_vision_language(
                str(folders(kind)["base"]), device="cpu", max_new_tokens=6, tags_are_meant=True,
                adapter=None if name == "base" else str(folders(kind)[name]),
            )  # fmt: skip
            features = alone.encode_images([pictures[0]])
            (answer,) = alone.answer(features, [0], [PROMPT])
            assert reply.answer.raw_output == answer.raw_output
            assert reply.answer.finish_reason == answer.finish_reason
            assert reply.answer.confidence == pytest.approx(answer.confidence, rel=1e-4)
            ((score,),) = alone.choice_log_probs(features, [0], [PROMPT], [["a red circle"]])
            assert reply.likelihood.log_prob == pytest.approx(score.log_prob, abs=1e-3)
            assert reply.likelihood.n_tokens == score.n_tokens
        if kind != "llava":
            break
    texts = {name: answer.raw_output for name, answer in found.items()}
    assert len(set(texts.values())) > 1, texts


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl", "minicpmv4_6"])
def test_behind_every_side_the_base_is_back_bit_for_bit(kind, contrasts, folders, pictures):
    """Also as the base that never saw an adapter, and whatever happened in between."""
    contrast = contrasts(kind)
    weights, before = state_of(contrast), logits_of(contrast, "base", pictures[0])
    fresh = load_contrast(str(folders(kind)["base"]), [], device="cpu")
    assert torch.equal(before, logits_of(fresh, "base", pictures[0]))
    for name in ("both", "align", "lora"):
        assert not torch.equal(logits_of(contrast, name, pictures[0]), before)
        assert torch.equal(logits_of(contrast, "base", pictures[0]), before)

        def fail(name: str = name) -> None:
            with contrast.side(name):
                raise ValueError("in between")

        with pytest.raises(ValueError, match="in between"):
            fail()
        assert torch.equal(logits_of(contrast, "base", pictures[0]), before)
    after = contrast.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)


def test_an_adapter_s_projector_is_in_place_while_it_answers(contrasts, folders):
    from safetensors.torch import load_file

    saved = load_file(folders()["align"] / "projector.safetensors")
    contrast = contrasts()
    own = dict(contrast.model.named_parameters())
    assert not any(torch.equal(own[name], tensor) for name, tensor in saved.items())
    with contrast.side("align"):
        assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())
    with contrast.side("lora"):
        assert not any(torch.equal(own[name], tensor) for name, tensor in saved.items())


def test_memory_holds_one_base(folders, monkeypatch):
    """One load; all sides ask the same model; beside the base's weights there are the LoRA
    matrices and one copy of each trained projector and of the base's."""
    import shared.vision_language

    loads = []
    load = shared.vision_language.load_pretrained
    monkeypatch.setattr(
        shared.vision_language, "load_pretrained",
        lambda *given, **named: loads.append(given) or load(*given, **named),
    )  # fmt: skip
    base, *adapters = folders().values()
    contrast = load_contrast(str(base), [str(a) for a in adapters], device="cpu")
    assert len(loads) == 1
    assert len({id(side.asker.family.model) for side in contrast.sides.values()}) == 1
    plain = load_vision_language(str(base), device="cpu").family.model
    matrices = sum(
        t.lora for a in adapters for t in trained_of(a, "llava").values()
    )  # fmt: skip
    numbers = sum(p.numel() for p in contrast.model.parameters())
    assert numbers == sum(p.numel() for p in plain.parameters()) + matrices
    copies = [side.parameters or {} for side in contrast.sides.values()]
    kept = sum(t.numel() for own in (*copies, contrast._of_base) for t in own.values())
    projector = trained_of(folders()["both"], "llava")["projector"].whole
    assert kept == 3 * projector  # of "both", of "align", of the base


def test_the_page_s_samples_are_answered_as_by_evaluate(folders, contrasts, tmp_path):
    from qwen_clip_llava_lora.data_formats import open_data
    from qwen_clip_llava_lora.demo_pages import sample_asked, scores_of
    from qwen_clip_llava_lora.demo_texts import TEXTS
    from qwen_clip_llava_lora.evaluate import main
    from qwen_clip_llava_lora.evaluation_settings import EvaluateOptions
    from shared.answering import read_records

    rows = []
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
        talk = [("human", "<image>\nDescribe it."), ("gpt", f"a {colour} picture")]
        rows.append({"id": f"row{i}", "image": f"{colour}.png",
                     "conversations": [{"from": w, "value": v} for w, v in talk]})  # fmt: skip
    write_json(tmp_path / "rows.json", rows)
    data = open_data(tmp_path / "rows.json")
    for side, adapter in (("base", None), ("both", str(folders()["both"]))):
        main(EvaluateOptions(
            model=str(folders()["base"]), adapter=adapter, data=str(tmp_path / "rows.json"),
            output_dir=str(tmp_path / side), max_new_tokens=6, device="cpu",
        ))  # fmt: skip
        answers, scored = (
            read_records(tmp_path / side / name) for name in ("predictions.jsonl", "scored.jsonl")
        )
        for i in range(3):
            asked, sample = sample_asked(data, TEXTS["en"])(i)
            (reply,) = final(contrasts(), [side], asked, SHORT)
            record, row = answers[f"row{i}"], scored[f"row{i}"]
            assert reply.answer.raw_output == record["raw_output"]
            assert reply.answer.confidence == pytest.approx(record["confidence"], abs=1e-4)
            scores = scores_of(sample, data, reply)
            assert scores["log_likelihood"] == pytest.approx(row["log_likelihood"], abs=1e-3)
            for key in ("exact_match", "token_f1", "reference_tokens"):
                assert scores[key] == row[key]


def test_an_answer_grows_token_by_token_one_side_after_the_other(contrasts, pictures):
    asked = Asked(PROMPT, (pictures[0],))
    said = list(contrasts().ask(["base", "both"], asked, Decoding(max_new_tokens=8)))
    order = [number for number, _ in said]
    assert order == sorted(order)
    for number in (0, 1):
        own = [reply for n, reply in said if n == number]
        assert len(own) == own[-1].answer.n_tokens
        assert all(reply.answer is None for reply in own[:-1])
        assert len({reply.text for reply in own}) > 3
        assert [r.seconds for r in own] == sorted(r.seconds for r in own)


def test_several_pictures_and_none(contrasts, pictures):
    contrast = contrasts()
    one, two, swapped = (
        final(contrast, ["both"], Asked("What is it?", tuple(given)), SHORT)[0].answer.raw_output
        for given in (pictures[:1], pictures[:2], pictures[1::-1])
    )
    assert len({one, two, swapped}) == 3
    assert final(contrast, ["both"], Asked("What is it?"), SHORT)[0].answer.n_tokens > 0
    tags = Asked("First <image> then <image>: what?", tuple(pictures[:2]))
    assert final(contrast, ["both"], tags, SHORT)[0].answer.raw_output
    with pytest.raises(UserError, match="1 <image> for 2 picture"):
        final(contrast, ["both"], Asked(PROMPT, tuple(pictures[:2])), SHORT)


# Visitors


def test_a_visitor_who_leaves_or_stops_leaves_the_base_behind(contrasts, pictures):
    contrast, asked = contrasts(), Asked(PROMPT, (pictures[0],), "a red circle")
    before = logits_of(contrast, "base", pictures[0])
    leaving = contrast.ask(["both", "align"], asked, Decoding(max_new_tokens=200))
    next(leaving)
    leaving.close()
    (reply,) = final(contrast, ["base"], asked, SHORT)  # waits for the lock, which comes free
    assert reply.answer.n_tokens > 0
    stop = threading.Event()
    last = {}
    for number, reply in contrast.ask(["both", "base"], asked, Decoding(200), stop.is_set):
        last[number] = reply
        stop.set()
    assert [last[i].stopped for i in (0, 1)] == [True, True]
    assert last[0].answer.n_tokens < 200
    assert last[1].answer.n_tokens == 1
    assert last[0].likelihood is None
    with contrast.lock:
        assert torch.equal(logits_of(contrast, "base", pictures[0]), before)


def test_two_visitors_at_once_get_their_own_answers(contrasts, pictures):
    contrast, asked = contrasts(), Asked(PROMPT, (pictures[1],))
    alone = {name: final(contrast, [name], asked, SHORT)[0].answer for name in contrast.sides}
    found: dict[str, Any] = {}

    def visit(name: str) -> None:
        found[name] = final(contrast, [name, "base"], asked, SHORT)

    visits = [threading.Thread(target=visit, args=(name,)) for name in contrast.sides]
    for thread in visits:
        thread.start()
    for thread in visits:
        thread.join()
    assert {name: own[0].answer for name, own in found.items()} == alone
    assert all(own[1].answer == alone["base"] for own in found.values())


def test_an_error_reaches_the_asker_and_the_next_is_answered(contrasts, pictures):
    contrast = contrasts()
    for asked, cause in (
        (Asked("x" * 600, (pictures[0],)), "the model has room for"),
        (Asked("half \ud83d", (pictures[0],)), "half a character"),
    ):
        with pytest.raises(UserError, match=cause):
            final(contrast, ["both"], asked, SHORT)
    (reply,) = final(contrast, ["both"], Asked(PROMPT, (pictures[0],), "  "), SHORT)
    assert "is empty" in reply.no_likelihood


# Sampling


def test_sampling_follows_the_seed_and_its_limits(contrasts, pictures):
    contrast, asked = contrasts(), Asked(PROMPT, (pictures[0],))

    def said(**settings: Any) -> str:
        decoding = Decoding(max_new_tokens=12, **settings)
        return final(contrast, ["base"], asked, decoding)[0].answer.raw_output

    greedy = said()
    assert said(seed=7) == greedy
    assert said(temperature=3, top_p=1e-6) == greedy
    assert said(temperature=1e-3) == greedy
    hot = [said(temperature=3, seed=seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_the_penalty_is_of_the_words_of_the_answer():
    choose = chooser(Decoding(repetition_penalty=1.5), torch.device("cpu"))
    scores = torch.tensor([[0.0, 2.0, 1.5, -1.0]])
    assert choose([], scores) == 1
    assert choose([1], scores) == 2  # 2.0 / 1.5 is below 1.5
    assert choose([1, 2], scores) == 1
    negative = torch.tensor([[-3.0, -1.0, -1.2]])
    assert choose([1], negative) == 2  # -1.0 * 1.5


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0: at least 1"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_mean_nothing_are_told(values, cause):
    with pytest.raises(UserError, match=cause):
        Decoding(**values)


# Folders


def test_pixel_bounds_and_squares_are_each_side_s_own(tmp_path, pictures):
    base = tiny_folder("qwen2_vl", tmp_path / "model")
    small = tiny_adapter(base, tmp_path / "small" / "adapter", max_pixels=56 * 56)
    contrast = load_contrast(str(base), [str(small)], device="cpu")
    image = Image.new("RGB", (112, 112))
    counts = [
        len(contrast.sides[name].asker.encode_images([image])[0].vectors)
        for name in ("base", "small")
    ]
    assert counts == [16, 4]
    base = tiny_folder("llava", tmp_path / "llava")
    padded = tiny_adapter(base, tmp_path / "pad" / "adapter", image_aspect_ratio="pad")
    contrast = load_contrast(str(base), [str(padded)], device="cpu")
    assert [side.asker.family.trained_on for side in contrast.sides.values()] == [None, "pad"]


def test_a_quantised_base_comes_back_too(folders, pictures):
    pytest.importorskip("bitsandbytes")
    base, both = str(folders()["base"]), str(folders()["both"])
    contrast = load_contrast(base, [both], device="cpu", quantization="nf4")
    before, tuned = (logits_of(contrast, side, pictures[0]) for side in ("base", "both"))
    assert torch.equal(logits_of(contrast, "base", pictures[0]), before)
    assert not torch.equal(tuned, before)
    assert contrast.counts == load_contrast(base, [], device="cpu").counts  # 4 bits count as one
    alone = load_vision_language(
        base, adapter=both, device="cpu", quantization="nf4", tags_are_meant=True
    )
    assert torch.equal(alone.start(alone.encode_images(pictures[:1]), [0], [PROMPT]).logits, tuned)


def test_adapters_that_do_not_belong_are_refused(folders, tmp_path):
    base, both = folders()["base"], folders()["both"]
    other = tiny_folder("llava", tmp_path / "other", seed=5)
    for name in ("both", "align", "lora"):
        with pytest.raises(UserError, match="was trained on"):
            load_contrast(str(other), [str(folders()[name])], device="cpu")
    with pytest.raises(UserError, match="given twice"):
        load_contrast(str(base), [str(both), str(both)], device="cpu")
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_contrast(str(base), [str(tmp_path)], device="cpu")


def test_other_families_are_refused(tiny_blip2_opt):
    with pytest.raises(UserError, match="not a family that is trained here"):
        load_contrast(str(tiny_blip2_opt), [], device="cpu")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/a/run1/adapter", "/a/run2/adapter"], ["run1", "run2"]),
        (["/a/run/adapter", "/b/run/adapter"], ["a/run", "b/run"]),
        (["/a/run/adapter", "/a/run/adapter_last"], ["run", "adapter_last"]),
        (["/a/base/adapter"], ["a/base"]),
    ],
)
def test_adapters_are_called_by_what_tells_them_apart(folders, names):
    assert named_adapters(folders) == dict(zip(names, folders, strict=True))


def test_what_an_adapter_trained_is_read_from_its_files(folders):
    """Tiny Qwen2: two layers of width 64, q_proj 64 x 64, v_proj 64 x 32, down_proj 128 x 64."""
    both, lora = (trained_of(folders()[name], "llava") for name in ("both", "lora"))
    assert both["language model"] == Trained(2 * 4 * ((64 + 64) + (64 + 32)), 4, 0)
    assert both["projector"] == Trained(0, None, 32 * 64 + 64 * 64)
    assert lora == {"language model": Trained(2 * 2 * ((64 + 64) + (128 + 64)), 2, 0)}
    manifest = read_json(folders()["align"] / "manifest.json")
    assert trained_of(folders()["align"], manifest["family"]).keys() == {"projector"}
