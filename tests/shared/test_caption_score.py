"""Caption scores against tables worked out by hand, against what they must mean, and against
pycocoevalcap where Java and pycocoevalcap are installed (pip install -e .[captions]).

python -m pytest tests/shared/test_caption_score.py
"""

import contextlib
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shared import caption_extras
from shared.caption_files import main, read_candidates
from shared.caption_metrics import BLEU, Documents, figures
from shared.caption_score import compare_captions, score_captions
from shared.caption_tokens import tokenize_caption
from shared.options import REPO_ROOT, UserError
from shared.significance import cluster_bootstrap, compare_paired


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """METEOR must not depend on what this machine has."""
    if "java" not in request.node.name:
        monkeypatch.setattr(caption_extras, "meteor_problem", lambda language: "no Java")


def corpus(references, candidates, **options) -> dict[str, float]:
    options = {"meteor": False, "n_resamples": 2} | options
    return score_captions(references, candidates, **options)["corpus"]


def many(n: int, seed: int = 0) -> tuple[dict[int, list[str]], dict[int, str], dict[int, str]]:
    """References, good captions and poor ones of n images."""
    draw = random.Random(seed)
    nouns = "dog cat bus train man woman child horse pizza table street kite".split()  # noqa: SIM905
    verbs = "is near|stands on|looks at|runs to|is on top of".split("|")  # noqa: SIM905

    def caption(noun: str, verb: str, other: str) -> str:
        first, colour = draw.choice(["A", "The", "One"]), draw.choice(["", "red "])
        return f"{first} {noun} {verb} a {colour}{other}."

    references, good, poor = {}, {}, {}
    for image_id in range(n):
        what = draw.choice(nouns), draw.choice(verbs), draw.choice(nouns)
        references[image_id] = [caption(*what) for _ in range(3)]
        good[image_id] = caption(*what) if draw.random() < 0.7 else caption("sign", *what[1:])
        poor[image_id] = caption(draw.choice(nouns), draw.choice(verbs), draw.choice(nouns))
    return references, good, poor


# --- By hand: BLEU --------------------------------------------------------------------------------

BLEU_REFERENCES = {
    1: ["a dog runs fast"],
    2: ["the cat sat", "a cat is on the mat"],
    3: ["two cats sleep on a mat", "two cats on a red mat now ok"],
}
BLEU_CANDIDATES = {
    1: "A dog runs.",  # 3 words, reference 4; n-grams matched 3/3 2/2 1/1 0/0
    2: "the the the cat",  # 4; 3 is closer than 6; "the" counts once: 2/4, "the cat" 1/3, 0/2, 0/1
    3: "two cats sleep on a red mat",  # 7; 6 and 8 are as close, 6 counts; 7/7 6/6 5/5 3/4
}


def test_bleu_by_hand() -> None:
    scores = corpus(BLEU_REFERENCES, BLEU_CANDIDATES)
    # Lengths 14 against 13: no penalty. Sums 12/14, 9/11, 6/8, 3/5.
    precisions = [12 / 14, 9 / 11, 6 / 8, 3 / 5]
    expected = [math.prod(precisions[:n]) ** (1 / n) for n in (1, 2, 3, 4)]
    assert [scores[name] for name in BLEU] == pytest.approx(expected, abs=1e-8)


def test_bleu_of_one_image_by_hand() -> None:
    images = score_captions(BLEU_REFERENCES, BLEU_CANDIDATES, meteor=False)["per_image"]
    short = math.exp(1 - 4 / 3)  # 3 words against 4
    assert [images[1][name] for name in BLEU[:3]] == pytest.approx([short] * 3, abs=1e-8)
    # No 4-gram: (0 + 1e-15) / (0 + 1e-9) stands in.
    assert images[1]["Bleu_4"] == pytest.approx(short * 1e-6**0.25, rel=1e-6)
    assert images[2]["Bleu_1"] == pytest.approx(2 / 4)
    assert images[2]["Bleu_2"] == pytest.approx((2 / 4 * 1 / 3) ** 0.5)
    assert images[3]["Bleu_4"] == pytest.approx((3 / 4) ** 0.25)


