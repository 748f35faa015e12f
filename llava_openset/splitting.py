"""Which objects of COCO become known and unknown samples: the rules, as pure functions.

A sample is a whole picture with one evident main object (`image`) or one object cut out with some
ground around it (`crop`). The order in which a class's pictures are drawn follows from the seed,
the class and the picture's id alone (by SHA-256), never from which other classes are drawn. No
picture is in both parts, validation and test: a whole picture belongs to one class, whose pictures
are dealt out to the parts in turn; of crops the seed and the picture's id decide. Nothing is read
or written here: `make_known_from_coco.py` does that.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from shared.coco import Annotation, ImageEntry, Instances
from shared.options import UserError

COURSE_CLASSES = (
    "person", "dog", "cat", "car", "bus", "bicycle", "train", "truck", "airplane", "boat", "tv",
    "laptop",
)  # fmt: skip
Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")

Box = tuple[float, float, float, float]  # x, y, width, height in pixels of the picture


@dataclass(frozen=True)
class Rules:
    """Everything but the classes that decides a split. Raises UserError for impossible values."""

    unit: Literal["image", "crop"] = "image"
    min_area_share: float = 0.1  # image: of the picture, covered by the main object
    max_other_share: float = 0.05  # of the picture or crop, covered by any other class
    context: float = 0.15  # crop: of the box's side, added on each side
    min_side: int = 64  # crop: pixels of the box's shorter side
    mixed: Literal["keep", "drop"] = "keep"
    n_per_class: int = 20
    validation_per_class: int = 10
    unknown_total: int | None = None  # None: as many as known ones, or by unknown_per_class
    unknown_per_class: int | None = None  # at most
    min_per_class: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {"min_area_share": self.min_area_share, "max_other_share": self.max_other_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"--{name} {share}: a share of the picture is between 0 and 1")
        if not 0 <= self.context <= 10:
            raise UserError(f"--context {self.context}: expected 0 to 10 times the box's side")
        least = {"n_per_class": 1, "validation_per_class": 0, "min_side": 1, "min_per_class": 1,
                 "unknown_total": 0, "unknown_per_class": 1}  # fmt: skip
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"--{name} {value}: at least {lowest}")

    @property
    def least(self) -> int:
        """Test samples that a known class must have."""
        return min(self.min_per_class, self.n_per_class)

    def with_validation(self, n_test: int) -> dict[Part, int]:
        """How many samples a part gets where the test part gets `n_test`: in the known ones'
        proportion, rounded up."""
        return {
            "validation": -(-n_test * self.validation_per_class // self.n_per_class),
            "test": n_test,
        }


@dataclass(frozen=True)
class Candidate:
    """An object that may become a sample. `box` is the crop in the picture, None for all of it."""

    image_id: int
    annotation_id: int
    label: str
    part: Part
    box: Box | None
    present: tuple[str, ...]  # classes that the sample shows, its own first

    @property
    def sample_id(self) -> str:
        return str(self.image_id) if self.box is None else f"{self.image_id}-{self.annotation_id}"


@dataclass
class Drawn:
    """What a draw gave: samples, how many a class lacks by (class, part), unusable pictures."""

    samples: list[Candidate] = field(default_factory=list)
    missing: dict[tuple[str, Part], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def count(self, label: str, part: Part) -> int:
        return sum(1 for s in self.samples if s.label == label and s.part == part)


def fraction(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone, on every machine the same."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def part_of(image_id: int, rules: Rules) -> Part:
    """The part of all crops of a picture."""
    share = rules.validation_per_class / (rules.validation_per_class + rules.n_per_class)
    return "validation" if fraction(rules.seed, "part", image_id) < share else "test"


def part_at(place: int, rules: Rules) -> Part:
    """The part of the whole picture at this place in its class's order: dealt out in turn, so that
    the first so many pictures have the parts in proportion."""
    wanted, total = rules.validation_per_class, rules.validation_per_class + rules.n_per_class
    return "validation" if (place + 1) * wanted // total > place * wanted // total else "test"


def find_candidates(
    instances: Instances, known: Collection[str], unknown: Collection[str], rules: Rules
) -> tuple[dict[str, list[Candidate]], Counter[str]]:
    """Usable objects of every listed class in the order of drawing, and why others are not.

    `image`: of a picture the largest object that is no crowd, if it covers `min_area_share` and
    no other class, its crowds included, covers more than `max_other_share` (by mask areas).
    `crop`: of a picture and class the largest object with sides of `min_side` whose box, enlarged
    by `context` and clipped to the picture, is covered by no other class's boxes to more than
    `max_other_share`. Crowds are never cut out. Either way an unknown sample shows no known class
    at all, a crowd counts, and `mixed` "drop" leaves out known samples that show an unknown one.
    Stuff (sky, wall) is no object and is passed over.
    """
    names = {c.id: c.name for c in instances.categories.values() if not c.stuff}
    find = _of_picture if rules.unit == "image" else _crops
    # Also those that the lists rule out: a picture keeps its part when a class changes its list.
    offered: dict[str, list[tuple[Candidate, str]]] = {name: [] for name in (*known, *unknown)}
    reasons: Counter[str] = Counter()
    for image_id, annotated in instances.by_image().items():
        things = [a for a in annotated if a.category_id in names]
        if not things:
            reasons["picture without an annotated object"] += 1
            continue
        offers, why = find(instances.images[image_id], things, names, known, unknown, rules)
        for candidate, problem in offers:
            offered[candidate.label].append((candidate, problem))
        reasons.update(why)
    found: dict[str, list[Candidate]] = {name: [] for name in offered}
    for name, offers in offered.items():
        offers.sort(key=lambda o: (fraction(rules.seed, name, o[0].image_id), o[0].image_id))
        for place, (candidate, problem) in enumerate(offers):
            if problem:
                reasons[problem] += 1
            elif rules.unit == "image":
                found[name].append(replace(candidate, part=part_at(place, rules)))
            else:
                found[name].append(candidate)
        if rules.unit == "image":
            _give_validation_its_share(found[name], rules)
    return found, reasons


def _give_validation_its_share(candidates: list[Candidate], rules: Rules) -> None:
    """One picture to the validation part where dealing out in turn gave it none, because the class
    has fewer pictures than come between two of that part; unless the test part needs them all."""
    if (
        rules.validation_per_class
        and len(candidates) > rules.least
        and all(candidate.part == "test" for candidate in candidates)
    ):
        candidates[0] = replace(candidates[0], part="validation")


def _of_picture(
    image: ImageEntry,
    things: Sequence[Annotation],
    names: Mapping[int, str],
    known: Collection[str],
    unknown: Collection[str],
    rules: Rules,
) -> tuple[list[tuple[Candidate, str]], list[str]]:
    """The picture as a candidate, with what the lists have against it; or why it is none."""
    picture = image.width * image.height
    objects = [a for a in things if not a.crowd]
    if not objects:
        return [], ["picture with crowds only"]
    main = max(objects, key=lambda a: (a.area, -a.id))
    label = names[main.category_id]
    if label not in known and label not in unknown:
        return [], ["main object of a class on neither list"]
    if main.area < rules.min_area_share * picture:
        return [], [f"main object below {rules.min_area_share:g} of the picture"]
    covered: dict[str, float] = defaultdict(float)
    for thing in things:
        covered[names[thing.category_id]] += thing.area
    shares = {name: area / picture for name, area in covered.items()}
    problem = _share_problem(label, shares, rules)
    if problem:
        return [], [problem]
    present = (label, *sorted(set(shares) - {label}))
    candidate = Candidate(image.id, main.id, label, "test", None, present)
    return [(candidate, _list_problem(label, shares, known, unknown, rules))], []


def _crops(
    image: ImageEntry,
    things: Sequence[Annotation],
    names: Mapping[int, str],
    known: Collection[str],
    unknown: Collection[str],
    rules: Rules,
) -> tuple[list[tuple[Candidate, str]], list[str]]:
    """At most one crop of every listed class in the picture; and why others are none."""
    usable: list[tuple[Candidate, str]] = []
    reasons: list[str] = []
    part = part_of(image.id, rules)
    listed = {name for a in things if (name := names[a.category_id]) in known or name in unknown}
    for label in sorted(listed):
        own = [a for a in things if names[a.category_id] == label and not a.crowd]
        large = [a for a in own if min(a.box[2:]) >= rules.min_side]
        if not large:
            reasons.append(
                f"box side below {rules.min_side} pixels" if own else "a class's crowds only"
            )
            continue
        problems = []
        for thing in sorted(large, key=lambda a: (-a.area, a.id)):
            window = crop_window(thing.box, image, rules.context)
            if window is None:
                problems.append("box outside the picture")
                continue
            shares = _shares_in(window, things, names)
            problem = _list_problem(label, shares, known, unknown, rules) or _share_problem(
                label, shares, rules
            )
            if problem:
                problems.append(problem)
                continue
            present = (label, *sorted(set(shares) - {label}))
            usable.append((Candidate(image.id, thing.id, label, part, window, present), ""))
            break
        else:
            reasons.append(problems[0])  # of the largest one
    return usable, reasons


def _share_problem(label: str, shares: Mapping[str, float], rules: Rules) -> str:
    others = (share for name, share in shares.items() if name != label)
    if any(share > rules.max_other_share for share in others):
        return f"another class above {rules.max_other_share:g}"
    return ""


def _list_problem(
    label: str,
    shown: Collection[str],
    known: Collection[str],
    unknown: Collection[str],
    rules: Rules,
) -> str:
    """Why a sample of `label` that shows these classes can't be used, "" if it can."""
    others = set(shown) - {label}
    if label in unknown and any(name in known for name in others):
        return "unknown object beside a known class"
    if label in known and rules.mixed == "drop" and any(name in unknown for name in others):
        return "known object beside an unknown class (--mixed drop)"
    return ""


