"""A saved split of COCO 2017 into known and unknown classes, for `evaluate.py`.

Known classes by a list (the course's twelve) or so many drawn by the seed; samples are whole
pictures with one evident main object, or crops; a validation part from other pictures is for
thresholds. `splitting.py` states every rule, `--dry_run` prints them with the counts.

    python llava_openset/make_known_from_coco.py                         # val2017, 12 classes
    python llava_openset/make_known_from_coco.py --split train2017       # as the course drew
    python llava_openset/make_known_from_coco.py --known_count 20 --unit crop \
        --output_dir outputs/llava_openset/split_20_60
    python llava_openset/make_known_from_coco.py --toy                   # drawn shapes, seconds

Reads the instances file and its pictures below --data_root. Writes --output_dir, whole or not at
all: known_images/, known_meta.csv, known_classes.txt, unknown_images/, unknown_meta.csv,
split.json. Whole pictures are copied as they are, crops are PNG.
"""

from __future__ import annotations

from pathlib import Path

from llava_openset.split_settings import SplitOptions, prepare_toy_data, toy_defaults
from llava_openset.split_writing import Plan, draw_samples, make_split, plan_split
from llava_openset.splitting import PARTS, Drawn, rules_in_words
from shared.options import guarded, parse_options

SHOWN_PROBLEMS = 10


def main() -> None:
    options = parse_options(
        SplitOptions,
        description="a saved, seeded split of COCO 2017 into known and unknown classes",
        toy_defaults=toy_defaults(),
        prepare_toy=prepare_toy_data,
    )
    print(f"reading {options.places()[0]}", flush=True)
    if options.dry_run:
        plan = plan_split(options)
        drawn = draw_samples(plan, decode=False)
        print_counts(plan, drawn)
        print("dry run: nothing was written")
        return
    plan, drawn, split = make_split(options)
    print_counts(plan, drawn)
    for caveat in split.caveats:
        print(f"note: {caveat}")
    print(f"{len(split.samples)} samples in {Path(options.output_dir)}, data {split.data_hash}")


def print_counts(plan: Plan, drawn: Drawn) -> None:
    """The rules, how many samples a class has, and what was left out."""
    print(f"{len(plan.instances.images)} pictures; the rules:")
    for sentence in rules_in_words(plan.rules, len(plan.known), len(plan.unknown)):
        print(f"  {sentence}")
    width = max(map(len, (*plan.known, *plan.unknown)))
    print(f"{'':{width}}  {'':7}  validation  test  candidates")
    for kind, names in (("known", plan.known), ("unknown", plan.unknown)):
        for name in names:
            candidates = len(plan.queues[name])
            if kind == "known" or candidates:
                validation, test = (drawn.count(name, part) for part in PARTS)
                print(f"{name:{width}}  {kind:7}  {validation:10}  {test:4}  {candidates:10}")
    none = [name for name in plan.unknown if not plan.queues[name]]
    if none:
        print(f"unknown classes without a candidate: {', '.join(none)}")
    known = set(plan.known)
    for kind, wanted in (("known", True), ("unknown", False)):
        of_kind = [s for s in drawn.samples if (s.label in known) == wanted]
        n_test = sum(s.part == "test" for s in of_kind)
        print(f"{kind}: {len(of_kind) - n_test} validation and {n_test} test samples")
    for reason, n in plan.left_out.items():
        print(f"left out: {n:6}  {reason}")
    problems = list(dict.fromkeys(drawn.problems))
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"passed over, the next one taken: {problem}")
    if len(problems) > SHOWN_PROBLEMS:
        print(f"passed over: {len(problems) - SHOWN_PROBLEMS} more pictures")


if __name__ == "__main__":
    guarded(main)
