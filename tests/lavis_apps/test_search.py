"""Search: by words, picture and both, re-ranked, with pictures that have moved."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps import features
from lavis_apps import search as search_module
from lavis_apps.blip import load_blip
from lavis_apps.build_index import IndexOptions, main
from lavis_apps.index import read_index
from lavis_apps.processors import blip_caption
from lavis_apps.search import Hit, Searcher
from lavis_apps.settings import TOY_MODELS
from shared.coco_captions import load_captions
from shared.images import ImageError, open_image
from shared.options import UserError
from shared.significance import compare_paired, score_interval
from shared.toy_world.build import ensure_vqav2
from tests.lavis_apps.fake_models import FakeEmbedder, colour_features, draw_pictures, make_index
from tests.tiny_models import tiny_blip


class Seen(NamedTuple):
    states: Any


class FakeMatcher:
    """Matches by the red of the picture alone: logits (-red, red), red from 0 to 1."""

    fuses = True
    synthetic = False

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.words: list[str] = []

    def process(self, text: str) -> str:
        return text.lower().strip(". ")

    def read_images(self, images: Sequence[Image.Image]) -> Seen:
        self.batches.append(len(images))
        return Seen(torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images]))

    def match_logits(self, states: Any, texts: Sequence[str]) -> Any:
        self.words += texts
        return torch.stack([-states, states], dim=1)


N = 30


@pytest.fixture
def searcher(tmp_path) -> Searcher:
    index = read_index(make_index(tmp_path, N))
    return Searcher(index, FakeEmbedder(), index.root, FakeMatcher())


def by_hand(searcher: Searcher, query: np.ndarray) -> list[str]:
    """Names by cosine, computed picture by picture from the files."""
    query = query / np.linalg.norm(query)
    scored = []
    for name in searcher.index.images:
        scored.append((-float(colour_features(open_image(searcher.root / name)) @ query), name))
    return [name for _, name in sorted(scored)]


def test_words_find_the_nearest_pictures(searcher):
    hits = searcher.search("0.9 0.2 0.4", n=8)
    query = colour_features(Image.new("RGB", (3, 3), (230, 51, 102)))
    assert [hit.image for hit in hits] == by_hand(searcher, query)[:8]
    assert [hit.rank for hit in hits] == list(range(1, 9))
    assert all(hit.score == hit.itc and hit.itm is None for hit in hits)
    assert all(hit.path == searcher.root.resolve() / hit.image for hit in hits)
    best = colour_features(open_image(searcher.root / hits[0].image))
    assert hits[0].score == pytest.approx(float(best @ query), abs=1e-6)


@pytest.mark.parametrize("form", [str, Path, open_image])
def test_a_picture_finds_itself_first(searcher, form):
    hits = searcher.search(image=form(searcher.root / "0011.png"), n=3)
    assert hits[0].image == "0011.png"
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    assert hits[0].score <= 1


def test_words_and_picture_are_a_weighted_sum(searcher):
    image = searcher.root / "0004.png"
    text = "0.1 0.9 0.3"
    words = colour_features(Image.new("RGB", (3, 3), (26, 230, 76)))
    picture = colour_features(open_image(image))
    for weight in (0.5, 0.2, 0.9):
        names = [hit.image for hit in searcher.search(text, image, N, text_weight=weight)]
        assert names == by_hand(searcher, weight * words + (1 - weight) * picture)
    for weight, alone in ((1, {"text": text}), (0, {"image": image})):
        both = searcher.search(text, image, N, text_weight=weight)
        assert [h.image for h in both] == [h.image for h in searcher.search(**alone, n=N)]


def test_no_more_hits_than_pictures(searcher):
    hits = searcher.search("0.5 0.5 0.5", n=1000)
    assert sorted(hit.image for hit in hits) == searcher.index.images


def test_re_ranked_hits_are_ordered_by_logit_and_cosine(searcher):
    plain = {hit.image: hit for hit in searcher.search("0.9 0.2 0.4", n=N)}
    first = [hit.image for hit in searcher.search("0.9 0.2 0.4", n=20)]
    hits = searcher.search("0.9 0.2 0.4", n=5, rerank=20)
    expected = {}
    for name in first:
        red = open_image(searcher.root / name).getpixel((0, 0))[0] / 255
        expected[name] = (red + plain[name].itc, 1 / (1 + math.exp(-2 * red)))
    assert [h.image for h in hits] == sorted(expected, key=lambda n: -expected[n][0])[:5]
    assert [h.image for h in hits] != first[:5]  # or nothing was re-ranked
    for hit in hits:
        score, probability = expected[hit.image]
        assert hit.score == pytest.approx(score, abs=1e-6)
        assert hit.itm == pytest.approx(probability, abs=1e-6)
        assert hit.itc == plain[hit.image].itc
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert sum(searcher.reranker.batches) == 20  # and no other picture was opened


def test_all_that_are_shown_are_re_ranked(searcher):
    hits = searcher.search("0.9 0.2 0.4", n=12, rerank=3)
    assert len(hits) == 12
    assert all(hit.itm is not None for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_matching_head_gets_processed_words(searcher):
    searcher.embedder.text_features = lambda texts: torch.ones(1, 28)
    searcher.search("A Red Bus. ", n=2, rerank=2)
    assert set(searcher.reranker.words) == {"a red bus"}


def test_a_line_of_json(searcher):
    plain, ranked = (searcher.search("1 0 0", n=1, rerank=rerank)[0] for rerank in (0, 4))
    assert json.loads(json.dumps(plain.line())).keys() == {"image", "score", "rank", "itc"}
    assert ranked.line().keys() == {"image", "score", "rank", "itc", "itm"}
    lost = Hit("a.png", None, 0.5, 1, 0.5, problem="gone")
    assert lost.line()["problem"] == "gone"


# Pictures that moved --------------------------------------------------------------------------


def test_a_picture_that_is_gone_is_still_ranked_and_told(searcher):
    first = searcher.search("0.9 0.2 0.4", n=3)
    first[0].path.unlink()
    hits = searcher.search("0.9 0.2 0.4", n=3)
    assert [hit.image for hit in hits] == [hit.image for hit in first]
    assert hits[0].path is None
    assert "no such picture any more; --images is the folder" in hits[0].problem
    assert hits[1].problem is None


def test_pictures_without_a_file_come_behind_the_re_ranked(searcher):
    first = searcher.search("0.9 0.2 0.4", n=10)
    first[0].path.unlink()
    first[1].path.write_text("broken")
    hits = searcher.search("0.9 0.2 0.4", n=10, rerank=10)
    assert [hit.image for hit in hits[-2:]] == [first[0].image, first[1].image]
    assert [hit.itm is None for hit in hits] == [False] * 8 + [True] * 2
    assert "not a picture" in hits[-1].problem
    assert [hit.rank for hit in hits] == list(range(1, 11))


def test_the_folder_may_have_moved(searcher, tmp_path):
    moved = tmp_path / "moved"
    (tmp_path / "pictures").rename(moved)
    lost = searcher.search("0.9 0.2 0.4", n=4)
    assert all(hit.path is None for hit in lost)
    found = Searcher(searcher.index, searcher.embedder, moved).search("0.9 0.2 0.4", n=4)
    assert [hit.image for hit in found] == [hit.image for hit in lost]
    assert all(hit.path.is_file() for hit in found)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_no_picture_outside_the_folder_is_opened(searcher, tmp_path, monkeypatch):
    outside = draw_pictures(tmp_path / "outside", 1)
    name = searcher.search("0.9 0.2 0.4", n=1)[0].image
    (searcher.root / name).unlink()
    (searcher.root / name).symlink_to(outside / "0000.png")
    opened = []
    real = search_module.open_image
    monkeypatch.setattr(search_module, "open_image", lambda p: opened.append(p) or real(p))
    hits = searcher.search("0.9 0.2 0.4", n=N, rerank=N)
    assert hits[-1].image == name
    assert hits[-1].path is None
    assert "leads out of" in hits[-1].problem
    assert len(opened) == N - 1
    assert all(path.is_relative_to(searcher.root.resolve()) for path in opened)


# What cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "nothing to search for"),
        ({"text": ""}, "the words to search for are empty"),
        ({"text": " \n"}, "the words to search for are empty"),
        ({"text": "half \ud83d"}, "half a character"),
        ({"text": "1 1 1", "n": 0}, "at least one hit"),
        ({"text": "1 1 1", "rerank": -1}, "at least 0 re-ranked"),
        ({"text": "1 1 1", "text_weight": 1.5}, "between 0"),
        ({"image": Image.new("RGB", (3, 3)), "rerank": 5}, "re-ranking needs words"),
        ({"image": Image.new("RGB", (3, 3)), "localize": True}, "a heat map needs words"),
        ({"text": "1 1 1", "localize": True}, "needs a BLIP for matching"),
    ],
)
def test_queries_that_cannot_be(searcher, query, message):
    with pytest.raises(UserError, match=message):
        searcher.search(**query)


def test_words_of_punctuation_alone_cannot_be_matched(searcher):
    searcher.embedder.text_features = lambda texts: torch.ones(1, 28)
    with pytest.raises(UserError, match="no word"):
        searcher.search("...", rerank=5)


def test_an_index_of_a_model_without_a_matching_head_is_not_re_ranked(searcher):
    plain = Searcher(searcher.index, searcher.embedder, searcher.root)
    assert plain.search("1 1 1", n=1)
    with pytest.raises(UserError, match=r"index is one of fake: give --reranker"):
        plain.search("1 1 1", rerank=5)


def test_a_query_picture_that_is_none(searcher, tmp_path):
    with pytest.raises(ImageError, match="no such picture"):
        searcher.search(image=tmp_path / "nowhere.png")


def test_a_query_without_a_direction(searcher):
    searcher.embedder.text_features = lambda texts: torch.full((1, 28), float("nan"))
    with pytest.raises(UserError, match="no finite numbers"):
        searcher.search("1 1 1")


# With a BLIP ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> str:
    return str(tiny_blip("matching", tmp_path_factory.mktemp("blip")))


@pytest.fixture(scope="module")
def blip_index(tmp_path_factory, blip) -> Path:
    folder = tmp_path_factory.mktemp("index")
    draw_pictures(folder / "pictures", 12)
    main(IndexOptions(images=str(folder / "pictures"), output=str(folder / "index"), model=blip))
    return folder / "index"


def test_a_blip_searches_and_re_ranks_as_it_scores_pair_by_pair(blip_index, blip):
    searcher = Searcher.open(blip_index)
    hits = searcher.search("A red star!", n=12, rerank=12)
    alone = load_blip(blip, kind="matching")
    with torch.no_grad():
        words = alone.text_features(["a red star"])
        for hit in hits:
            states = alone.encode_images([open_image(hit.path)])
            logits = alone.match_logits(states, ["a red star"])
            itc = float(alone.image_features(states) @ words.T)
            assert hit.itc == pytest.approx(itc, abs=1e-5)
            assert hit.itm == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)
            assert hit.score == pytest.approx(float(logits[0, 1]) + itc, abs=1e-4)


def test_a_heat_map_of_each_hit_has_its_pictures_size(blip_index):
    hits = Searcher.open(blip_index).search("a red star", n=3, localize=True)
    assert [hit.heat.size for hit in hits] == [(3, 3)] * 3
    assert all(hit.itm is None for hit in hits)


def test_ten_thousand_characters_are_cut_and_no_error(blip_index):
    hits = Searcher.open(blip_index).search("a red star " * 1000, n=2, rerank=4)
    assert len(hits) == 2


def test_another_model_is_refused_before_it_is_loaded(blip_index, tmp_path, monkeypatch):
    other = tiny_blip("matching", tmp_path / "other", seed=5)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(features, "open_embedder", never)
    with pytest.raises(UserError, match="build an index for this one"):
        Searcher.open(blip_index, model=str(other))


def test_the_model_may_have_moved(blip_index, blip, tmp_path):
    moved = shutil.copytree(blip, tmp_path / "moved")
    hits = Searcher.open(blip_index, model=str(moved)).search("a red star", n=1)
    assert hits[0].path is not None


def test_the_pictures_folder_is_checked_when_it_is_given(blip_index, tmp_path):
    with pytest.raises(UserError, match="no such folder; --images"):
        Searcher.open(blip_index, images=tmp_path / "nowhere")


def test_a_reranker_of_another_kind_is_refused(blip_index):
    with pytest.raises(UserError, match="no matching head"):
        Searcher.open(blip_index, reranker=TOY_MODELS["clip"])


def test_a_toys_hits_are_a_toys(blip_index, searcher):
    assert not searcher.synthetic
    opened = Searcher.open(blip_index)
    opened.index.manifest["synthetic"] = True
    assert opened.synthetic


# The toy BLIP ---------------------------------------------------------------------------------


@pytest.mark.pipeline
def test_the_toy_blip_finds_the_pictures_that_captions_describe(tmp_path):
    """Recall at 1: the first hit is a picture of which people wrote just that caption."""
    rows = load_captions(ensure_vqav2(), "val2014").questions[:200]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in rows:
        shutil.copy(row.image, folder)
    model = TOY_MODELS["matching"]
    given = {"images": str(folder), "output": str(tmp_path / "index"), "model": str(model)}
    main(IndexOptions(**given))
    searcher = Searcher.open(tmp_path / "index")
    owners: dict[str, set[str]] = {}
    for row in rows:
        for caption in row.references:
            owners.setdefault(blip_caption(caption), set()).add(row.image.name)
    recalls: dict[int, list[float]] = {0: [], 16: []}
    chances = []
    for row in rows[:60]:
        caption = row.references[0]
        own = owners[blip_caption(caption)]
        chances.append(len(own) / len(rows))
        for rerank, found in recalls.items():
            found.append(float(searcher.search(caption, n=1, rerank=rerank)[0].image in own))
    interval = score_interval(recalls[0], range(60))
    assert interval.low > 3 * sum(chances) / len(chances)
    change = compare_paired(recalls[0], recalls[16], list(range(60)))
    assert change.difference >= 0 or change.high >= 0  # re-ranked: not worse beyond chance
