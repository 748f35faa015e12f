"""Batches of training samples: what is in them, and what is left out and said."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from llava_repro.training_data import ConversationCollator
from shared.conversation_data import show_labels
from shared.conversations import open_conversations
from shared.options import IGNORE_INDEX


@pytest.fixture
def collator(llava_parts, conversations):
    def make(**settings) -> ConversationCollator:
        return ConversationCollator(
            llava_parts["tokenizer"]("qwen2"),
            llava_parts["image_processor"]("clip"),
            None,
            **{
                "n_image_tokens": 16,
                "max_length": 400,
                "image_root": conversations.parent / "images",
                **settings,
            },
        )

    return make


@pytest.fixture
def samples(conversations) -> list[dict]:
    return list(open_conversations(conversations))


def test_a_batch_pads_on_the_right_and_masks_by_length(collator, samples):
    collate = collator()
    batch = collate([samples[0], samples[4]])  # with a picture; text alone
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert batch["input_ids"].shape == batch["labels"].shape == (2, max(lengths))
    for i, n in enumerate(lengths):
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (max(lengths) - n)
        assert (batch["labels"][i, n:] == IGNORE_INDEX).all()
        assert (batch["input_ids"][i, n:] == collate.tokenizer.pad_token_id).all()
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert (batch["input_ids"] == collate.image_token_id).sum(dim=1).tolist() == [16, 0]
    assert batch["sample_ids"] == ["sample 0", "sample 4"]
    assert (batch["skipped"], batch["shortened"]) == ([], [])


def test_labels_are_the_answers_and_their_end_tokens(collator, samples):
    collate = collator()
    batch = collate([samples[1]])  # two rounds
    learned = batch["input_ids"][0][batch["labels"][0] != IGNORE_INDEX]
    assert collate.tokenizer.decode(learned) == "green<|im_end|>no<|im_end|>"
    shown = show_labels(collate.encode(samples[1])[0], collate.tokenizer)
    assert "<image> x 16\nwhat color is the shape ?<|im_end|>" in shown
    assert "【green<|im_end|>】" in shown
    assert "【no<|im_end|>】" in shown


def test_two_pictures_of_a_row_keep_their_order_before_the_next_row_s(collator, samples):
    collate = collator()
    assert len(samples[6]["image"]) == 2
    together = collate([samples[6], samples[0]])["pixel_values"]
    assert together.shape == (3, 3, 32, 32)
    alone = [collate([samples[i]])["pixel_values"] for i in (6, 0)]
    assert torch.equal(together, torch.cat(alone))


def test_a_batch_of_text_alone_has_no_pictures(collator, samples):
    assert "pixel_values" not in collator()([samples[4], samples[9]])


def test_a_picture_is_never_cut(collator, samples):
    """Text is shortened from its end; a row that would lose a picture or every answer is left out
    and says why."""
    collate = collator()
    whole = collate([samples[1]])
    n = whole["input_ids"].shape[1]
    first_answer = int((whole["labels"][0] != IGNORE_INDEX).nonzero()[0])
    shorter = collator(max_length=first_answer + 3)([samples[1]])
    assert shorter["shortened"] == ["sample 1"]
    assert torch.equal(shorter["input_ids"], whole["input_ids"][:, : first_answer + 3])
    assert (shorter["labels"] != IGNORE_INDEX).sum() == 3
    assert collator(max_length=n)([samples[1]])["shortened"] == []
    for length in (first_answer, 5):  # no answer left; the picture cut
        batch = collator(max_length=length)([samples[1]])
        assert batch["sample_ids"] == []
        (message,) = batch["skipped"]
        assert f"sample 1: {n} tokens; cut to --max_length {length} it would lose" in message


def test_bad_samples_are_left_out_of_their_batch_and_named(collator, samples, conversations):
    images = conversations.parent / "images"
    (images / "0_0.png").write_bytes((images / "0_0.png").read_bytes()[:60])  # whole in its header
    (images / "6_1.png").unlink()
    no_answer = {"id": "mute", "conversations": [{"from": "human", "value": "hi"}]}
    batch = collator()([samples[0], samples[1], samples[6], no_answer, {"problem": "line 9: bad"}])
    assert batch["sample_ids"] == ["sample 1"]
    assert len(batch["pixel_values"]) == 1
    broken, missing, mute, malformed = batch["skipped"]
    assert "sample 0: " in broken
    assert "0_0.png: broken picture" in broken
    assert "6_1.png: no such picture" in missing
    assert "'mute'" in mute
    assert "without an answer" in mute
    assert "line 9: bad" in malformed


def test_a_batch_without_one_usable_sample_is_empty(collator):
    batch = collator()([{"problem": "bad"}])
    assert batch["sample_ids"] == []
    assert batch["labels"].shape == (0, 0)


def test_padding_to_square_uses_the_mean_colour(collator, samples):
    """A picture twice as wide as high: bands of the mean, which the processor turns into 0."""
    wide = Image.new("RGB", (64, 32), (250, 0, 0))
    padded = collator(image_aspect_ratio="pad").pixels([wide])[0]
    square = collator().pixels([wide])[0]
    assert padded[:, 0].abs().max() < 0.02
    assert square[:, 0].abs().max() > 1
