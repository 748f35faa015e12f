"""Answering with a fake model: counts of the dear steps, order, and what a stopped run leaves."""

from __future__ import annotations

import errno
import gc
import json
import os
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shared.answering import (
    Answer,
    ChoiceScore,
    Job,
    RecordWriter,
    answer_batch,
    answer_questions,
    batches_by_picture,
    read_records,
    score_batch,
    score_choices,
    shuffle_pictures,
)
from shared.images import ImageError
from shared.options import UserError
from shared.vqav2 import Question


class Features(list):
    """A list that can be watched: what a model keeps on the GPU for a batch."""


class FakeModel:
    """Answers "<picture> <prompt>"; a picture is the string that `open_picture` returned."""

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.batches: list[list[str]] = []

    def encode_images(self, images: Sequence[str]) -> Features:
        self.encoded += images
        return Features(images)

    def answer(self, features: Features, picture_index, prompts) -> list[Answer]:
        self.batches.append(list(prompts))
        return [
            Answer(
                raw_output=f"{features[i]} {prompt}</s>",
                answer=f"{features[i]} {prompt}",
                confidence=0.5,
                first_token_confidence=0.25,
                finish_reason="stop",
                n_tokens=3,
            )
            for i, prompt in zip(picture_index, prompts, strict=True)
        ]

    def prompt_problem(self, prompt: str) -> str | None:
        return "the prompt is too long" if len(prompt) > 50 else None


class Opener:
    """Stands in for `open_image`; counts, and refuses the pictures named broken."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.opened: list[str] = []
        self.broken = set(broken)

    def __call__(self, question: Question) -> str:
        self.opened.append(question.image_name)
        if question.image_name in self.broken:
            raise ImageError(f"{question.image_name}: broken picture (cut)")
        return f"seen:{question.image.name}"


def jobs(n_pictures: int = 4, per_picture: int = 3) -> list[Job]:
    """Questions q0, q1, ... with their pictures interleaved: a.jpg, b.jpg, ..., a.jpg, ..."""
    names = [f"{chr(97 + i)}.jpg" for i in range(n_pictures)] * per_picture
    return [
        Job(
            Question(
                sample_id=f"q{i}",
                image=Path("/pictures") / name,
                image_name=name,
                image_id=name,
                question=f"what {i}?",
                references=("red",) * 10,
                question_type="what",
                answer_type="other",
            ),
            f"Q: what {i}?",
        )
        for i, name in enumerate(names)
    ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(path: Path, model=None, opener=None, *, asked=None, batch_size: int = 6):
    return answer_questions(
        model or FakeModel(),
        jobs() if asked is None else asked,
        path,
        batch_size=batch_size,
        open_picture=opener or Opener(),
        progress=False,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "predictions.jsonl"


# What is done how often


def test_each_picture_is_opened_and_encoded_once(path):
    """Twelve questions about four pictures: four decodes and four passes of the vision tower."""
    model, opener = FakeModel(), Opener()
    run(path, model, opener)
    assert Counter(opener.opened) == dict.fromkeys(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], 1)
    assert Counter(model.encoded) == dict.fromkeys(
        ["seen:a.jpg", "seen:b.jpg", "seen:c.jpg", "seen:d.jpg"], 1
    )
    assert [len(batch) for batch in model.batches] == [6, 6]


def test_a_picture_with_more_questions_than_a_batch_is_opened_once_a_batch(path):
    model, opener = FakeModel(), Opener()
    run(path, model, opener, asked=jobs(1, 10), batch_size=4)
    assert [len(batch) for batch in model.batches] == [4, 4, 2]
    assert opener.opened == ["a.jpg"] * 3


def test_a_broken_picture_is_tried_once_a_batch():
    """It used to be opened again for each of its questions."""
    opener = Opener(broken=["a.jpg"])
    records = answer_batch(FakeModel(), jobs(2, 3), opener)
    assert Counter(opener.opened) == {"a.jpg": 1, "b.jpg": 1}
    assert [record["status"] for record in records] == ["error", "ok"] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6, 7, 100])
def test_batches_hold_every_question_once_and_no_more_than_asked(batch_size):
    asked = jobs(5, 3)
    batches = list(batches_by_picture(asked, batch_size))
    assert sorted(job.question.sample_id for batch in batches for job in batch) == sorted(
        job.question.sample_id for job in asked
    )
    assert max(map(len, batches)) <= batch_size
    if batch_size >= 3:  # a picture's three questions fit: they are never torn apart
        for batch in batches:
            counts = Counter(job.question.image_name for job in batch)
            assert set(counts.values()) == {3}


# Order


def test_n_in_n_out_each_with_its_own_answer(path):
    records = run(path)
    assert len(records) == 12
    for job in jobs():
        record = records[job.question.sample_id]
        assert record["answer"] == f"seen:{job.question.image_name} {job.prompt}"
        assert record["question"] == job.question.question
        assert record["references"] == ["red"] * 10


def without_picture(job: Job) -> Job:
    return replace(job, question=replace(job.question, image=None, image_name=""))


def test_questions_without_a_picture_are_asked_without_one(path):
    """ScienceQA has them: nothing is opened or encoded, and no neighbour's picture is shown."""

    class Knowing(FakeModel):
        def answer(self, features, picture_index, prompts) -> list[Answer]:
            shown = [None if i is None else features[i] for i in picture_index]
            return super().answer([*features, *shown], range(len(features), 99)[: len(shown)],
                                  prompts)  # fmt: skip

    asked = [without_picture(job) if i % 3 == 0 else job for i, job in enumerate(jobs())]
    model, opener = Knowing(), Opener()
    records = run(path, model, opener, asked=asked)
    for job in asked:
        name = job.question.image_name
        seen = f"seen:{name}" if name else None
        assert records[job.question.sample_id]["answer"] == f"{seen} {job.prompt}"
    assert Counter(opener.opened) == {"a.jpg": 1, "b.jpg": 1, "c.jpg": 1, "d.jpg": 1}
    assert sorted(set(model.encoded)) == sorted(model.encoded)
    only = [without_picture(job) for job in jobs(1, 2)]
    assert [r["answer"] for r in answer_batch(Knowing(), only, opener)] == [
        f"None {job.prompt}" for job in only
    ]


