"""Draws the toy world.

    python -m shared.toy_world                                   # data/toy/vqav2
    python -m shared.toy_world all                               # every set, below data/toy
    python -m shared.toy_world llava pope --redraw               # even if they are up to date
    python -m shared.toy_world --committed_samples blip2_qlora   # the small samples under git

Prints what there is, for VQAv2 with the blind baseline of the set.
"""

import argparse
import json
import sys
from pathlib import Path

from shared.options import DATA_ROOT, UserError

SETS = ("vqav2", "llava", "pope", "scienceqa", "gqa", "textvqa", "coco")
FOLDERS = {"coco": "coco2017"}  # below data/toy, where it is not the set's name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m shared.toy_world",
        description="Draws the toy world (synthetic pictures in official dataset layouts).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "sets",
        nargs="*",
        metavar="SET",
        help=f"{', '.join(SETS)} or all; vqav2 when none is given",
    )
    parser.add_argument("--root", type=Path, help="folder of the one set that is drawn")
    parser.add_argument("--redraw", action="store_true", help="even if it is up to date")
    parser.add_argument(
        "--committed_samples",
        type=Path,
        metavar="FOLDER",
        help="write baseline_images/ and data/tiny/ under FOLDER instead",
    )
    options = parser.parse_args(arguments)
    names = SETS if "all" in options.sets else tuple(options.sets) or ("vqav2",)
    for name in names:
        if name not in SETS:
            parser.error(f"{name} is none of the sets: {', '.join(SETS)}, all")
    if options.root and len(names) > 1:
        parser.error("--root is the folder of one set; give one set with it")

    from shared.toy_world.build import read_manifest
    from shared.toy_world.samples import write_committed_samples

    try:
        if options.committed_samples:
            write_committed_samples(options.committed_samples)
            print(f"Wrote baseline_images/ and data/tiny/ under {options.committed_samples}")
            return 0
        for name in names:
            root = options.root or DATA_ROOT / "toy" / FOLDERS.get(name, name)
            draw_set(name, root, options.redraw)
            print(f"{root}: {json.dumps(read_manifest(root), ensure_ascii=False)}")
            if name == "vqav2":
                print_blind_baseline(root)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def draw_set(name: str, root: Path, redraw: bool = False) -> Path:
    """One of SETS at `root`, drawn where it is missing or stale."""
    from shared.toy_world import benchmarks
    from shared.toy_world.build import ensure_vqav2
    from shared.toy_world.coco import ensure_coco
    from shared.toy_world.conversations import ensure_llava

    ensure = {
        "vqav2": ensure_vqav2,
        "llava": ensure_llava,
        "pope": benchmarks.ensure_pope,
        "scienceqa": benchmarks.ensure_scienceqa,
        "gqa": benchmarks.ensure_gqa,
        "textvqa": benchmarks.ensure_textvqa,
        "coco": ensure_coco,
    }[name]
    return ensure(root, redraw=redraw)


def print_blind_baseline(root: Path) -> None:
    from shared.blind import blind_baseline

    train, val = (
        json.loads((root / f"v2_mscoco_{split}_annotations.json").read_text("utf-8"))["annotations"]
        for split in ("train2014", "val2014")
    )
    blind = blind_baseline(train, val)
    print(f"Blind baseline (commonest train answer per question type): {blind:.1%}")


if __name__ == "__main__":
    sys.exit(main())
