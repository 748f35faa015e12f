"""Retrieval of a whole split: ITC of all pictures and captions, ITM of the first k_test of each.

As BLIP and LAVIS do it (https://github.com/salesforce/BLIP/blob/main/train_retrieval.py,
evaluation; https://github.com/salesforce/LAVIS/blob/main/lavis/models/base_model.py uses the same):
the k_test captions of highest cosine to a picture get the score ITM logit (column 1, no softmax)
plus cosine, all others -100; likewise the k_test pictures of a caption. The original holds the
vision states of all pictures in memory (9 GB for COCO's 5,000); here a picture's pairs of both
directions are scored together while its states are there, and the scores are kept in
match_scores.jsonl, a line a picture, from which a stopped run goes on. Equal texts are scored once.

    python lavis_apps/evaluate.py --toy --task retrieval

Reads the pictures; writes match_scores.jsonl where a folder is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.evaluation_settings import Asking
from lavis_apps.scoring_retrieval import IR, NOT_RANKED, TR, first_by, rank_of
from shared.answering import Answer, Job, RecordWriter, make_record, read_records
from shared.images import ImageError, open_image
from shared.options import UserError
from shared.vqav2 import Question

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lavis_apps.features import Family

TEXTS_AT_ONCE = 64  # through the text encoder with one picture, or alone
SHOWN_HITS = 10  # of each query in its record
PAIRS_FILE = "match_scores.jsonl"


@dataclass(frozen=True)
class Gallery:
    """Readable pictures and all captions of a split, as a model tells them apart.

    `texts` are the different ones as the model reads them; caption j is `text_of[j]` of these and
    belongs to sample `owner[j]`. `place` is a readable sample's row among the pictures.
    """

    samples: Sequence[Question]
    captions: list[str]
    owner: np.ndarray  # (n,)
    text_of: np.ndarray  # (n,)
    texts: list[str]
    place: dict[int, int]  # sample -> row of the readable pictures
    unreadable: dict[int, str]  # sample -> why

    @property
    def readable(self) -> list[int]:
        return list(self.place)


def retrieval_records(
    model: Any, samples: Sequence[Question], settings: Asking, folder: Path | None, progress: bool
) -> list[dict[str, Any]]:
    """One record a query: a picture asks for its captions (TR), a caption for its picture (IR).

    `model`: a `Blip` for matching, or a `Family` (features.py): CLIP and BLIP-2 too. A record has
    the ranks by which it is scored (scoring_retrieval.RANKS), the first hits and the number of
    candidates. Captions of a picture that can't be read stay candidates; its own queries are
    errors. Raises UserError where a sample has no caption, or no picture can be read.
    """
    from lavis_apps.features import as_family

    family = as_family(model)
    gallery, sims = search_all(family, samples, settings.batch_size, progress)
    logits, k = None, settings.k_test if family.fuses else 0
    if k:
        wanted = pairs_to_match(gallery, sims, k)
        logits = match_pairs(family, gallery, wanted, folder, progress)
    return [*_text_queries(gallery, sims, logits, k), *_picture_queries(gallery, sims, logits, k)]


def query_ids(samples: Sequence[Question]) -> list[str]:
    """The sample_id of every record that `retrieval_records` makes, in its order."""
    pictures = [f"TR-{sample.sample_id}" for sample in samples]
    texts = [f"IR-{s.sample_id}-{i}" for s in samples for i in range(len(s.references))]
    return pictures + texts


def search_all(
    family: Family, samples: Sequence[Question], batch_size: int, progress: bool
) -> tuple[Gallery, np.ndarray]:
    """What is searched, and the ITC of readable pictures and different texts, (m, texts)."""
    import numpy as np
    import torch
    from tqdm import tqdm

    bare = next((sample for sample in samples if not sample.references), None)
    if bare is not None:
        raise UserError(f"{bare.image_name}: no caption; retrieval needs one for every picture")
    captions = [text for sample in samples for text in sample.references]
    read = [family.process(text) for text in captions]
    texts = list(dict.fromkeys(read))
    place: dict[int, int] = {}
    unreadable: dict[int, str] = {}
    sims = []
    with torch.inference_mode():
        text_features = torch.cat([
            family.read_texts(texts[i : i + TEXTS_AT_ONCE]).vector
            for i in range(0, len(texts), TEXTS_AT_ONCE)
        ] or [torch.zeros(0, family.size)])  # fmt: skip
        with tqdm(total=len(samples), desc="pictures", disable=not progress or None) as bar:
            for start in range(0, len(samples), batch_size):
                images = []
                for i in range(start, min(start + batch_size, len(samples))):
                    try:
                        images.append(open_image(samples[i].image))
                        place[i] = len(place)
                    except ImageError as error:
                        unreadable[i] = str(error)
                if images:
                    found = family.cosines(family.read_images(images), text_features)
                    sims.append(found.float().cpu().numpy())
                bar.update(min(batch_size, len(samples) - start))
    if not place:
        raise UserError(f"no picture can be read; first: {unreadable.get(0, 'there is none')}")
    number = {text: i for i, text in enumerate(texts)}
    gallery = Gallery(
        samples=samples,
        captions=captions,
        owner=np.repeat(np.arange(len(samples)), [len(s.references) for s in samples]),
        text_of=np.asarray([number[text] for text in read]),
        texts=texts,
        place=place,
        unreadable=unreadable,
    )
    return gallery, np.concatenate(sims)


def pairs_to_match(gallery: Gallery, sims: np.ndarray, k: int) -> np.ndarray:
    """Which (picture, different text) pairs ITM must score for both directions; bool, as `sims`."""
    import numpy as np

    wanted = np.zeros(sims.shape, dtype=bool)
    for sample, row in gallery.place.items():
        order = first_by(sims[row][gallery.text_of], gallery.owner == sample, k)
        wanted[row, gallery.text_of[order]] = True
    for j, text in _askable_captions(gallery):
        own = np.zeros(len(sims), dtype=bool)
        own[gallery.place[int(gallery.owner[j])]] = True
        wanted[first_by(sims[:, text], own, k), text] = True
    return wanted


def match_pairs(
    family: Family,
    gallery: Gallery,
    wanted: np.ndarray,
    folder: Path | None,
    progress: bool,
) -> np.ndarray:
    """ITM logits (column 1) of the wanted pairs in a matrix (pictures, different texts), nan
    elsewhere. Kept a line a picture in `folder`; lines of the same texts are not computed again."""
    import numpy as np
    from tqdm import tqdm

    logits = np.full(wanted.shape, np.nan, dtype=np.float32)
    path = folder / PAIRS_FILE if folder else None
    with RecordWriter(path) if path else nullcontext() as writer:
        earlier = read_records(path) if path else {}
        for sample, row in tqdm(
            gallery.place.items(), desc="matching", disable=not progress or None, unit="picture"
        ):
            texts = np.flatnonzero(wanted[row]).tolist()
            key = gallery.samples[sample].sample_id
            known = earlier.get(key)
            if known is None or known["texts"] != texts:
                image = open_image(gallery.samples[sample].image)
                found = itm_logits(family, image, [gallery.texts[t] for t in texts])
                known = {"sample_id": key, "texts": texts, "logits": found}
                if writer is not None:
                    writer.write([known])
            logits[row, texts] = known["logits"]
    return logits


def itm_logits(family: Family, image: Image, texts: Sequence[str]) -> list[float]:
    """Column 1 of the matching head for one picture with each (processed) text."""
    import torch

    found: list[float] = []
    with torch.inference_mode():
        states = family.read_images([image]).states  # (1, N, D)
        for i in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[i : i + TEXTS_AT_ONCE]
            repeated = states.expand(len(part), *states.shape[1:])
            found += family.match_logits(repeated, part)[:, 1].float().tolist()
    return found


def _askable_captions(gallery: Gallery) -> Iterator[tuple[int, int]]:
    """(caption, its text) of the captions whose picture can be read."""
    for j, text in enumerate(gallery.text_of.tolist()):
        if int(gallery.owner[j]) in gallery.place:
            yield j, text


def _ranks(
    sims: np.ndarray, scores: np.ndarray | None, right: np.ndarray, equal: np.ndarray, k: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Ranks of a query, its candidates in order and their final scores.

    `scores`: ITM logits of the candidates, nan where there is none. `right` by id, `equal` with
    equal captions; the first k are those of `right`.
    """
    import numpy as np

    final = sims
    if scores is not None:
        among = first_by(sims, right, k)
        final = np.full(len(sims), NOT_RANKED, dtype=np.float64)
        final[among] = scores[among] + sims[among]
    ranks = {
        "rank": rank_of(final, right), "rank_itc": rank_of(sims, right),
        "rank_equal": rank_of(final, equal), "rank_itc_equal": rank_of(sims, equal),
    }  # fmt: skip
    return ranks, first_by(final, right, SHOWN_HITS), final


