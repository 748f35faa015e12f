"""Each rule of a split by hand-made annotations, and what no split may ever do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from llava_openset.splitting import (
    COURSE_CLASSES,
    Candidate,
    Drawn,
    Rules,
    check_enough,
    choose_known,
    crop_window,
    draw,
    find_candidates,
    part_at,
    part_of,
    rules_in_words,
)
from shared.coco import Annotation, Category, ImageEntry, Instances
from shared.options import UserError

NAMES = ("person", "dog", "cat", "car", "wolf", "kite")
IDS = {name: 3 * place + 1 for place, name in enumerate(NAMES)}  # sparse
KNOWN, UNKNOWN = {"person", "dog", "cat"}, {"wolf", "kite"}  # car is on neither list
STUFF = "grass"
Row = tuple[str, tuple[float, float, float, float]] | tuple[str, tuple, dict[str, Any]]


def pictures(*rows: Sequence[Row], size: int = 100) -> Instances:
    """Pictures of size x size; an object is (class, box) or (class, box, {area, crowd})."""
    images, annotations = {}, []
    for place, row in enumerate(rows):
        image_id = 10 + 7 * place
        images[image_id] = ImageEntry(image_id, f"{image_id}.jpg", size, size)
        for name, box, *more in row:
            given = more[0] if more else {}
            annotations.append(
                Annotation(
                    len(annotations) + 1,
                    image_id,
                    99 if name == STUFF else IDS[name],
                    tuple(map(float, box)),
                    float(given.get("area", box[2] * box[3])),
                    bool(given.get("crowd", False)),
                )
            )
    categories = {number: Category(number, name, "", False) for name, number in IDS.items()}
    categories[99] = Category(99, STUFF, "plant", True)
    return Instances(images, annotations, categories)


def found(
    instances: Instances, rules: Rules, known: Any = KNOWN, unknown: Any = UNKNOWN
) -> tuple[list[tuple[int, str]], dict[str, int]]:
    queues, reasons = find_candidates(instances, known, unknown, rules)
    listed = sorted((c.image_id, c.label) for queue in queues.values() for c in queue)
    return listed, dict(reasons)


IMAGE = Rules(min_area_share=0.1, max_other_share=0.05)
BIG, SMALL, TINY = (10, 10, 50, 50), (70, 70, 20, 20), (70, 70, 20, 25)  # .25, .04, .05


@pytest.mark.parametrize(
    ("row", "expected", "reason"),
    [
        ([("dog", BIG)], "dog", None),
        # the mask's area counts, not the box's
        ([("dog", BIG, {"area": 999})], None, "main object below 0.1 of the picture"),
        ([("dog", BIG, {"area": 1000})], "dog", None),
        # another class: not above the share, the known ones as well as those on neither list
        ([("dog", BIG), ("cat", SMALL)], "dog", None),
        ([("dog", BIG), ("cat", TINY)], "dog", None),
        ([("dog", BIG), ("cat", (70, 70, 20, 26))], None, "another class above 0.05"),
        ([("dog", BIG), ("car", (70, 70, 20, 26))], None, "another class above 0.05"),
        # several of one class count together
        ([("dog", BIG), ("cat", SMALL), ("cat", SMALL)], None, "another class above 0.05"),
        ([("dog", BIG), ("dog", (0, 60, 50, 40))], "dog", None),
        # a known sample may show a small unknown object ...
        ([("dog", BIG), ("wolf", SMALL)], "dog", None),
        ([("dog", BIG), ("wolf", (70, 70, 20, 26))], None, "another class above 0.05"),
        # ... an unknown one no known object at all, be it a speck or in a crowd
        ([("wolf", BIG)], "wolf", None),
        ([("wolf", BIG), ("dog", (90, 90, 1, 1))], None, "unknown object beside a known class"),
        ([("wolf", BIG), ("person", (90, 90, 5, 5), {"crowd": True})], None,
         "unknown object beside a known class"),
        ([("wolf", BIG), ("kite", SMALL)], "wolf", None),
        ([("wolf", BIG), ("car", SMALL)], "wolf", None),
        # crowds: never the main object, but company
        ([("dog", BIG, {"crowd": True})], None, "picture with crowds only"),
        ([("dog", BIG), ("person", (0, 60, 60, 40), {"crowd": True})], None,
         "another class above 0.05"),
        ([("dog", BIG), ("dog", (0, 60, 60, 40), {"crowd": True})], "dog", None),
        # what is on no list, what is no object
        ([("car", BIG), ("dog", SMALL)], None, "main object of a class on neither list"),
        ([("dog", BIG), (STUFF, (0, 0, 100, 100))], "dog", None),
        ([(STUFF, (0, 0, 100, 100))], None, "picture without an annotated object"),
        ([], None, "picture without an annotated object"),
    ],
)  # fmt: skip
def test_which_picture_has_an_evident_main_object(
    row: Sequence[Row], expected: str | None, reason: str | None
) -> None:
    samples, reasons = found(pictures(row), IMAGE)
    assert samples == ([(10, expected)] if expected else [])
    assert reasons == ({reason: 1} if reason else {})


def test_mixed_drop_leaves_out_known_samples_with_an_unknown_object() -> None:
    drop = Rules(mixed="drop")
    instances = pictures([("dog", BIG), ("wolf", SMALL)], [("dog", BIG), ("cat", SMALL)])
    samples, reasons = found(instances, drop)
    assert samples == [(17, "dog")]
    assert reasons == {"known object beside an unknown class (--mixed drop)": 1}


CROP = Rules(unit="crop", context=0.5, min_side=10, max_other_share=0.1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([("dog", (40, 40, 20, 20))], ["dog"]),
        ([("dog", (40, 40, 9.9, 20))], []),
        ([("dog", (40, 40, 10, 20))], ["dog"]),
        ([("dog", (40, 40, 20, 20), {"crowd": True})], []),
        # the window is 30..70 both ways; outside it nothing counts
        ([("dog", (40, 40, 20, 20)), ("cat", (71, 40, 20, 20))], ["cat", "dog"]),
        # 4 x 40 of 40 x 40 pixels are .1; the cat's own window, too, has only .1 of dog
        ([("dog", (40, 40, 20, 20)), ("car", (66, 30, 4, 40))], ["dog"]),
        ([("dog", (40, 40, 20, 20)), ("car", (65, 30, 5, 40))], []),
        # an unknown crop shows no known class at all
        ([("wolf", (40, 40, 20, 20)), ("dog", (69, 69, 2, 2))], []),
        ([("wolf", (40, 40, 20, 20)), ("dog", (70, 70, 2, 2))], ["wolf"]),
        ([("wolf", (40, 40, 20, 20)), ("person", (0, 0, 90, 90), {"crowd": True})], []),
        ([("dog", (40, 40, 20, 20)), ("wolf", (69, 69, 2, 2))], ["dog"]),
        # stuff and boxes outside the picture
        ([("dog", (40, 40, 20, 20)), (STUFF, (0, 0, 100, 100))], ["dog"]),
        ([("dog", (100, 40, 20, 20))], []),
    ],
)
def test_which_object_may_be_cut_out(row: Sequence[Row], expected: list[str]) -> None:
    samples, _ = found(pictures(row), CROP)
    assert [label for _, label in samples] == expected


def test_mixed_drop_looks_into_the_crop() -> None:
    drop = Rules(unit="crop", context=0.5, min_side=10, max_other_share=0.1, mixed="drop")
    inside = [("dog", (40, 40, 20, 20)), ("wolf", (69, 69, 2, 2))]
    outside = [("dog", (40, 40, 20, 20)), ("wolf", (80, 80, 2, 2))]
    assert found(pictures(inside, outside), drop)[0] == [(17, "dog")]


def test_of_a_class_the_largest_object_that_will_do_is_cut_out() -> None:
    row = [
        ("dog", (0, 0, 40, 40)),  # the largest, but a car covers much of it
        ("car", (0, 0, 30, 30)),
        ("dog", (70, 70, 12, 12)),
        ("dog", (70, 10, 15, 15)),
    ]
    queues, _ = find_candidates(pictures(row), KNOWN, UNKNOWN, CROP)
    assert [c.annotation_id for c in queues["dog"]] == [4]
    assert queues["dog"][0].sample_id == "10-4"


def test_the_crop_s_window() -> None:
    image = ImageEntry(1, "a.jpg", 100, 60)
    assert crop_window((40.0, 20.0, 10.0, 20.0), image, 0.5) == (35, 10, 20, 40)
    assert crop_window((40.4, 20.6, 10.0, 20.0), image, 0.0) == (40, 20, 11, 21)
    assert crop_window((2.0, 1.0, 97.0, 58.0), image, 0.2) == (0, 0, 100, 60)
    assert crop_window((-5.0, 10.0, 10.0, 10.0), image, 0.0) == (0, 10, 5, 10)
    assert crop_window((100.0, 0.0, 5.0, 5.0), image, 1.0) is None


def test_present_names_what_the_sample_shows_its_own_class_first() -> None:
    row = [("dog", BIG), ("wolf", SMALL), ("cat", (0, 95, 5, 5)), (STUFF, (0, 0, 100, 100))]
    (whole,) = find_candidates(pictures(row), KNOWN, UNKNOWN, IMAGE)[0]["dog"]
    assert whole.present == ("dog", "cat", "wolf")
    assert whole.box is None
    assert whole.sample_id == "10"
    queues, _ = find_candidates(pictures(row), KNOWN, UNKNOWN, Rules(unit="crop", min_side=20))
    (crop,) = queues["dog"]
    assert crop.present == ("dog",)  # the others lie outside 2..68
    assert crop.box == (2, 2, 66, 66)


def many(n: int, seed: int = 0) -> Instances:
    """n pictures with one to three objects of any class at places that seldom meet."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        corners = rng.sample([(2, 2), (52, 2), (2, 52), (52, 52)], rng.randint(1, 3))
        rows.append([(rng.choice(NAMES), (x, y, rng.randint(20, 45), 45)) for x, y in corners])
    return pictures(*rows)


