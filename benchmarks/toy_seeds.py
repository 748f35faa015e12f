"""The toy QLoRA experiment with three seeds: is the gain the seed's or the method's?

    python benchmarks/toy_seeds.py [--seeds 0 1 2] [--output benchmarks/results/FILE.json]

Runs the quickstart's commands (zero-shot once, then training and evaluation for each seed) over the
whole val split and prints one JSON line: accuracy per seed, paired difference with interval and p,
seconds of training, machine and date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from shared.options import REPO_ROOT
from shared.runs import compare_runs, read_run


def script(name: str, *flags: str) -> None:
    command = [sys.executable, str(REPO_ROOT / "blip2_qlora" / name), "--toy", *flags]
    subprocess.run(command, cwd=REPO_ROOT, check=True, stdout=subprocess.DEVNULL)


def run_seed(out: Path, seed: int) -> dict[str, object]:
    """Train with this seed, evaluate on all of val, compare with the zero-shot run in `out`."""
    training, tuned = out / f"train_{seed}", out / f"tuned_{seed}"
    script("train.py", "--seed", str(seed), "--output_dir", str(training))
    script(
        "evaluate.py", "--quantization", "nf4", "--limit", "0", "--adapter",
        str(training / "adapter"), "--output_dir", str(tuned),
    )  # fmt: skip
    seconds = json.loads((training / "metrics.json").read_text(encoding="utf-8"))
    change = asdict(compare_runs(read_run(out / "zero-shot"), read_run(tuned)))
    return {
        "seed": seed,
        "accuracy": read_run(tuned).metrics["accuracy"],
        "change": {key: change[key] for key in ("difference", "low", "high", "p_value", "n")},
        "training_seconds": seconds["seconds"],
        "training_cpu_seconds": seconds["cpu_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="also write the line to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        zero_shot = out / "zero-shot"
        whole = ("--quantization", "nf4", "--limit", "0")
        script("evaluate.py", *whole, "--output_dir", str(zero_shot))
        shuffled = out / "shuffled"
        script("evaluate.py", *whole, "--pictures", "shuffled", "--output_dir", str(shuffled))
        base = read_run(zero_shot).metrics
        result = {
            "command": "python benchmarks/toy_seeds.py",
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
            "synthetic": True,
            "blind": {key: base["blind"][key] for key in ("value", "low", "high", "n")},
            "zero_shot": base["accuracy"],
            "zero_shot_shuffled_pictures": read_run(shuffled).metrics["accuracy"],
            "seeds": [run_seed(out, seed) for seed in arguments.seeds],
        }
    line = json.dumps(result)
    print(line)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