def _text_queries(
    gallery: Gallery, sims: np.ndarray, logits: np.ndarray | None, k: int
) -> Iterator[dict[str, Any]]:
    import numpy as np

    for i, sample in enumerate(gallery.samples):
        question = Question(
            sample_id=f"TR-{sample.sample_id}", image=sample.image, image_name=sample.image_name,
            image_id=sample.image_id, question="", references=sample.references, answer_type=TR,
        )  # fmt: skip
        if i in gallery.unreadable:
            yield make_record(Job(question, ""), error=gallery.unreadable[i])
            continue
        row = gallery.place[i]
        right = gallery.owner == i
        equal = np.isin(gallery.text_of, gallery.text_of[right])
        yield _record(
            question, gallery.captions, sims[row][gallery.text_of],
            None if logits is None else logits[row][gallery.text_of], right, equal, k,
        )  # fmt: skip


def _picture_queries(
    gallery: Gallery, sims: np.ndarray, logits: np.ndarray | None, k: int
) -> Iterator[dict[str, Any]]:
    import numpy as np

    names = [gallery.samples[i].image_name for i in gallery.readable]
    rows_of: dict[int, set[int]] = {}  # text -> readable pictures that have it as a caption
    for j, text in _askable_captions(gallery):
        rows_of.setdefault(text, set()).add(gallery.place[int(gallery.owner[j])])
    number = 0
    for j, text in enumerate(gallery.text_of.tolist()):
        owner = int(gallery.owner[j])
        number = number + 1 if j and owner == int(gallery.owner[j - 1]) else 0
        sample = gallery.samples[owner]
        question = Question(
            sample_id=f"IR-{sample.sample_id}-{number}", image=sample.image,
            image_name=sample.image_name, image_id=sample.image_id,
            question=gallery.captions[j], references=(sample.image_name,), answer_type=IR,
        )  # fmt: skip
        if owner in gallery.unreadable:
            job = Job(question, gallery.texts[text])
            yield make_record(job, error=gallery.unreadable[owner])
            continue
        right = np.zeros(len(names), dtype=bool)
        right[gallery.place[owner]] = True
        equal = np.zeros(len(names), dtype=bool)
        equal[list(rows_of[text])] = True
        own = None if logits is None else logits[:, text]
        prompt = gallery.texts[text]
        yield _record(question, names, sims[:, text], own, right, equal, k, prompt)


def _record(
    question: Question, names: Sequence[str], sims: np.ndarray, logits: np.ndarray | None,
    right: np.ndarray, equal: np.ndarray, k: int, prompt: str = "",
) -> dict[str, Any]:  # fmt: skip
    """A query's record; an error where a score is no finite number (float16 overflows)."""
    ranks, order, scores = _ranks(sims, logits, right, equal, k)
    if None in ranks.values():
        error = "a score is not finite; --dtype bfloat16 or float32 may help"
        return make_record(Job(question, prompt), error=error)
    best = names[int(order[0])]
    details = {
        **ranks,
        "reranked": logits is not None,
        "n_candidates": len(names),
        "n_right": int(right.sum()),
        "n_right_equal": int(equal.sum()),
        "hits": [[names[int(c)], round(float(scores[c]), 6)] for c in order],
    }
    answer = Answer(best, best, None, None, "ranked", 0)
    return make_record(Job(question, prompt, details), answer)