SOME = {"n_per_class": 8, "validation_per_class": 4, "max_other_share": 0.25}


def drawn(
    instances: Instances, rules: Rules, known: Sequence[str], unknown: Sequence[str]
) -> Drawn:
    queues, _ = find_candidates(instances, set(known), set(unknown), rules)
    return draw(queues, known, unknown, rules, lambda _: "")


@pytest.mark.parametrize("unit", ["image", "crop"])
def test_no_picture_is_in_both_parts_and_no_object_twice(unit: Any) -> None:
    rules = Rules(unit=unit, min_side=10, **SOME)
    result = drawn(many(400), rules, ["person", "dog", "cat"], ["wolf", "kite"])
    parts: dict[int, set[str]] = {}
    for sample in result.samples:
        parts.setdefault(sample.image_id, set()).add(sample.part)
    assert all(len(found_in) == 1 for found_in in parts.values())
    assert {part for found_in in parts.values() for part in found_in} == {"validation", "test"}
    assert len({s.sample_id for s in result.samples}) == len(result.samples)
    if unit == "crop":  # the rule has something to hold: some pictures give two crops
        assert len(parts) < len(result.samples)


def test_whole_pictures_are_dealt_out_in_proportion() -> None:
    rules = Rules(n_per_class=4, validation_per_class=2)
    assert [part_at(place, rules) for place in range(6)] == [
        "test", "test", "validation", "test", "test", "validation",
    ]  # fmt: skip
    queues, _ = find_candidates(pictures(*[[("dog", BIG)]] * 12), KNOWN, UNKNOWN, rules)
    assert sum(c.part == "validation" for c in queues["dog"]) == 4
    assert {part_at(place, Rules(validation_per_class=0)) for place in range(50)} == {"test"}


