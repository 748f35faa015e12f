"""Search in an index of pictures: by words, by a picture, or by both.

    searcher = Searcher.open("photos_index")
    for hit in searcher.search("a red bus", n=12, rerank=48): print(hit.rank, hit.image, hit.score)
    python lavis_apps/predict.py --task search --index photos_index --query "a red bus" --json

First all pictures by the cosine of the model's projected features (ITC), exactly. A query of words
and picture is the weighted sum of their two features, brought to length one. Words and pictures lie
in two clouds of that space, so the cosines of the one kind of query are not those of the other.

`rerank=N` then lets BLIP's matching head (ITM), which sees picture and words together, order the
first N, or all that are shown where they are more. Their score is ITM's positive logit + the ITC
cosine, as in BLIP's retrieval evaluation
(https://github.com/salesforce/BLIP/blob/main/train_retrieval.py); LAVIS' app orders by ITM alone.

Reads the index, the model, and pictures inside the folder of the index; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.index import Index, check_model, model_identity, nearest, read_index
from lavis_apps.pictures import within
from shared.answering import text_problem
from shared.images import open_image
from shared.options import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from lavis_apps.features import Embedder, Family

PICTURES_AT_ONCE = 8  # opened and encoded together where hits are re-ranked


@dataclass(frozen=True)
class Hit:
    """A picture that was found. `score` is what the hits are ordered by: the ITC cosine, or, where
    they are re-ranked, the ITM logit + that cosine."""

    image: str  # relative to the pictures' folder
    path: (
        Path | None
    )  # None where there is no such file any more, or a link leads out of the folder
    score: float
    rank: int  # from 1
    itc: float  # cosine of query and picture, -1 to 1
    itm: float | None = None  # probability that picture and words match, where re-ranked
    heat: Image | None = None  # where the words are seen, over the picture
    problem: str | None = None  # why the picture cannot be shown or re-ranked

    def line(self) -> dict[str, Any]:
        """For one line of JSON; what does not apply is left out."""
        told = {"image": self.image, "score": self.score, "rank": self.rank, "itc": self.itc}
        extra = {"itm": self.itm, "problem": self.problem}
        return told | {key: value for key, value in extra.items() if value is not None}


@dataclass
class Searcher:
    """An index, the model that made it, the folder of its pictures, a model that re-ranks."""

    index: Index
    embedder: Embedder
    root: Path
    reranker: Family | None = None  # one that `fuses`: sees picture and words together

    @classmethod
    def open(
        cls,
        index: str | Path,
        *,
        model: str | None = None,
        adapter: str | None = None,
        images: str | Path | None = None,
        reranker: str | Path | Family | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Searcher:
        """The index in a folder and its model.

        `model`, `adapter`: where they are now, if not where the index says; others are refused.
        `images`: the pictures' folder, if it has moved. `reranker`: a BLIP or BLIP-2 for matching;
        None takes the index's model where it is one. Raises MissingError where index or model is
        not there, UserError for a damaged index or another model's.
        """
        from lavis_apps.features import open_embedder, open_family

        found = read_index(Path(index))
        model, adapter = model or found.model, adapter or found.adapter
        check_model(found.folder, found.manifest["model"], model_identity(model, adapter))
        root = found.root if images is None else Path(images)
        if images is not None and not root.is_dir():
            raise UserError(f"{root}: no such folder; --images is where the index's pictures are")
        embedder = open_embedder(model, device=device, dtype=dtype, adapter=adapter)
        if isinstance(reranker, str | Path):
            reranker = open_family(reranker, device=device, dtype=dtype)
            if not reranker.fuses:
                raise UserError(
                    f"{reranker.folder}: it has no matching head, so it cannot re-rank; give "
                    "--reranker a BLIP for matching, such as Salesforce/blip-itm-base-coco"
                )
        if reranker is None and embedder.family.fuses:
            reranker = embedder.family
        return cls(found, embedder, root, reranker)

    @property
    def synthetic(self) -> bool:
        """Whether pictures or a model are a toy's."""
        return self.index.synthetic or bool(self.reranker and self.reranker.synthetic)

    def search(
        self,
        text: str | None = None,
        image: Image | str | Path | None = None,
        n: int = 24,
        *,
        rerank: int = 0,
        localize: bool = False,
        text_weight: float = 0.5,
    ) -> list[Hit]:
        """The `n` best pictures (all, where there are fewer), best first.

        `rerank`: how many are re-ranked, at least `n` (0: none); pictures that are not there any
        more come behind the others. `localize` draws where the words are seen (Grad-CAM).
        `text_weight` is the words' part in a query of both. Raises UserError for a query without
        words or picture and for words missing where they are needed, ImageError for the query's
        picture.
        """
        self._check(text, n, rerank, localize, text_weight)
        query = self.query(text, image, text_weight)
        (rows,), (cosines,) = nearest(self.index.vectors, query[None], max(n, rerank))
        cosines = cosines.clip(-1, 1)  # float32 vectors are a little longer or shorter than one
        hits = [
            Hit(self.index.images[row], None, score, rank, itc=score)
            for rank, (row, score) in enumerate(zip(rows, cosines.tolist(), strict=True), start=1)
        ]
        hits = [self._located(hit) for hit in hits]
        if rerank:
            hits = self._reranked(hits, str(text))
        hits = hits[:n]
        if localize:
            hits = [self._localized(hit, str(text)) for hit in hits]
        return [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]

    def query(
        self, text: str | None, image: Image | str | Path | None, text_weight: float = 0.5
    ) -> np.ndarray:
        """(P,) float32 of length one. Raises UserError where there is nothing to search for."""
        import numpy as np
        import torch

        with torch.inference_mode():
            parts: list[tuple[float, Tensor]] = []
            if text is not None:
                parts.append((text_weight, self.embedder.text_features([text])[0]))
            if image is not None:
                picture = open_image(image) if isinstance(image, str | Path) else image
                parts.append((1 - text_weight, self.embedder.image_features([picture])[0]))
            vectors = [(weight, part.float().cpu().numpy()) for weight, part in parts]
        if len(vectors) == 2:
            query = sum(weight * vector / np.linalg.norm(vector) for weight, vector in vectors)
        elif vectors:
            query = vectors[0][1]
        else:
            raise UserError("nothing to search for: give words, a picture, or both")
        length = np.linalg.norm(query)
        if not np.isfinite(length) or length == 0:
            raise UserError("the model's features of this query are no finite numbers")
        return (query / length).astype(np.float32)

    def _check(
        self, text: str | None, n: int, rerank: int, localize: bool, text_weight: float
    ) -> None:
        if text is not None and not text.strip():
            raise UserError("the words to search for are empty")
        if text is not None and text_problem(text):
            raise UserError(f"the words to search for: {text_problem(text)}")
        if n < 1 or rerank < 0:
            raise UserError(f"n {n}, rerank {rerank}: at least one hit, at least 0 re-ranked")
        if not 0 <= text_weight <= 1:
            raise UserError(f"text_weight {text_weight}: between 0 (the picture) and 1 (the words)")
        needs_words = "re-ranking" if rerank else "a heat map" if localize else None
        if needs_words is None:
            return
        if text is None:
            raise UserError(f"{needs_words} needs words: it asks whether they match the picture")
        if self.reranker is None:
            raise UserError(
                f"{needs_words} needs a model with a matching head, and the index is one of "
                f"{self.index.manifest['model']['name']}: give --reranker, such as "
                "Salesforce/blip-itm-base-coco"
            )
        if localize and not hasattr(self.reranker, "blip"):
            raise UserError(
                "a heat map needs a BLIP for matching: give --reranker, such as "
                "Salesforce/blip-itm-base-coco"
            )

    def _located(self, hit: Hit) -> Hit:
        """With the file's path, or the problem."""
        try:
            path = within(self.root, hit.image)
        except UserError:
            return replace(hit, problem=f"{hit.image}: leads out of {self.root}: not opened")
        if path.is_file():
            return replace(hit, path=path)
        return replace(
            hit,
            problem=f"{path}: no such picture any more; --images is the folder where they are now, "
            "build_index.py brings the index up to date",
        )

    def _opened(self, hits: Sequence[Hit]) -> tuple[list[tuple[Hit, Image]], list[Hit]]:
        """Hits with their pictures; hits without one."""
        there: list[tuple[Hit, Image]] = []
        lost: list[Hit] = []
        for hit in hits:
            if hit.path is None:
                lost.append(hit)
                continue
            try:
                there.append((hit, open_image(hit.path)))
            except UserError as error:
                lost.append(replace(hit, problem=str(error)))
        return there, lost

    def _reranked(self, hits: Sequence[Hit], text: str) -> list[Hit]:
        """By ITM logit + ITC cosine; behind them, in their order, those that cannot be opened."""
        import torch

        from lavis_apps.features import checked_texts

        assert self.reranker is not None
        words = checked_texts(text, self.reranker.process)
        scored: list[Hit] = []
        lost: list[Hit] = []
        for start in range(0, len(hits), PICTURES_AT_ONCE):
            there, gone = self._opened(hits[start : start + PICTURES_AT_ONCE])
            lost += gone
            if not there:
                continue
            with torch.inference_mode():
                seen = self.reranker.read_images([image for _, image in there]).states
                logits = self.reranker.match_logits(seen, words * len(there)).float()  # (B, 2)
            probabilities = logits.softmax(dim=-1)[:, 1].tolist()
            for (hit, _), logit, itm in zip(
                there, logits[:, 1].tolist(), probabilities, strict=True
            ):
                scored.append(replace(hit, score=logit + hit.itc, itm=itm))
        return sorted(scored, key=lambda hit: -hit.score) + lost

    def _localized(self, hit: Hit, text: str) -> Hit:
        from lavis_apps.heat_maps import heat_map
        from lavis_apps.localization import Localizer

        blip = self.reranker.blip
        there, lost = self._opened([hit])
        if lost:
            return lost[0]
        image = there[0][1]
        found = Localizer(blip).localize(image, text)
        return replace(hit, heat=heat_map(found.average, image))