def test_records_of_a_batch_are_in_the_order_of_its_jobs():
    """An error in the middle must not give the answers behind it to their neighbours."""
    asked = jobs(3, 2)
    records = answer_batch(FakeModel(), asked, Opener(broken=["b.jpg"]))
    assert [r["sample_id"] for r in records] == [j.question.sample_id for j in asked]
    for job, record in zip(asked, records, strict=True):
        if record["status"] == "ok":
            assert record["answer"] == f"seen:{job.question.image_name} {job.prompt}"


def test_a_record_has_the_fields_of_all_experiments(path):
    record = run(path)["q0"]
    assert set(record) == {
        "sample_id", "image", "image_id", "question", "question_type", "answer_type", "prompt",
        "raw_output", "answer", "references", "confidence", "first_token_confidence",
        "finish_reason", "n_tokens", "seconds", "status", "error",
    }  # fmt: skip
    assert (record["status"], record["error"], record["finish_reason"]) == ("ok", None, "stop")
    assert (record["confidence"], record["first_token_confidence"]) == (0.5, 0.25)
    assert record["seconds"] >= 0


# Stopping and going on


class Killed(FakeModel):
    """Dies in the given batch, as a process would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def answer(self, features, picture_index, prompts):
        if len(self.batches) + 1 == self.at:
            raise KeyboardInterrupt
        return super().answer(features, picture_index, prompts)


def test_a_killed_run_goes_on_and_answers_each_question_once(path, tmp_path):
    whole = run(tmp_path / "whole.jsonl", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run(path, Killed(at=3), batch_size=3)
    assert len(lines(path)) == 6  # two batches were on the disk
    model = FakeModel()
    records = run(path, model, batch_size=3)
    assert sum(map(len, model.batches)) == 6
    assert Counter(record["sample_id"] for record in lines(path)) == dict.fromkeys(whole, 1)
    timeless = [{k: v for k, v in r.items() if k != "seconds"} for r in records.values()]
    assert timeless == [{k: v for k, v in whole[r["sample_id"]].items() if k != "seconds"}
                        for r in records.values()]  # fmt: skip


def test_a_finished_run_asks_nothing(path):
    run(path)
    before = path.read_bytes()
    model, opener = FakeModel(), Opener()
    run(path, model, opener)
    assert (model.batches, opener.opened) == ([], [])
    assert path.read_bytes() == before


def test_errors_are_tried_again_and_the_last_record_counts(path):
    """The picture was on a drive that is mounted again now."""
    first = run(path, opener=Opener(broken=["b.jpg"]))
    assert {k for k, r in first.items() if r["status"] == "error"} == {"q1", "q5", "q9"}
    assert "b.jpg: broken picture" in first["q1"]["error"]
    assert first["q1"]["answer"] is None
    opener = Opener()
    second = run(path, opener=opener)
    assert opener.opened == ["b.jpg"]
    assert {r["status"] for r in second.values()} == {"ok"}
    assert len(lines(path)) == 15  # twelve, and the three that were tried again


def test_a_half_written_last_line_is_repaired(path):
    """The process died while it wrote; the next record used to be glued to the half line."""
    run(path, batch_size=3)
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert len(read_records(path)) == 11
    model = FakeModel()
    assert len(run(path, model)) == 12
    assert sum(map(len, model.batches)) == 1
    assert len(lines(path)) == 12


def test_a_last_line_that_lacks_only_its_end_is_answered_again(path):
    """It used to count as done, then be cut away: a KeyError at scoring, after the whole run."""
    run(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert len(run(path)) == 12
    assert len(lines(path)) == 12


@pytest.mark.parametrize("broken", ["{half", '["a list"]', '{"answer": "without an id"}'])
def test_a_broken_line_in_the_middle_is_an_error(path, broken):
    """No crash writes there: somebody edited the file, and guessing would lose answers."""
    run(path)
    text = path.read_text(encoding="utf-8").splitlines()
    text[4] = broken
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"predictions.jsonl line 5: not a prediction record"):
        run(path)
    assert path.read_bytes() == before


# Bad input: an error record, the rest goes on


def test_an_unreadable_picture_is_a_record_and_the_rest_goes_on(path):
    records = run(path, opener=Opener(broken=["c.jpg"]))
    bad = {k: r for k, r in records.items() if r["status"] == "error"}
    assert set(bad) == {"q2", "q6", "q10"}
    assert all("c.jpg: broken picture (cut)" in r["error"] for r in bad.values())
    assert all(r["answer"] is None and r["confidence"] is None for r in bad.values())
    assert sum(r["status"] == "ok" for r in records.values()) == 9


def test_a_batch_of_broken_pictures_alone_does_not_reach_the_model(path):
    model = FakeModel()
    records = run(path, model, Opener(broken=["a.jpg", "b.jpg", "c.jpg", "d.jpg"]))
    assert {r["status"] for r in records.values()} == {"error"}
    assert model.encoded == []


def test_a_question_of_5000_characters_is_a_record_and_its_picture_is_not_opened(path):
    """Used to end the run with an index error in the position embeddings."""
    asked = jobs(2, 1)
    asked[0] = Job(asked[0].question, "why " * 1250)
    opener = Opener()
    records = run(path, opener=opener, asked=asked)
    assert records["q0"]["error"] == "the prompt is too long"
    assert records["q1"]["status"] == "ok"
    assert opener.opened == ["b.jpg"]


def test_half_a_character_is_a_record_and_the_rest_goes_on(path):
    """A lone surrogate is valid JSON; tokenizers end on it with a TypeError at every start."""
    half = json.loads('"What \\ud83d?"')
    asked = jobs(2, 1)
    question = replace(asked[0].question, question=half, references=(half,))
    asked[0] = Job(question, f"Question: {half}")
    records = run(path, asked=asked)
    assert "half a character (\\ud83d)" in records["q0"]["error"]
    assert records["q0"]["question"] == "What \ufffd?"
    assert records["q0"]["references"] == ["What \ufffd?"]
    assert records["q1"]["status"] == "ok"
    whole = [Job(replace(asked[1].question, sample_id="emoji"), "Question: 😀?")]
    assert run(path, asked=whole)["emoji"]["status"] == "ok"


def test_an_error_that_is_no_picture_s_stops_the_run(path):
    """A bug must not be turned into a file full of error records."""

    def buggy(question: Question) -> str:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run(path, opener=buggy)


# Memory and disk


class SmallGpu(FakeModel):
    """Has room for `most` questions at once; remembers what was alive when it was asked again."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.refused: list[int] = []
        self.kept: list[weakref.ref] = []
        self.alive: list[int] = []

    def encode_images(self, images):
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.kept))
        features = super().encode_images(images)
        self.kept.append(weakref.ref(features))
        return features

    def answer(self, features, picture_index, prompts):
        import torch

        if len(prompts) > self.most:
            self.refused.append(len(prompts))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return super().answer(features, picture_index, prompts)