@pytest.mark.parametrize(("n_pictures", "n_validation"), [(40, 1), (6, 1), (5, 0), (202, 2)])
def test_a_class_with_few_pictures_has_a_validation_sample_too(
    n_pictures: int, n_validation: int
) -> None:
    """Of 1000 to 10 every 101st picture is for validation: 40 pictures would give it none, and
    5 are what the test part must have."""
    rules = Rules(n_per_class=1000, validation_per_class=10)
    queue = find_candidates(pictures(*[[("dog", BIG)]] * n_pictures), KNOWN, UNKNOWN, rules)[0]
    assert sum(c.part == "validation" for c in queue["dog"]) == n_validation
    no_validation = Rules(n_per_class=1000, validation_per_class=0)
    queue = find_candidates(pictures(*[[("dog", BIG)]] * 40), KNOWN, UNKNOWN, no_validation)[0]
    assert {c.part for c in queue["dog"]} == {"test"}


def test_crops_are_dealt_out_by_their_picture() -> None:
    rules = Rules(n_per_class=20, validation_per_class=10)
    parts = [part_of(image_id, rules) for image_id in range(3_000)]
    assert 900 < parts.count("validation") < 1_100
    assert parts != [part_of(image_id, Rules(seed=1)) for image_id in range(3_000)]