def crop_window(box: Box, image: ImageEntry, context: float) -> Box | None:
    """The box enlarged by `context` of its sides on each side, in whole pixels, clipped to the
    picture; None when nothing of the box lies in it."""
    x, y, width, height = box
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        return None
    left = max(0, math.floor(x - context * width))
    top = max(0, math.floor(y - context * height))
    right = min(image.width, math.ceil(x + width + context * width))
    bottom = min(image.height, math.ceil(y + height + context * height))
    return float(left), float(top), float(right - left), float(bottom - top)


def _shares_in(
    window: Box, things: Sequence[Annotation], names: Mapping[int, str]
) -> dict[str, float]:
    """Of each class whose boxes meet the window, how much of it they cover, overlaps twice."""
    x, y, width, height = window
    shares: dict[str, float] = defaultdict(float)
    for thing in things:
        ox, oy, owidth, oheight = thing.box
        across = min(x + width, ox + owidth) - max(x, ox)
        down = min(y + height, oy + oheight) - max(y, oy)
        if across > 0 and down > 0:
            shares[names[thing.category_id]] += across * down / (width * height)
    return shares


def choose_known(instances: Instances, count: int, rules: Rules) -> tuple[list[str], list[str]]:
    """`count` classes drawn by the seed, and those passed over for want of pictures.

    All classes stand in one seeded order, of which the first with at least `min_per_class` test
    and, where there is a validation part, one validation candidate are taken: with the same seed
    20 known classes are among the 40. Raises UserError when too few are left.
    """
    names = [c.name for c in instances.categories.values() if not c.stuff]
    if not 0 < count < len(names):
        raise UserError(
            f"--known_count {count}: the file has {len(names)} classes, and at least one of them "
            "must be known and one unknown"
        )
    queues, _ = find_candidates(instances, names, (), rules)
    least: dict[Part, int] = {"test": rules.least}
    if rules.validation_per_class:
        least["validation"] = 1
    order = sorted(names, key=lambda name: (fraction(rules.seed, "class", name), name))
    known, passed_over = [], []
    for name in order:
        enough = all(sum(c.part == p for c in queues[name]) >= n for p, n in least.items())
        (known if enough else passed_over).append(name)
        if len(known) == count:
            return known, passed_over
    raise UserError(
        f"--known_count {count}: only {len(known)} classes have {rules.least} test "
        "pictures by these rules. Take a larger --split (train2017), looser shares or a "
        "smaller --min_per_class"
    )