def test_out_of_memory_halves_the_batch(path):
    model = SmallGpu(most=3)
    records = run(path, model, batch_size=12)
    assert len(records) == 12
    assert model.refused == [12, 6, 6]
    assert [len(batch) for batch in model.batches] == [3, 3, 3, 3]
    for job in jobs():
        answer = records[job.question.sample_id]["answer"]
        assert answer == f"seen:{job.question.image_name} {job.prompt}"


def test_a_batch_that_did_not_fit_is_let_go_before_its_half_is_tried(path):
    """The half used to run inside the except clause, whose traceback held the first features."""
    model = SmallGpu(most=3)
    run(path, model, batch_size=12)
    assert model.alive == [0] * len(model.alive)


def test_out_of_memory_with_one_question_says_what_needs_less(path):
    told = r"--quantization nf4 needs less, .* \(CUDA out of memory"
    with pytest.raises(UserError, match=told) as e:
        run(path, SmallGpu(most=0))
    assert "more" not in str(e.value)


def test_a_full_disk_is_one_message_and_loses_nothing_finished(path, monkeypatch):
    """The third batch meets a full disk; made free, the same command answers what is left."""
    flushes = []
    fsync = os.fsync

    def full(descriptor: int) -> None:
        flushes.append(descriptor)
        if len(flushes) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left.*same command again"):
        run(path, batch_size=3)
    assert len(read_records(path)) >= 6
    monkeypatch.undo()
    model = FakeModel()
    assert len(run(path, model, batch_size=3)) == 12
    assert sum(map(len, model.batches)) <= 6
    assert {record["status"] for record in lines(path)} == {"ok"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_stays_full_is_one_message(tmp_path):
    """Closing the file flushes once more, and that OSError used to hide the message."""
    (tmp_path / "predictions.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        run(tmp_path / "predictions.jsonl")


def test_an_unwritable_folder_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"predictions.jsonl: cannot be written"):
        run(tmp_path / "file" / "predictions.jsonl")


def test_each_batch_is_on_the_disk_when_it_is_done(path, monkeypatch):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(len(lines(path))), fsync(fd)))
    run(path, batch_size=3)
    assert flushed == [3, 6, 9, 12]


