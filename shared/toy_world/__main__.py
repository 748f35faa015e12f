"""Draws the toy world.

    python -m shared.toy_world                                   # data/toy/vqav2
    python -m shared.toy_world --redraw                          # even if it is up to date
    python -m shared.toy_world --committed_samples blip2_qlora   # the small samples under git

Prints what there is, with the blind baseline of the set.
"""

import argparse
import json
import sys
from pathlib import Path

from shared.options import DATA_ROOT, UserError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m shared.toy_world",
        description="Draws the toy world (synthetic pictures in official dataset layouts).",
        allow_abbrev=False,
    )
    parser.add_argument("--root", type=Path, default=DATA_ROOT / "toy" / "vqav2")
    parser.add_argument("--redraw", action="store_true", help="even if it is up to date")
    parser.add_argument(
        "--committed_samples",
        type=Path,
        metavar="FOLDER",
        help="write baseline_images/ and data/tiny/ under FOLDER instead",
    )
    options = parser.parse_args(arguments)

    from shared.blind import blind_baseline
    from shared.toy_world.build import ensure_vqav2, read_manifest
    from shared.toy_world.samples import write_committed_samples

    try:
        if options.committed_samples:
            write_committed_samples(options.committed_samples)
            print(f"Wrote baseline_images/ and data/tiny/ under {options.committed_samples}")
            return 0
        root = ensure_vqav2(options.root, redraw=options.redraw)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    train, val = (
        json.loads((root / f"v2_mscoco_{split}_annotations.json").read_text("utf-8"))["annotations"]
        for split in ("train2014", "val2014")
    )
    print(f"{root}: {json.dumps(read_manifest(root))}")
    blind = blind_baseline(train, val)
    print(f"Blind baseline (commonest train answer per question type): {blind:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