def test_a_whole_picture_keeps_its_part_when_other_pictures_are_ruled_out() -> None:
    """Of the unknown class some pictures show a dog; with dog as a known class they go, and the
    others stay where they were."""
    rows = [[("wolf", BIG), *([("dog", SMALL)] if i % 3 == 0 else [])] for i in range(30)]
    instances = pictures(*rows)
    all_in = find_candidates(instances, {"cat"}, {"wolf"}, Rules())[0]["wolf"]
    some_out = find_candidates(instances, {"dog"}, {"wolf"}, Rules())[0]["wolf"]
    assert len(all_in) == 30
    assert some_out == [c for c in all_in if "dog" not in c.present]
    assert len(some_out) == 20


@pytest.mark.parametrize("unit", ["image", "crop"])
def test_a_class_s_samples_stay_when_another_class_comes_or_goes(unit: Any) -> None:
    instances = many(400)
    rules = Rules(unit=unit, min_side=10, **SOME)
    few = drawn(instances, rules, ["dog"], ["wolf"])
    more = drawn(instances, rules, ["person", "cat", "dog"], ["kite"])

    def dogs(result: Drawn) -> list[Candidate]:
        return [s for s in result.samples if s.label == "dog"]

    assert dogs(few) == dogs(more)
    assert len(dogs(few)) == 12


def test_same_seed_same_split_other_seed_another() -> None:
    known, unknown = ["person", "dog"], ["wolf", "kite"]
    a, b = (drawn(many(400), Rules(**SOME), known, unknown).samples for _ in range(2))
    c = drawn(many(400), Rules(seed=1, **SOME), known, unknown).samples
    assert a == b
    assert {s.sample_id for s in a} != {s.sample_id for s in c}


def test_the_order_of_the_file_decides_nothing() -> None:
    instances = many(200)
    turned = Instances(
        dict(reversed(instances.images.items())),
        list(reversed(instances.annotations)),
        instances.categories,
    )
    a, b = (drawn(i, Rules(**SOME), ["person", "dog"], ["wolf"]) for i in (instances, turned))
    assert a.samples == b.samples


def test_counts_of_parts_and_unknown_ones() -> None:
    known, unknown = ["person", "dog"], ["wolf", "kite"]

    def counts(**options: Any) -> list[tuple[int, int]]:
        result = drawn(many(900), Rules(**(SOME | options)), known, unknown)
        return [
            (result.count(name, "validation"), result.count(name, "test"))
            for name in (*known, *unknown)
        ]

    assert counts() == [(4, 8), (4, 8), (4, 8), (4, 8)]  # as many unknown as known, in turn
    total = counts(unknown_total=5)[2:]
    assert sum(test for _, test in total) == 5
    assert sum(validation for validation, _ in total) == 3  # 2.5, rounded up
    assert max(test for _, test in total) == 3
    assert counts(unknown_per_class=3)[2:] == [(2, 3), (2, 3)]
    assert counts(unknown_per_class=3, unknown_total=5)[2:] in ([(1, 2), (2, 3)], [(2, 3), (1, 2)])
    assert counts(unknown_per_class=2, unknown_total=50)[2:] == [(1, 2), (1, 2)]
    assert counts(unknown_per_class=3, unknown_total=0)[2:] == [(0, 0), (0, 0)]
    assert counts(unknown_total=0)[2:] == [(0, 0), (0, 0)]
    assert counts(validation_per_class=0) == [(0, 8)] * 4


def test_a_class_that_runs_out_is_made_up_for_by_the_others_and_what_lacks_is_told() -> None:
    rows = [[("dog", BIG)]] * 12 + [[("wolf", BIG)]] * 2 + [[("kite", BIG)]] * 9
    rules = Rules(n_per_class=10, validation_per_class=0, unknown_total=10, min_per_class=1)
    result = drawn(pictures(*rows), rules, ["dog"], ["wolf", "kite"])
    assert result.count("wolf", "test") == 2
    assert result.count("kite", "test") == 8
    assert result.missing == {}
    result = drawn(
        pictures(*rows), Rules(n_per_class=15, validation_per_class=0), ["dog"], ["wolf"]
    )
    assert result.missing == {("dog", "test"): 3, ("unknown", "test"): 13}