def test_records_keep_every_script(tmp_path):
    with RecordWriter(tmp_path / "a.jsonl") as writer:
        writer.write([{"sample_id": "1", "answer": "什么 ü \u2028 end"}])
    assert "什么" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert read_records(tmp_path / "a.jsonl")["1"]["answer"] == "什么 ü \u2028 end"


# Shuffled pictures


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_pictures", [2, 3, 10])
def test_no_question_keeps_its_own_picture(seed, n_pictures):
    questions = [job.question for job in jobs(n_pictures, 3)]
    shown = shuffle_pictures(questions, seed)
    assert set(shown) == {q.sample_id for q in questions}
    assert all(shown[q.sample_id].image != q.image for q in questions)
    # each picture is shown as often as before: only who sees it has changed
    assert Counter(q.image for q in shown.values()) == Counter(q.image for q in questions)
    # and the questions of one picture still share one, so that it is encoded once
    assert len({(q.image_name, shown[q.sample_id].image) for q in questions}) == n_pictures


def test_shuffling_is_seeded_and_does_not_depend_on_the_order_of_questions():
    """A run that was stopped goes on with the same pictures."""
    questions = [job.question for job in jobs(10, 2)]
    assert shuffle_pictures(questions, 1) == shuffle_pictures(questions[::-1], 1)
    assert shuffle_pictures(questions, 1) != shuffle_pictures(questions, 2)


