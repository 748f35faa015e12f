"""Rows and their order: which train, which are held out, which are left out and said."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from shared.conversation_data import (
    PICTURE_WORDS,
    ConversationSampler,
    check_samples,
    choose_rows,
    even_chunks,
    grouped_by_modality,
    modality_length,
    pictures_of,
    refuse_bad_samples,
)
from shared.conversations import open_conversations
from shared.options import UserError


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """chat.jsonl of 40 rows with their pictures beside it in images/: one picture, two, none."""
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for i in range(40):
        names = [[f"{i}_0.png"], [], [f"{i}_0.png", f"{i}_1.png"]][i % 3]
        for name in names:
            Image.new("RGB", (32, 24), (6 * i, 0, 0)).save(images / name)
        tags = "<image>\n" * len(names)
        turns = [
            {"from": "human", "value": f"{tags}what color is the shape ?"},
            {"from": "gpt", "value": "green"},
        ]
        image = {"image": names[0] if len(names) == 1 else names} if names else {}
        lines.append(json.dumps({"id": f"sample {i}", "conversations": turns, **image}))
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


# Order


def row(n_words: int, image: str | None = None, **more) -> dict:
    words = ["w"] * (n_words - 1)
    if image:
        words[0] = "<image>"
    turns = [{"from": "human", "value": " ".join(words)}, {"from": "gpt", "value": "yes"}]
    return {"id": "r", "conversations": turns, **({"image": image} if image else {}), **more}


def test_modality_length_counts_words_and_is_negative_for_text_alone():
    assert modality_length(row(5, "a.png")) == 5
    assert modality_length(row(5)) == -5
    assert modality_length({"conversations": [{"from": "gpt", "value": None}]}) == -1


def test_further_pictures_count_as_words():
    two = {"image": ["a.png", "b.png"], "conversations": row(5)["conversations"]}
    assert modality_length(two) == 5 + PICTURE_WORDS


def test_chinese_has_no_spaces_so_each_character_counts():
    turns = [{"from": "human", "value": "图里有几个 red 圆?"}, {"from": "gpt", "value": "两个"}]
    assert modality_length({"conversations": turns}) == -(5 + 1 + 1 + 1 + 2)


def test_even_chunks_by_hand():
    """Longest first to the lightest device that has room: 9 | 8, then 7 to 8's, 1 to 9's."""
    lengths = {0: 9, 1: 8, 2: 7, 3: 1}
    assert even_chunks([0, 1, 2, 3], lengths, 2) == [[0, 3], [1, 2]]
    # three samples on two devices cannot be dealt evenly: every second one
    assert even_chunks([0, 1, 2], lengths, 2) == [[0, 2], [1]]


def test_grouping_by_hand():
    """Two devices, one sample each: pictures 0, 2, 4 (lengths 3, 9, 5), texts 1, 3 (4, 6)."""
    lengths = {0: 3, 1: -4, 2: 9, 3: -6, 4: 5}
    steps, pictures, texts = grouped_by_modality([0, 1, 2, 3, 4], lengths, 1, 2)
    assert steps == [[2, 0], [3, 1]]
    assert (pictures, texts) == ([4], [])


def test_like_lengths_sort_the_window_before_it_is_cut_into_steps():
    lengths = {0: 3, 1: 9, 2: 4, 3: 8, 4: 100}
    steps, rest, _ = grouped_by_modality([0, 1, 2, 3, 4], lengths, 2, 1, like_lengths=True)
    assert steps == [[1, 3], [2, 0]]
    assert rest == [4]  # the last in the window's random order, not the longest or shortest


def mixed_lengths(n: int, share_of_text: float = 0.3) -> list[int]:
    generator = random.Random(3)
    return [
        generator.randint(1, 200) * (-1 if generator.random() < share_of_text else 1)
        for _ in range(n)
    ]


@pytest.mark.parametrize("look_ahead", [64, 2])
@pytest.mark.parametrize("n_batches", [1, 4])
def test_every_step_has_one_modality_but_the_last(look_ahead, n_batches):
    """The leftover of both modalities, less than a step of each, is one mixed rest at the end."""
    lengths = mixed_lengths(1002)
    sampler = ConversationSampler(
        len(lengths), batch_size=4, n_batches=n_batches, seed=0,
        length_of=lengths.__getitem__, look_ahead=look_ahead,
    )  # fmt: skip
    order = list(sampler)
    assert sorted(order) == list(range(1002))
    size = 4 * n_batches
    n_pictures = sum(length > 0 for length in lengths)
    whole = n_pictures // size + (1002 - n_pictures) // size
    for step in range(whole):
        members = order[step * size : (step + 1) * size]
        assert len({lengths[i] > 0 for i in members}) == 1, step
    rest = order[whole * size :]
    assert len(rest) == n_pictures % size + (1002 - n_pictures) % size
    assert {lengths[i] > 0 for i in rest} == {True, False}


def test_in_one_window_a_step_holds_like_lengths_as_in_llava():
    """Mega-batches of one modality, sorted longest first when there is one device: padding shrinks
    to a fraction of what a random order wastes."""
    lengths = mixed_lengths(2000)
    grouped = list(
        ConversationSampler(2000, batch_size=8, n_batches=4, seed=0, length_of=lengths.__getitem__)
    )
    shuffled = list(ConversationSampler(2000, batch_size=8, n_batches=4, seed=0))

    def spread(order: list[int]) -> float:
        batches = [order[i : i + 8] for i in range(0, 1900, 8)]
        return sum(
            max(abs(lengths[i]) for i in b) - sum(abs(lengths[i]) for i in b) / 8 for b in batches
        )

    assert spread(shuffled) > 0
    # each step's 32 samples are dealt to four devices evenly, so lengths within a batch still vary
    sums = [
        [sum(abs(lengths[i]) for i in grouped[s + d * 8 : s + d * 8 + 8]) for d in range(4)]
        for s in range(0, 1600, 32)
    ]
    even = sum(max(s) - min(s) for s in sums) / len(sums)
    random_sums = [
        [sum(abs(lengths[i]) for i in shuffled[s + d * 8 : s + d * 8 + 8]) for d in range(4)]
        for s in range(0, 1600, 32)
    ]
    uneven = sum(max(s) - min(s) for s in random_sums) / len(random_sums)
    assert even < 0.1 * uneven


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ConversationSampler(
            100, batch_size=2, n_batches=2, seed=seed, length_of=mixed_lengths(100).__getitem__
        )
        sampler.set_epoch(epoch)
        assert len(sampler) == 100
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9  # seed 0's second pass is not seed 1's first


def test_the_first_step_reads_a_bounded_number_of_rows():
    read: Counter[int] = Counter()

    def length_of(i: int) -> int:
        read[i] += 1
        return 5 if i % 3 else -5

    sampler = ConversationSampler(
        1_000_000, batch_size=4, n_batches=2, seed=0, length_of=length_of, look_ahead=16
    )
    first = [i for i, _ in zip(sampler, range(8), strict=False)]
    assert len(first) == 8
    assert len(read) == 16 * 8


# Rows


def test_held_out_pictures_never_train():
    rows = [row(3, f"{i % 20}.png") for i in range(100)] + [row(4) for _ in range(20)]
    learned, held = choose_rows(rows, limit=0, n_validation=15, seed=0)
    assert 15 <= len(held) < 15 + 5
    assert len(learned) + len(held) == 120
    pictures = {r["image"] for r in held if "image" in r}
    assert pictures
    assert not pictures & {r["image"] for r in learned if "image" in r}


def test_pictures_of_json_lines_are_found_without_parsing(conversations):
    """And are those that the rows have, whatever their texts say; broken lines have none."""
    rows = open_conversations(conversations)
    fast, slow = list(pictures_of(rows)), list(pictures_of(list(rows)))
    assert [f is None for f in fast] == [s is None for s in slow]
    assert fast[0] == '"0_0.png"'
    assert fast[2] == '["2_0.png", "2_1.png"]'
    tricky = {"conversations": [{"from": "gpt", "value": 'say "image": "b.png"'}], "image": "a.png"}
    text = {"conversations": [{"from": "gpt", "value": '{"image": "b.png"}'}], "image": ""}
    lines = [json.dumps(tricky), json.dumps(text), "", '{"images": ["c.png"', "{}"]
    conversations.write_text("\n".join(lines))
    assert list(pictures_of(open_conversations(conversations))) == ['"a.png"', None, None, None]


def test_pictures_of_message_parts_are_found_without_parsing(tmp_path):
    part = {"type": "image_url", "image_url": {"url": "a.png"}}
    message = {"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}
    answer = {"role": "assistant", "content": "a cat"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [message, answer]}) + "\n")
    (picture,) = pictures_of(open_conversations(path))
    assert "a.png" in picture


def test_without_validation_no_row_is_read():
    class Unread(list):
        def __getitem__(self, i):
            raise AssertionError("a row was read")

    learned, held = choose_rows(Unread(range(10)), limit=4, n_validation=0, seed=0)
    assert (len(learned), len(held)) == (4, 0)


def test_empty_data_and_holding_out_everything_are_errors():
    with pytest.raises(UserError, match="holds no conversation"):
        choose_rows([], limit=0, n_validation=0, seed=0)
    with pytest.raises(UserError, match="leaves none to train on"):
        choose_rows([row(3, "a.png")] * 5, limit=0, n_validation=5, seed=0)


# Pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        Image.new("RGB", (40, 20), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_headers_of_the_next_samples_are_checked_and_no_more(folder):
    rows = [row(3, f"{i}.png") for i in range(7)]  # 4.png to 6.png are not there
    assert check_samples(rows, iter(range(7)), folder, n=4) == (4, [])
    checked, problems = check_samples(rows, iter(range(7)), folder, n=None)
    assert checked == 7
    assert [p.endswith("no such picture") for p in problems] == [True] * 3
    with pytest.raises(UserError, match=r"3 of the 7 samples .*\n.*4.png: no such picture"):
        refuse_bad_samples(checked, problems)


@pytest.mark.parametrize(
    ("checked", "allowed"),
    [(1, 0), (2, 1), (3, 2), (8, 2), (40, 4), (200, 20), (2000, 20), (5000, 50)],
)
def test_a_few_bad_samples_are_always_allowed_but_not_all(checked, allowed, capsys):
    problems = ["row 3: broken"] * allowed
    refuse_bad_samples(checked, problems)
    assert (f"{allowed} of {checked} samples will be left out" in capsys.readouterr().out) == (
        allowed > 0
    )
    with pytest.raises(UserError, match=f"at most {allowed} would be left out") as raised:
        refuse_bad_samples(checked, [*problems, "row 3: broken"])
    assert "image_root" not in str(raised.value)  # no picture is missing


def test_a_few_missing_pictures_are_named_and_do_not_stop(capsys):
    refuse_bad_samples(1000, ["a.png: no such picture"])
    assert "1 of 1000 samples will be left out" in capsys.readouterr().out
    refuse_bad_samples(10, [])
    assert capsys.readouterr().out == ""


def test_a_malformed_row_is_a_problem_and_no_end(conversations):
    """One bad line of many is met like a bad picture: named, left out, counted."""
    lines = conversations.read_text().splitlines()
    lines[3] = "{not json"
    lines[5] = json.dumps({"id": "x", "conversations": [{"from": "martian", "value": "hi"}]})
    conversations.write_text("\n".join(lines))
    learned, _ = choose_rows(open_conversations(conversations), limit=0, n_validation=0, seed=0)
    checked, problems = check_samples(learned, range(40), conversations.parent / "images", n=None)
    assert (checked, len(problems)) == (40, 2)
    assert "chat.jsonl line 4: not valid JSON" in problems[0]
    assert "unknown role 'martian'" in problems[1]
    assert modality_length(learned[3]) < 0
