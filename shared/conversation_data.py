"""Rows of conversation data in training: which train, in which order, which are left out.

Rows are read lazily; the order is a function of seed and epoch, grouped by modality and length
within a window of some steps, so that the first step of a million rows starts in seconds. Held-out
rows share no picture with those that train. A malformed row does not stop a training: it is counted
and left out, unless there are too many.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from shared.conversation_files import JsonLines
from shared.conversations import fit, row_images
from shared.images import header_size
from shared.options import IGNORE_INDEX, UserError

EPOCHS_PER_SEED = 1_000_003  # no epoch of a seed has the order of another seed's
LOOK_AHEAD = 64  # steps whose rows are grouped, and whose pictures are checked, together
PICTURE_WORDS = 256  # a further picture of a row in words, for lengths only
# Chinese has no spaces: each of its characters counts as a word, all else is split at spaces.
WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")

# A row's picture or pictures as they stand in its line; quotes within its texts have a backslash.
IMAGE_FIELD = re.compile(rb'"(?:images?|image_url)"\s*:\s*("(?:[^"\\]|\\.)+"|\[[^\]]+\]|\{[^}]+\})')

Row = dict[str, Any]


def row_name(row: Row, index: int | None = None) -> str:
    """How messages call a row: its id, else its place."""
    return str(row.get("id", f"row {index}" if index is not None else "without id"))


def read_row(rows: Sequence[Row], i: int) -> Row:
    """Row i, or for a malformed one an empty row whose `problem` says what is wrong with it: one
    bad line in a million is left out and counted, it does not stop the training."""
    try:
        return rows[i]
    except UserError as error:
        return {"id": f"row {i}", "conversations": [], "problem": str(error)}


def modality_length(row: Row) -> int:
    """Words of a row, negative for text alone (LLaVA, train.py, `modality_lengths`); a picture
    after the first counts as PICTURE_WORDS."""
    words = sum(len(WORDS.findall(str(turn.get("value") or ""))) for turn in row["conversations"])
    image = row.get("image")
    if isinstance(image, list):
        words += PICTURE_WORDS * (len(image) - 1)
    return max(words, 1) if image else -max(words, 1)


# Which rows


class Rows(Sequence[Row]):
    """Some rows of a file, by their places in it; read when asked for (`read_row`)."""

    def __init__(self, rows: Sequence[Row], indices: Sequence[int]) -> None:
        self.rows = rows
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Row:  # type: ignore[override]
        return read_row(self.rows, self.indices[i])


def choose_rows(
    rows: Sequence[Row], *, limit: int, n_validation: int, seed: int
) -> tuple[Rows, Rows]:
    """(rows that train, about `n_validation` held out), no picture in both.

    Without validation no row is read; holding out by picture looks at each of them once.
    Raises UserError when nothing is left to train on.
    """
    if not len(rows):
        raise UserError("the data holds no conversation: nothing to train on")
    indices: Sequence[int] = range(len(rows))
    generator = random.Random(seed)
    if limit and limit < len(rows):
        indices = sorted(generator.sample(indices, limit))
    if not n_validation:
        return Rows(rows, indices), Rows(rows, [])
    by_picture: dict[str, list[int]] = {}
    chosen = set(indices) if limit else indices
    for i, picture in enumerate(pictures_of(rows)):
        if i in chosen:
            by_picture.setdefault(picture or f"row {i}", []).append(i)
    names = sorted(by_picture)
    generator.shuffle(names)
    held: set[int] = set()
    for name in names:
        if len(held) >= n_validation:
            break
        held.update(by_picture[name])
    learned = [i for i in indices if i not in held]
    if not learned:
        raise UserError(
            f"holding out {n_validation} of {len(indices)} rows for validation leaves none to "
            "train on: give more rows or a smaller --validation_samples"
        )
    return Rows(rows, learned), Rows(rows, sorted(held))


def pictures_of(rows: Sequence[Row]) -> Iterator[str | None]:
    """The `image` of every row in order, as one text; None for text alone.

    JSON lines of conversations are not parsed for it but searched, which is ten times as fast;
    other rows may not be the lines of the file that they come from (mixtures, converted columns).
    """
    if isinstance(rows, JsonLines):
        with rows.path.open("rb") as file:
            for line in file:
                if line.strip():
                    found = IMAGE_FIELD.search(line)
                    yield found[1].decode("utf-8", "replace") if found else None
        return
    for i in range(len(rows)):
        image = read_row(rows, i).get("image")
        yield str(image) if image else None


def rows_hash(rows: Rows) -> str:
    """A short hash of which places of the file train, for the manifest."""
    if isinstance(rows.indices, range):
        text = repr(rows.indices)
    else:
        text = ",".join(map(str, rows.indices))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# In which order


def even_chunks(order: Sequence[int], lengths: Mapping[int, int], n: int) -> list[list[int]]:
    """`order` (longest first) dealt to `n` devices so that their sums of lengths are close.

    Each gets the same number of samples where they can be divided, else every n-th one.
    """
    if len(order) % n:
        return [list(order[i::n]) for i in range(n)]
    chunks: list[list[int]] = [[] for _ in range(n)]
    sums = [0] * n
    room = len(order) // n
    for i in order:
        lightest = min((c for c in range(n) if len(chunks[c]) < room), key=lambda c: sums[c])
        chunks[lightest].append(i)
        sums[lightest] += lengths[i]
    return chunks


def grouped_by_modality(
    window: Sequence[int],
    lengths: Mapping[int, int],
    batch_size: int,
    n_batches: int,
    like_lengths: bool = False,
) -> tuple[list[list[int]], list[int], list[int]]:
    """Steps of one modality each, and what is left over of both (pictures, text).

    `window` in random order; lengths[i] as `modality_length` gives it. A step is `n_batches`
    (processes x accumulated) batches of `batch_size`, longest first, dealt evenly
    (LLaVA, llava_trainer.py, `get_modality_length_grouped_indices`); with `like_lengths` the whole
    window is sorted before it is cut into steps.
    """
    size = batch_size * n_batches
    steps: list[list[int]] = []
    rests = []
    for wanted in (True, False):
        members = [i for i in window if (lengths[i] > 0) == wanted]
        whole = len(members) // size * size
        rests.append(members[whole:])
        if like_lengths:
            members = sorted(members[:whole], key=lambda i: -abs(lengths[i]))
        for start in range(0, whole, size):
            by_length = sorted(members[start : start + size], key=lambda i: -abs(lengths[i]))
            sizes = {i: abs(lengths[i]) for i in by_length}
            dealt = even_chunks(by_length, sizes, n_batches)
            steps.append([i for chunk in dealt for i in chunk])
    return steps, rests[0], rests[1]


class ConversationSampler(Sampler[int]):
    """Places of the samples in the order of training, for all processes together.

    With `length_of` steps hold one modality, as in LLaVA, but within a window of LOOK_AHEAD steps;
    with `like_lengths` also samples of about the same length. The leftover of both modalities makes
    the last, mixed batches. The order depends on seed and epoch alone, another for each pair.
    """

    def __init__(
        self,
        n_samples: int,
        *,
        batch_size: int,
        n_batches: int,
        seed: int,
        length_of: Callable[[int], int] | None = None,
        like_lengths: bool = False,
        look_ahead: int = LOOK_AHEAD,
    ) -> None:
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.seed = seed
        self.length_of = length_of
        self.like_lengths = like_lengths
        self.look_ahead = look_ahead
        self.epoch = 0

    def __len__(self) -> int:
        return self.n_samples

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # below 2 ** 32, of which torch's generator on the CPU takes no more
        mixed = (self.seed * EPOCHS_PER_SEED + self.epoch) % 2**32
        generator = torch.Generator().manual_seed(mixed)
        order = torch.randperm(self.n_samples, generator=generator).tolist()
        if self.length_of is None:
            yield from order
            return
        size = self.look_ahead * self.batch_size * self.n_batches
        pictures: list[int] = []
        texts: list[int] = []
        for start in range(0, self.n_samples, size):
            window = [*pictures, *texts, *order[start : start + size]]
            lengths = {i: self.length_of(i) for i in window}
            steps, pictures, texts = grouped_by_modality(
                window, lengths, self.batch_size, self.n_batches, self.like_lengths
            )
            for i in torch.randperm(len(steps), generator=generator).tolist():
                yield from steps[i]
        yield from sorted([*pictures, *texts])


def check_samples(
    rows: Sequence[Row], order: Iterable[int], image_root: Path, *, n: int | None
) -> tuple[int, list[str]]:
    """The next `n` samples (None: all) as far as that is cheap: (number checked, problems).

    A row's form and its pictures' headers; nothing is decoded (0.02 ms a picture) or tokenised.
    Problems are messages that name file and row or picture, one a sample.
    """
    problems = []
    checked = 0
    for i in itertools.islice(order, n):
        checked += 1
        row = rows[i]
        try:
            if "problem" in row:
                raise UserError(row["problem"])
            for path in row_images(row, image_root):
                header_size(path)
        except UserError as error:
            problems.append(str(error))
    return checked, problems


def bad_samples_allowed(checked: int) -> int:
    """1 % of those checked before the training, as later in it; of few a tenth (at most 20), two in
    any case, but not all."""
    return min(max(2, min(20, checked // 10), checked // 100), checked - 1)


def refuse_bad_samples(checked: int, problems: Sequence[str]) -> None:
    """Raises UserError when too many cannot be used; a few are named and left out later."""
    if not problems:
        return
    listed = "\n  ".join(problems[:5])
    if len(problems) > (allowed := bad_samples_allowed(checked)):
        missing = sum("no such picture" in problem for problem in problems)
        hint = f"; {missing} miss a picture: is --image_root the right folder?" if missing else "."
        raise UserError(
            f"{len(problems)} of the {checked} samples checked cannot be used, at most {allowed} "
            f"would be left out{hint} The first:\n  {listed}"
        )
    print(f"{len(problems)} of {checked} samples will be left out; the first:\n  {listed}")


# Labels, shown


def learnable(
    sample: dict[str, list[int]], name: str, max_length: int, image_token_id: int
) -> dict[str, list[int]]:
    """A sample of at most `max_length` tokens, its text cut at the end, else as it is.

    Raises UserError with the row's name when it has no learned token, or cutting would take a
    picture's tokens or every answer.
    """
    # the first token has none before it that could predict it
    if all(label == IGNORE_INDEX for label in sample["labels"][1:]):
        raise UserError(f"{name}: no answer to learn in it")
    fitting = fit(sample, max_length, image_token_id)
    if fitting is None:
        raise UserError(
            f"{name}: {len(sample['input_ids'])} tokens; cut to --max_length {max_length} it would "
            "lose a picture's or all of its answers"
        )
    return fitting


def right_padded(samples: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels (B, longest). The mask comes from lengths, so that a
    true end token that doubles as padding keeps its place."""
    shape = (len(samples), max(len(sample["input_ids"]) for sample in samples))
    input_ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORE_INDEX)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for i, sample in enumerate(samples):
        n = len(sample["input_ids"])
        input_ids[i, :n] = torch.tensor(sample["input_ids"])
        labels[i, :n] = torch.tensor(sample["labels"])
        attention_mask[i, :n] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def show_labels(
    sample: dict[str, list[int]], tokenizer: Any, image_token_id: int | None = None
) -> str:
    """The decoded sample, what is learned in 【 】, a picture's tokens as <image> x N
    (`image_token_id`, none = the id of `<image>`)."""
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    image_id = image_id if image_token_id is None else image_token_id
    parts: list[str] = []
    runs: list[tuple[str, list[int]]] = []
    for token, label in zip(sample["input_ids"], sample["labels"], strict=True):
        kind = "image" if token == image_id else "text" if label == IGNORE_INDEX else "learned"
        if not runs or runs[-1][0] != kind:
            runs.append((kind, []))
        runs[-1][1].append(token)
    for kind, ids in runs:
        if kind == "image":
            parts.append(f"<image> x {len(ids)}")
        else:
            text = tokenizer.decode(ids)
            parts.append(f"【{text}】" if kind == "learned" else text)
    return "".join(parts)