def test_a_bad_picture_is_named_and_the_next_one_taken() -> None:
    instances = pictures(*[[("dog", BIG)]] * 6, *[[("wolf", BIG)]] * 6)
    rules = Rules(n_per_class=3, validation_per_class=0, min_per_class=1)
    queues, _ = find_candidates(instances, {"dog"}, {"wolf"}, rules)
    first = queues["dog"][0]
    result = draw(
        queues, ["dog"], ["wolf"], rules,
        lambda c: f"{c.image_id}.jpg: broken" if c == first else "",
    )  # fmt: skip
    assert [s for s in result.samples if s.label == "dog"] == queues["dog"][1:4]
    assert result.problems == [f"{first.image_id}.jpg: broken"]


def test_too_few_samples_are_an_error_that_says_why() -> None:
    rules = Rules(n_per_class=10, min_per_class=5, validation_per_class=0)
    instances = pictures(*[[("dog", BIG)]] * 4, [("wolf", BIG), ("dog", SMALL)])
    result = drawn(instances, rules, ["dog"], ["wolf"])
    reasons = found(instances, rules, {"dog"}, {"wolf"})[1]
    with pytest.raises(UserError, match=r"dog 4") as caught:
        check_enough(result, ["dog"], ["wolf"], rules, reasons)
    assert "unknown object beside a known class" in str(caught.value)
    few = Rules(n_per_class=4, min_per_class=4, validation_per_class=0)
    with pytest.raises(UserError, match="no picture of an unknown class"):
        check_enough(result, ["dog"], ["wolf"], few, reasons)
    own = Rules(n_per_class=4, min_per_class=4, validation_per_class=0, unknown_total=0)
    check_enough(result, ["dog"], ["wolf"], own, reasons)


def test_drawn_classes_grow_with_their_number_and_pass_over_the_rare() -> None:
    rows = [[(name, BIG)] for name in NAMES[:5] for _ in range(30)] + [[("kite", BIG)]]
    rules = Rules(seed=3)
    instances = pictures(*rows)
    drawn_classes = [choose_known(instances, n, rules)[0] for n in (1, 2, 3, 5)]
    for fewer, more in pairwise(drawn_classes):
        assert more[: len(fewer)] == fewer
    known, passed_over = choose_known(instances, 5, rules)
    assert set(known) == set(NAMES[:5])
    assert set(passed_over) <= {"kite"}
    assert {tuple(choose_known(instances, 3, Rules(seed=s))[0]) for s in range(8)} != {
        tuple(known[:3])
    }
    for count in (0, 6, 7):
        with pytest.raises(UserError, match=f"--known_count {count}"):
            choose_known(instances, count, rules)
    with_emu = {**instances.categories, 200: Category(200, "emu", "", False)}
    rare = Instances(instances.images, instances.annotations, with_emu)
    with pytest.raises(UserError, match="only 5 classes have 5 test"):
        choose_known(rare, 6, rules)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area_share": 1.5}, "--min_area_share 1.5"),
        ({"max_other_share": -0.1}, "--max_other_share -0.1"),
        ({"context": -1}, "--context -1"),
        ({"n_per_class": 0}, "--n_per_class 0"),
        ({"validation_per_class": -1}, "--validation_per_class -1"),
        ({"unknown_total": -1}, "--unknown_total -1"),
        ({"unknown_per_class": 0}, "--unknown_per_class 0"),
        ({"min_per_class": 0}, "--min_per_class 0"),
    ],
)
def test_impossible_rules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rules(**options)


def test_the_rules_are_told_with_their_numbers() -> None:
    text = " ".join(rules_in_words(Rules(min_area_share=0.2, n_per_class=7), 12, 68))
    assert "0.2" in text
    assert "7 of each known class, 84 unknown ones" in text
    text = " ".join(rules_in_words(Rules(unit="crop", context=0.3, unknown_per_class=4), 12, 68))
    assert "enlarged by 0.3" in text
    assert "272 unknown ones, the unknown classes in turn, at most 4 of each" in text


def test_the_course_s_twelve() -> None:
    assert len(set(COURSE_CLASSES)) == 12