@pytest.mark.parametrize(
    ("lengths", "closest"),
    [((2, 5), 5), ((5, 2), 5), ((3, 5), 3), ((5, 3), 3), ((9, 2), 2)],
    ids=["longer", "longer first", "tie", "tie, longer first", "shorter"],
)
def test_bleu_s_length_is_that_of_the_closest_reference(
    lengths: tuple[int, int], closest: int
) -> None:
    texts = [" ".join(["dog"] * n) for n in lengths]
    found = corpus({1: texts}, {1: "dog dog dog dog"})["Bleu_1"]
    penalty = math.exp(1 - closest / 4) if closest > 4 else 1.0
    matched = min(4, max(lengths)) / 4
    assert found == pytest.approx(penalty * matched, abs=1e-6)


# --- By hand: ROUGE-L -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "references", "precision", "recall"),
    [
        ("the cat sat", ["the cat sat"], 1, 1),
        # best precision 3/4 from the first, best recall 2/2 from the second
        ("the cat sat here", ["the cat is here", "cat sat"], 3 / 4, 2 / 2),
        ("here sat the cat", ["the cat is here"], 2 / 4, 2 / 4),  # order counts: "the cat"
        ("a dog", ["two birds"], 0, 0),
        ("", ["two birds"], 0, 0),
    ],
)
def test_rouge_l_by_hand(
    candidate: str, references: list[str], precision: float, recall: float
) -> None:
    expected = 0.0
    if precision:  # beta 1.2
        expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert corpus({1: references}, {1: candidate})["ROUGE_L"] == pytest.approx(expected)


def test_rouge_l_of_a_corpus_is_the_mean() -> None:
    found = corpus({1: ["a dog"], 2: ["a cat"]}, {1: "a dog", 2: "two birds"})
    assert found["ROUGE_L"] == pytest.approx(0.5)


# --- By hand: CIDEr-D -----------------------------------------------------------------------------


def test_cider_by_hand() -> None:
    # Two images: "red" is in both (weight 0), every other n-gram in one or none (weight log 2 = w).
    scores = score_captions(
        {1: ["red dog"], 2: ["red cat"]}, {1: "Red dog.", 2: "dog cat cat"}, meteor=False
    )
    # 1: words (0, w) and the pair (w) are the reference's: cosines 1 and 1, longer ones 0. The mean
    # of four, times 10.
    first = 10 * (1 + 1 + 0 + 0) / 4
    # 2: words dog w, cat 2w; reference cat w. Clipped product w * w, norms w * sqrt 5 and w. Pairs
    # don't match. Two pairs against one: a difference of 1 in length.
    second = 10 * (1 / math.sqrt(5) + 0 + 0 + 0) / 4 * math.exp(-1 / 72)
    assert scores["per_image"][1]["CIDEr"] == pytest.approx(first)
    assert scores["per_image"][2]["CIDEr"] == pytest.approx(second)
    assert scores["corpus"]["CIDEr"] == pytest.approx((first + second) / 2)


def test_cider_takes_the_mean_over_references() -> None:
    one = corpus({1: ["red dog"], 2: ["red cat"]}, {1: "red dog", 2: "red cat"})["CIDEr"]
    two = corpus(
        {1: ["red dog", "blue bus"], 2: ["red cat", "blue train"]}, {1: "red dog", 2: "red cat"}
    )["CIDEr"]
    assert one == pytest.approx(5.0)
    assert two == pytest.approx(2.5)


def test_cider_of_one_image_is_none_with_a_reason() -> None:
    scores = score_captions({7: ["a dog"]}, {7: "a dog"}, meteor=False)
    assert scores["corpus"]["CIDEr"] is None
    assert "with one image all weights are 0" in scores["notes"]["CIDEr"]
    assert "CIDEr" not in scores["per_image"][7]
    assert scores["corpus"]["Bleu_1"] == pytest.approx(1.0)
    assert scores["intervals"]["Bleu_1"] == {
        "low": None, "high": None, "n": 1, "note": "one image: no interval, no test",
    }  # fmt: skip