def draw(
    queues: Mapping[str, Sequence[Candidate]],
    known: Sequence[str],
    unknown: Sequence[str],
    rules: Rules,
    problem_of: Callable[[Candidate], str],
) -> Drawn:
    """Takes candidates in order; one with a problem is named, and the next takes its place.

    Unknown ones are taken class after class in turn, at most `unknown_per_class` of each, until
    their total is reached. What cannot be had stands in `missing`.
    """
    drawn = Drawn()
    waiting = {
        (name, part): iter([c for c in queues[name] if c.part == part])
        for name in (*known, *unknown)
        for part in PARTS
    }

    def take(name: str, part: Part) -> bool:
        for candidate in waiting[name, part]:
            problem = problem_of(candidate)
            if not problem:
                drawn.samples.append(candidate)
                return True
            drawn.problems.append(problem)
        return False

    for name in known:
        for part, wanted in rules.with_validation(rules.n_per_class).items():
            got = 0
            while got < wanted and take(name, part):
                got += 1
            if got < wanted:
                drawn.missing[name, part] = wanted - got
    totals, each = unknown_numbers(rules, len(known), len(unknown))
    order = sorted(unknown, key=lambda name: (fraction(rules.seed, "class", name), name))
    for part, wanted in totals.items():
        taken = dict.fromkeys(order, 0)
        open_classes = order
        while wanted and open_classes:
            still_open = []
            for name in open_classes:
                if not wanted:
                    break
                if taken[name] == each[part]:
                    continue
                if take(name, part):
                    taken[name] += 1
                    wanted -= 1
                    still_open.append(name)
            open_classes = still_open
        if wanted:
            drawn.missing["unknown", part] = wanted
    return drawn