def test_a_question_without_a_picture_is_shown_none_and_gives_none_when_shuffled():
    asked = [without_picture(job) if i < 2 else job for i, job in enumerate(jobs(4, 2))]
    shown = shuffle_pictures([job.question for job in asked], 0)
    assert set(shown) == {job.question.sample_id for job in asked[2:]}
    assert all(question.image is not None for question in shown.values())


def test_one_picture_cannot_be_shuffled():
    with pytest.raises(UserError, match="at least two different pictures"):
        shuffle_pictures([job.question for job in jobs(1, 3)], 0)


# Likelihood of given answers

NAMES = ["dog", "hot dog", "a very long name", "cat"]


class FakeScorer(FakeModel):
    """log P = -1 a word, but the picture's own first letter makes its word likely; notes batches.

    With `most`, (jobs, choices) above it are too much for the GPU.
    """

    def __init__(self, most: tuple[int, int] = (99, 99), value: float | None = None) -> None:
        super().__init__()
        self.most, self.value = most, value
        self.refused: list[tuple[int, int]] = []
        self.scored: list[list[str]] = []

    def choices_problem(self, prompt: str, choices: Sequence[str]) -> str | None:
        return None if choices else "no choice is given"

    def choice_log_probs(self, features, picture_index, prompts, choices, batch_size):
        import torch

        if len(prompts) > self.most[0] or batch_size > self.most[1]:
            self.refused.append((len(prompts), batch_size))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        self.scored.append(list(prompts))
        return [
            [ChoiceScore(self.log_prob(features[i], choice), len(choice.split())) for choice in own]
            for i, own in zip(picture_index, choices, strict=True)
        ]

    def log_prob(self, picture: str, choice: str) -> float:
        if self.value is not None:
            return self.value
        return -0.25 if choice[0] == picture[len("seen:")] else -1.0 * len(choice.split())


def score(path: Path, model=None, opener=None, *, asked=None, batch_size=6, names=NAMES, **more):
    return score_choices(
        model or FakeScorer(),
        jobs() if asked is None else asked,
        path,
        choices=names if callable(names) else lambda job: names,
        batch_size=batch_size,
        open_picture=opener or Opener(),
        progress=False,
        **more,
    )


def test_a_scored_job_is_a_record_with_every_choice(path):
    """Picture c.jpg: its cat at -0.25, everything else at -1 a word."""
    opener, model = Opener(), FakeScorer()
    records = score(path, model, opener)
    assert Counter(opener.opened) == dict.fromkeys(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], 1)
    assert len(model.encoded) == 4
    assert [len(batch) for batch in model.scored] == [6, 6]
    record = records["q2"]
    assert record["image"] == "c.jpg"
    assert (record["answer"], record["raw_output"]) == ("cat", "cat")
    assert record["choices"] == NAMES
    assert record["choice_log_probs"] == [-1.0, -2.0, -4.0, -0.25]
    assert record["choice_n_tokens"] == [1, 2, 4, 1]
    assert record["length_normalisation"] == "mean"
    assert record["confidence"] == pytest.approx(0.778801, abs=1e-6)  # exp(-0.25)
    assert (record["finish_reason"], record["n_tokens"], record["status"]) == ("choice", 1, "ok")
    assert record["first_token_confidence"] is None
    plain = run(path.with_name("answers.jsonl"), FakeModel())["q2"]
    assert set(record) - set(plain) == {
        "choices", "choice_log_probs", "choice_n_tokens", "length_normalisation"
    }  # fmt: skip
    assert not set(plain) - set(record)