# --- METEOR and SPICE -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "references", "expected"),
    [
        ("a man runs home", ["a man runs home"], 1 - 0.5 / 4**3),  # four words in one chunk
        ("dogs run", ["a b c", "dog runs"], 1 - 0.5 / 2**3),  # equal stems; the best reference
        ("cat", ["dog"], 0.0),
        ("", ["dog"], 0.0),
    ],
)
def test_meteor_of_nltk_by_hand(candidate: str, references: list[str], expected: float) -> None:
    scores = score_captions({1: references}, {1: candidate})
    assert scores["corpus"]["METEOR_nltk"] == pytest.approx(expected)
    assert scores["per_image"][1]["METEOR_nltk"] == pytest.approx(expected)
    assert "METEOR" not in scores["corpus"]
    assert "stages exact, Porter stem" in scores["notes"]["METEOR_nltk"]
    assert "not METEOR 1.5 (no Java)" in scores["notes"]["METEOR_nltk"]


def test_meteor_of_chinese_has_no_stems() -> None:
    note = score_captions({1: ["一只狗"]}, {1: "一只狗"}, language="zh")["notes"]["METEOR_nltk"]
    assert "stages exact;" in note


FAKE_JAVA = """#!{python}
import json, sys
if "-version" in sys.argv:
    print('openjdk version "11.0.2" 2019', file=sys.stderr)
elif "-stdio" in sys.argv:
    for i, line in enumerate(sys.stdin):
        if line.startswith("SCORE"):
            references, candidate = line.strip("\\n").split(" ||| ")[1:-1], line.split(" ||| ")[-1]
            print(int(candidate.strip() in references), flush=True)
        else:
            parts = line.strip().split(" ||| ")[1:]
            print("\\n".join([*parts, "{corpus}"]), flush=True)
else:
    rows = json.load(open(sys.argv[sys.argv.index("-jar") + 2]))
    found = [dict(image_id=r["image_id"], scores=dict(All=dict(f=float(r["test"] in r["refs"]))))
             for r in rows]
    json.dump(found, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with jars' names in it, and a `java` that does as if it ran them."""
    names = ["meteor-1.5.jar", "data/paraphrase-en.gz", "spice-1.0.jar"]
    names += [f"lib/stanford-corenlp-3.6.0{part}.jar" for part in ("", "-models")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_java(tmp_path)
    monkeypatch.setenv("METEOR_JAR", str(tmp_path / "meteor-1.5.jar"))
    monkeypatch.setenv("SPICE_JAR", str(tmp_path / "spice-1.0.jar"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path


def write_java(folder: Path, program: str = FAKE_JAVA, corpus: str = "0.25") -> None:
    java = folder / "java"
    java.write_text(program.replace("{python}", sys.executable).replace("{corpus}", corpus))
    java.chmod(0o755)


REFERENCES = {1: ["a dog", "one dog"], 2: ["a cat"]}
CANDIDATES = {1: "One dog.", 2: "a bird"}


def test_meteor_by_java(programs: Path) -> None:
    scores = score_captions(REFERENCES, CANDIDATES)
    assert scores["corpus"]["METEOR"] == 0.25  # the program's, not the mean of the images
    assert [row["METEOR"] for row in scores["per_image"].values()] == [1.0, 0.0]
    assert scores["notes"]["METEOR"] == "METEOR 1.5 (Java), -l en -norm"
    assert scores["intervals"]["METEOR"]["mean"] == 0.5
    assert "METEOR_nltk" not in scores["corpus"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [("#!/bin/sh\nexit 1\n", "METEOR 1.5 failed"), ("#!/bin/sh\nyes oops\n", "no number")],
)
def test_meteor_by_java_that_fails(programs: Path, program: str, reason: str) -> None:
    write_java(programs, program)
    scores = score_captions(REFERENCES, CANDIDATES)
    assert reason in scores["notes"]["METEOR_nltk"]
    assert scores["corpus"]["METEOR_nltk"] > 0


def test_meteor_java_preflight(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caption_extras.meteor_problem() is None
    assert "English" in caption_extras.meteor_problem("zh")
    (programs / "data/paraphrase-en.gz").unlink()
    assert "paraphrase-en.gz" in caption_extras.meteor_problem()
    monkeypatch.setenv("METEOR_JAR", str(programs / "none.jar"))
    assert "no meteor-1.5.jar" in caption_extras.meteor_problem()
    monkeypatch.setenv("PATH", str(programs / "empty"))
    assert caption_extras.meteor_problem() == "no Java on the path"


def test_spice_runs_where_everything_is_there(programs: Path) -> None:
    scores = score_captions(REFERENCES, CANDIDATES, meteor=False, spice=True)
    assert scores["corpus"]["SPICE"] == 0.5
    assert [row["SPICE"] for row in scores["per_image"].values()] == [1.0, 0.0]


def test_spice_says_what_is_missing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = score_captions(REFERENCES, CANDIDATES, meteor=False)["corpus"]

    def reason() -> str:
        scores = score_captions(REFERENCES, CANDIDATES, meteor=False, spice=True)
        assert scores["corpus"] == without | {"SPICE": None}
        return scores["notes"]["SPICE"]

    write_java(programs, FAKE_JAVA.replace("11.0.2", "17.0.15"))
    assert reason() == "SPICE needs Java 8 or 11; this is Java 17"
    write_java(programs, FAKE_JAVA.replace("11.0.2", "1.8.0_392").replace("r[", "r.x["))
    assert "SPICE failed" in reason()  # the preflight passed, the program did not
    (programs / "lib/stanford-corenlp-3.6.0-models.jar").unlink()
    assert "no stanford-corenlp-3.6.0-models.jar in the folder lib" in reason()
    monkeypatch.setenv("SPICE_JAR", str(programs / "none.jar"))
    assert "no spice-1.0.jar" in reason()
    assert "English only" in caption_extras.spice_problem("zh")


# --- What has no place in a formula ---------------------------------------------------------------


def test_missing_and_empty_captions_score_nothing_and_are_listed() -> None:
    references = {1: ["a dog"], 2: ["a cat"], "x": ["a bus"]}
    scores = score_captions(references, {1: "a dog", "x": " .\n"}, meteor=False)
    assert (scores["n"], scores["missing"], scores["empty"]) == (3, [2], [2, "x"])
    assert scores["notes"]["missing"].startswith("1 of 3 images have no caption and count as empty")
    assert [row["ROUGE_L"] for row in scores["per_image"].values()] == [1.0, 0.0, 0.0]
    assert scores["per_image"][2]["Bleu_1"] == 0.0
    # Leaving out the bad answers is no way up.
    assert scores["corpus"]["Bleu_1"] < score_captions(references, {
        1: "a dog", 2: "a dog", "x": "a bus"}, meteor=False)["corpus"]["Bleu_1"]  # fmt: skip


@pytest.mark.parametrize("gap", ["\r", "\r\n", "\v", "\f", "\u2028", "\x85", "\x00"])
def test_a_line_break_moves_no_caption(gap: str) -> None:
    references, candidates, _ = many(20)
    clean = score_captions(references, candidates, meteor=False, n_resamples=2)
    broken = candidates | {3: candidates[3].replace(" ", gap, 1)}
    found = score_captions(references, broken, meteor=False, n_resamples=2)
    assert found["per_image"] == clean["per_image"]


def test_chinese_is_not_split_at_spaces() -> None:
    references = {1: ["一只棕色的狗在草地上奔跑"], 2: ["两个人在厨房里做饭"], 3: ["一辆红色公交车"]}
    near = {1: "一只棕色的狗在草地上跑", 2: "两个人在厨房做饭", 3: "一辆红色公交车。"}
    chinese = score_captions(references, near, language="zh", meteor=False)
    assert chinese["corpus"]["Bleu_4"] > 0.7
    assert chinese["corpus"]["ROUGE_L"] > 0.9
    assert chinese["tokenizer"] == "characters; runs of Latin letters and digits are words"
    split = score_captions(references, near, tokenize=str.split, meteor=False)
    assert split["corpus"]["Bleu_4"] < 0.01  # what white space would make of it
    assert split["tokenizer"] == "given: str.split"


@pytest.mark.parametrize(
    ("references", "candidates", "message"),
    [
        ({}, {}, "no references"),
        ({1: []}, {}, "references of image 1: \\[\\], must be a list"),
        ({1: "a dog"}, {}, "references of image 1: 'a dog', must be a list"),
        ({1: ["a", None]}, {}, "references of image 1, caption 1: NoneType None"),
        ({1: ["a"]}, {2: "a"}, "candidate of image 2: that image has no references"),
        ({1: ["a"]}, {1: ["a"]}, "candidate of image 1: list \\['a'\\], must be a string"),
    ],
)
def test_refusals(references, candidates, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_captions(references, candidates)


def test_unknown_language() -> None:
    with pytest.raises(ValueError, match="unknown language 'fr'; one of en, zh, zh-words"):
        score_captions({1: ["a"]}, {1: "a"}, language="fr")


# --- Intervals ------------------------------------------------------------------------------------


def test_figures_of_drawn_images_are_those_of_a_corpus_of_them() -> None:
    references, candidates, _ = many(40)
    words = [[tokenize_caption(text) for text in texts] for texts in references.values()]
    tokens = [tokenize_caption(text) for text in candidates.values()]
    drawn = np.random.default_rng(1).integers(0, 40, 40)
    columns = Documents(words).statistics(tokens).columns()
    quick = figures(np.bincount(drawn, minlength=40) @ columns, 40)
    again = Documents([words[i] for i in drawn]).statistics([tokens[i] for i in drawn]).corpus()
    assert quick[:5] == pytest.approx([again[name] for name in (*BLEU, "ROUGE_L")])


def test_interval_of_two_images_by_hand() -> None:
    # Draws: both the first (1/4), one of each (1/2), both the second (1/4): means 1, 1/2, 0.
    scores = score_captions({1: ["a dog"], 2: ["a cat"]}, {1: "a dog", 2: "bird"}, meteor=False)
    interval = scores["intervals"]["ROUGE_L"]
    assert (interval["low"], interval["high"]) == (0.0, 1.0)
    assert interval["note"] == "only 2 images: the interval is too narrow"


def test_intervals_hold_the_value_and_narrow_with_the_images() -> None:
    widths = []
    for n in (50, 800):
        references, candidates, _ = many(n)
        scores = score_captions(references, candidates)
        assert scores["intervals"].keys() == scores["corpus"].keys()
        for name, interval in scores["intervals"].items():
            assert interval["low"] < scores["corpus"][name] < interval["high"]
        widths.append(scores["intervals"]["CIDEr"]["high"] - scores["intervals"]["CIDEr"]["low"])
    assert widths[1] < widths[0] / 2
    assert "not drawn anew" in scores["intervals"]["CIDEr"]["note"]


def test_interval_of_a_mean_is_the_cluster_bootstrap_s() -> None:
    references, candidates, _ = many(300)
    scores = score_captions(references, candidates, meteor=False, n_resamples=4000)
    rows = [row["ROUGE_L"] for row in scores["per_image"].values()]
    expected = cluster_bootstrap(rows, list(references), n_resamples=4000, seed=5)
    found = scores["intervals"]["ROUGE_L"]
    width = expected.high - expected.low
    assert found["low"] == pytest.approx(expected.low, abs=0.05 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.05 * width)


def test_no_interval_where_nothing_varies() -> None:
    references = {i: [f"a dog number {i}"] for i in range(20)}
    candidates = {i: f"a dog number {i}" for i in range(20)}
    interval = score_captions(references, candidates, meteor=False)["intervals"]["ROUGE_L"]
    assert (interval["low"], interval["high"]) == (None, None)
    assert interval["note"] == "all images have the same figure: no interval"


def test_same_seed_same_interval() -> None:
    references, candidates, _ = many(30)
    first, again, other = (
        score_captions(references, candidates, meteor=False, seed=seed)["intervals"]
        for seed in (0, 0, 1)
    )
    assert first == again != other


# --- Two sets of captions -------------------------------------------------------------------------


def test_difference_is_that_of_the_scores() -> None:
    references, good, poor = many(200)
    found = compare_captions(references, poor, good)
    tuned, base = corpus(references, good, meteor=True), corpus(references, poor, meteor=True)
    assert found.keys() == tuned.keys()
    for name, comparison in found.items():
        assert comparison.difference == pytest.approx(tuned[name] - base[name])
        assert 0 < comparison.low < comparison.difference < comparison.high
        assert comparison.p_value == 1e-4  # none of 9,999 swaps is as far
        assert comparison.wins > comparison.losses
        assert comparison.wins + comparison.ties + comparison.losses == comparison.n == 200
        assert 0 < comparison.minimum_detectable_difference < comparison.difference


def test_p_value_of_three_images_by_hand() -> None:
    # All three gain: of the 8 patterns only "none swapped" and "all swapped" are as far.
    references = {1: ["a red dog"], 2: ["a blue cat"], 3: ["one big bus"]}
    base = {1: "a dog", 2: "a cat", 3: "bus"}
    tuned = {i: texts[0] for i, texts in references.items()}
    found = compare_captions(references, base, tuned, meteor=False)
    assert {name: c.p_value for name, c in found.items()} == dict.fromkeys(found, 2 / 8)
    assert found["ROUGE_L"].note == "only 3 images: the interval is too narrow"


def test_p_value_of_a_mean_is_the_sign_flip_test_s() -> None:
    references, good, poor = many(9, seed=4)
    images = [
        [
            row["ROUGE_L"]
            for row in score_captions(references, c, meteor=False)["per_image"].values()
        ]
        for c in (poor, good)
    ]
    expected = compare_paired(*images, range(9))
    found = compare_captions(references, poor, good, meteor=False)["ROUGE_L"]
    assert expected.test == "sign-flip-clustered"
    assert found.p_value == pytest.approx(expected.p_value)
    assert found.difference == pytest.approx(expected.difference)
    assert (found.wins, found.ties, found.losses) == (expected.wins, expected.ties, expected.losses)


def test_captions_without_a_matched_run_of_words_tie() -> None:
    """BLEU's small constants give a short caption .03 and a long one .0001; neither has won."""
    references = {1: ["a red dog on the grass"], 2: ["one big bus in a town"]}
    base = {1: "dog", 2: "bus"}
    tuned = {1: "dog at home or at sea", 2: "one big bus in a town"}
    found = compare_captions(references, base, tuned, meteor=False)["Bleu_4"]
    assert (found.wins, found.ties, found.losses) == (1, 1, 0)


def test_equal_sets_do_not_differ() -> None:
    references, good, _ = many(20)
    for comparison in compare_captions(references, good, dict(good), meteor=False).values():
        assert (comparison.difference, comparison.p_value) == (0.0, 1.0)
        assert (comparison.low, comparison.ties) == (None, 20)
        assert "no interval" in comparison.note


def test_chance_alone_is_rarely_significant() -> None:
    """Two sets of the same quality: p-values about uniform, so few below .05."""
    small = 0
    for seed in range(40):
        references, _, first = many(40, seed)
        _, _, second = many(40, seed + 1000)
        small += compare_captions(references, first, second, meteor=False)["Bleu_1"].p_value <= 0.05
    assert small <= 7  # P(more than 7 of 40 at .05) is .0008


# --- COCO's files ---------------------------------------------------------------------------------


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


ANNOTATIONS = {"annotations": [
    {"image_id": 1, "id": 5, "caption": "a dog"}, {"image_id": 2, "id": 6, "caption": "a cat"},
    {"image_id": 1, "id": 7, "caption": "one dog"},
]}  # fmt: skip


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = write(tmp_path / "captions.json", ANNOTATIONS)
    results = write(tmp_path / "results.json", [{"image_id": 1, "caption": "One dog."}])
    main([results, annotations])
    printed = json.loads(capsys.readouterr().out)
    assert printed["n"] == 2
    assert printed["missing"] == printed["empty"] == [2]
    assert printed["per_image"]["1"]["ROUGE_L"] == 1.0
    assert printed["corpus"]["ROUGE_L"] == 0.5
    assert printed["intervals"]["ROUGE_L"]["n"] == 2
    main([results, annotations, "--summary", "--language", "zh"])
    printed = json.loads(capsys.readouterr().out)
    assert "per_image" not in printed
    assert printed["tokenizer"].startswith("characters")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"1": "a dog"}, "results.json: dict, expected a list"),
        (["a dog"], r"results.json: \[0\]: str, expected an object"),
        ([{"caption": "a dog"}], r"\[0\]: image_id is None, expected a whole number or a string"),
        ([{"image_id": True, "caption": "a"}], r"\[0\]: image_id is True"),
        ([{"image_id": 1, "caption": ["a"]}], r"\[0\] \(image 1\): caption is \['a'\], expected"),
        ([{"image_id": 1, "caption": None}], r"\[0\] \(image 1\): caption is None"),
        ([{"image_id": 3, "caption": "a"}], r"\[0\]: image 3 has no references$"),
        (
            [{"image_id": "1", "caption": "a"}],
            r"image '1' has no references; the annotations have 1",
        ),
        (
            [{"image_id": 2, "caption": "a"}, {"image_id": 2, "caption": "b"}],
            r"\[1\]: a second caption of image 2, the first is entry \[0\]",
        ),
        ("[{", r"results.json: not valid JSON \(line 1\)"),
    ],
)
def test_bad_results(tmp_path: Path, results: object, message: str) -> None:
    annotations = write(tmp_path / "captions.json", ANNOTATIONS)
    with pytest.raises(UserError, match=message):
        main([write(tmp_path / "results.json", results), annotations])


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "captions.json: no list under 'annotations'"),
        ({"annotations": []}, "captions.json: no list under 'annotations'"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\[0\] \(image 1\): caption is None"),
        ({"annotations": [{"caption": "a"}]}, r"captions.json: annotations\[0\]: image_id is None"),
    ],
)
def test_bad_annotations(tmp_path: Path, annotations: object, message: str) -> None:
    results = write(tmp_path / "results.json", [])
    with pytest.raises(UserError, match=message):
        main([results, write(tmp_path / "captions.json", annotations)])