def unknown_numbers(
    rules: Rules, n_known: int, n_unknown: int
) -> tuple[dict[Part, int], dict[Part, int | None]]:
    """Of each part how many unknown samples in all, and how many of a class at most (None: any)."""
    each = (
        None if rules.unknown_per_class is None else rules.with_validation(rules.unknown_per_class)
    )
    if rules.unknown_total is not None:
        totals = rules.with_validation(rules.unknown_total)
    elif each is not None:
        totals = {part: n * n_unknown for part, n in each.items()}
    else:
        totals = rules.with_validation(n_known * rules.n_per_class)
    return totals, dict.fromkeys(PARTS) if each is None else dict(each)


def check_enough(
    drawn: Drawn,
    known: Sequence[str],
    unknown: Sequence[str],
    rules: Rules,
    left_out: Mapping[str, int],
) -> None:
    """Raises UserError when a known class has fewer than `min_per_class` test samples, or there
    is no unknown one although some were asked for. The message has the reasons in `left_out`."""
    reasons = sorted(left_out.items(), key=lambda item: -item[1])
    listed = "".join(f"\n  {n} x {reason}" for reason, n in reasons) or " nothing"
    other_unit = "--unit crop, " if rules.unit == "image" else "a smaller --min_side, "
    mend = (
        f"Take a larger --split, {other_unit}looser shares or other classes. Left out were:"
        + listed
    )
    few = {name: n for name in known if (n := drawn.count(name, "test")) < rules.least}
    if few:
        counts = ", ".join(f"{name} {n}" for name, n in few.items())
        broken = "".join(f"; no use: {problem}" for problem in drawn.problems[:1])
        raise UserError(
            f"too few test samples of known classes (at least {rules.least} of each, "
            f"--min_per_class): {counts}{broken}. {mend}"
        )
    if rules.unknown_total != 0 and not any(drawn.count(name, "test") for name in unknown):
        raise UserError(
            "no picture of an unknown class can be used: an unknown sample shows no known class at "
            f"all. --unknown_total 0 when all unknown pictures are your own. {mend}"
        )


def rules_in_words(rules: Rules, n_known: int, n_unknown: int) -> list[str]:
    """The rules as sentences, for the console and the report."""
    if rules.unit == "image":
        unit = (
            "A sample is a whole picture. Its label is its largest object (by mask area, crowds "
            f"apart), which covers at least {rules.min_area_share:g} of it; no other class, with "
            f"its crowds, covers more than {rules.max_other_share:g}."
        )
    else:
        unit = (
            f"A sample is one object's box, enlarged by {rules.context:g} of its sides on each "
            f"side and clipped to the picture; its shorter side has {rules.min_side} pixels or "
            "more. Of a picture and class it is the largest that will do, never a crowd. Boxes of "
            f"no other class cover more than {rules.max_other_share:g} of the crop."
        )
    kept = "may show unknown ones within that share" if rules.mixed == "keep" else "show none"
    totals, each = unknown_numbers(rules, n_known, n_unknown)
    limit = "" if each["test"] is None else f", at most {each['test']} of each"
    unknown = f"{totals['test']} unknown ones, the unknown classes in turn{limit}"
    return [
        unit,
        f"Unknown samples show no known class at all; a crowd counts. Known samples {kept}.",
        f"Test part: {rules.n_per_class} of each known class, {unknown}. Validation part, for "
        f"thresholds: {rules.validation_per_class} of each known class, unknown ones in "
        "proportion.",
        f"Seed {rules.seed} orders the pictures of a class. No picture is in both parts.",
    ]