def test_the_rule_of_length_decides_and_is_recorded(path):
    """-3 over four words is likelier a word than -1 over one, and less likely as a whole."""
    model = FakeScorer()
    model.log_prob = lambda picture, choice: -3.0 if "long" in choice else -1.0
    (job,) = jobs(1, 1)
    for rule, answer, confidence in (
        ("mean", "hot dog", 0.606531),  # -0.5 a word, the long name -0.75
        ("sum", "dog", 0.367879),  # the first of three at -1
    ):
        record = score(path, model, asked=[job], length_normalisation=rule)["q0"]
        assert (record["answer"], record["length_normalisation"]) == (answer, rule)
        assert record["confidence"] == pytest.approx(confidence, abs=1e-6)
        assert record["choice_log_probs"] == [-1.0, -1.0, -3.0, -1.0]
    assert len(lines(path)) == 2  # another rule is another question


def test_each_job_may_have_choices_of_its_own(path):
    names = {"q0": ["red", "blue"], "q1": ["yes"]}
    records = score(path, asked=jobs(2, 1), names=lambda job: names[job.question.sample_id])
    assert {key: record["choices"] for key, record in records.items()} == names


def test_a_killed_scoring_goes_on_and_other_choices_are_scored_anew(path):
    score(path)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b'"q5"') + 2])  # cut inside a record
    kept = len(lines_that_are_whole(path))
    model = FakeScorer()
    assert len(score(path, model)) == 12
    assert sum(map(len, model.scored)) == 12 - kept > 0
    again = FakeScorer()
    score(path, again)
    assert again.scored == []
    other = score(path, again, names=["dog", "cat"])
    assert sum(map(len, again.scored)) == 12
    assert all(record["choices"] == ["dog", "cat"] for record in other.values())


def lines_that_are_whole(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def test_what_cannot_be_scored_is_a_record_and_the_rest_goes_on(path):
    asked = jobs(3, 1)
    asked[1] = replace(asked[1], prompt="x" * 60)
    records = score(
        path, asked=asked, opener=Opener(broken=["a.jpg"]),
        names=lambda job: [] if job.question.sample_id == "q2" else NAMES,
    )  # fmt: skip
    assert {key: record["error"] for key, record in records.items()} == {
        "q0": "a.jpg: broken picture (cut)", "q1": "the prompt is too long",
        "q2": "no choice is given",
    }  # fmt: skip
    records = score(path, asked=jobs(3, 1))  # mended: errors are tried again
    assert {record["status"] for record in records.values()} == {"ok"}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_log_probability_that_is_no_number_is_an_error(path, value):
    (record,) = score(path, FakeScorer(value=value), asked=jobs(1, 1)).values()
    assert record["status"] == "error"
    assert "not finite" in record["error"]
    assert "NaN" not in path.read_text()


def test_out_of_memory_halves_the_jobs_and_then_the_choices(path):
    model = FakeScorer(most=(1, 4))
    records = score(path, model, asked=jobs(2, 1), choice_batch_size=16)
    assert {record["status"] for record in records.values()} == {"ok"}
    assert model.refused == [(2, 16), (1, 16), (1, 8), (1, 16), (1, 8)]
    with pytest.raises(UserError, match=r"one choice at a time.*\(CUDA out of memory"):
        score(path.with_name("none.jsonl"), FakeScorer(most=(0, 0)))


def test_scored_records_are_in_the_order_of_their_jobs():
    asked = jobs(2, 3)
    records = score_batch(FakeScorer(), asked, lambda job: NAMES, Opener(["a.jpg"]), "mean", 4)
    assert [record["sample_id"] for record in records] == [f"q{i}" for i in range(6)]
    assert [record["status"] for record in records] == ["error", "ok"] * 3