def test_a_sample_s_results_are_scored_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"image_id": i, "caption": f"a {word} on a mat"}
        for i, word in enumerate(["dog", "cat", "bus", "train"])
    ]
    annotations = write(tmp_path / "annotations.json", {"annotations": rows})
    results = write(tmp_path / "results.json", rows[1:3])
    main([results, annotations, "--answered_only"])
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["left_out"], found["missing"]) == (2, 2, [])
    assert found["corpus"]["Bleu_4"] == pytest.approx(1)
    main([results, annotations])
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["missing"]) == (4, [0, 3])
    assert "left_out" not in found
    with pytest.raises(UserError, match="no caption in it"):
        main([write(tmp_path / "none.json", []), annotations, "--answered_only"])


def test_missing_file_as_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared.caption_score", "none.json", "none.json"],
        cwd=REPO_ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.json: cannot be read")


def test_ids_may_be_strings(tmp_path: Path) -> None:
    results = write(tmp_path / "results.json", [{"image_id": "a.jpg", "caption": "a"}])
    assert read_candidates(Path(results), {"a.jpg": ["a"]}) == {"a.jpg": "a"}


# --- Speed, and the reference program -------------------------------------------------------------


@pytest.mark.slow
def test_five_thousand_images_take_seconds() -> None:
    """Measured 8 s of processor time with METEOR_nltk; the bound leaves room for slow machines."""
    references, candidates, _ = many(5000)
    references = {i: [*texts, texts[0], texts[1]] for i, texts in references.items()}
    start = time.process_time()
    score_captions(references, candidates)
    assert time.process_time() - start < 40


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_equal_to_pycocoevalcap_with_java() -> None:
    """Corpus and every image, METEOR 1.5 included, to 1e-6 over 1,000 images."""
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    references, good, poor = many(1000)
    draw = random.Random(2)
    candidates = {}
    for image_id, texts in references.items():
        if draw.random() < 0.3:
            del texts[1:]
        words = good[image_id].split()
        candidates[image_id] = draw.choice(
            [
                good[image_id],
                poor[image_id],
                texts[0],
                " ".join(words[:3]),
                "",
                "(the man's) 1,000!",
                " ".join(draw.sample(words, len(words))),
                "red red red red red a a dog",
            ]
        )
    tokenizer = ptb.PTBTokenizer()
    theirs = tokenizer.tokenize({i: [{"caption": c} for c in v] for i, v in references.items()})
    candidate = tokenizer.tokenize({i: [{"caption": c}] for i, c in candidates.items()})
    with contextlib.redirect_stdout(io.StringIO()):
        corpus_bleu, image_bleu = Bleu(4).compute_score(theirs, candidate)
    expected = dict(zip(BLEU, zip(corpus_bleu, image_bleu, strict=True), strict=True))
    expected["ROUGE_L"] = Rouge().compute_score(theirs, candidate)
    expected["CIDEr"] = Cider().compute_score(theirs, candidate)
    if caption_extras.meteor_problem() is None:
        expected["METEOR"] = Meteor().compute_score(theirs, candidate)
    found = score_captions(references, candidates, n_resamples=2)
    for name, (corpus_value, images) in expected.items():
        assert found["corpus"][name] == pytest.approx(float(corpus_value), abs=1e-6), name
        ours = [found["per_image"][i][name] for i in references]
        assert ours == pytest.approx(np.array(images, dtype=float).tolist(), abs=1e-6), name
