"""How long search in an index of 100,000 pictures takes, exact, on the machine's CPU.

Draws unit vectors (seeded), writes them as an index's .npy, and times `lavis_apps.index.nearest`
over the memory-mapped file, for one query and for 16 at once, the 24 best each. Beside it, on the
same vectors held in memory, what LAVIS' search page does: the products in torch, all of them sorted
(https://github.com/salesforce/LAVIS/blob/main/app/multimodal_search.py; it also normalises all
features at every query, which is left out here), and that in plain Python. The two orders must be
the same, else it ends with an error. Encoding the query is not in it.

    python benchmarks/index_search.py
    python benchmarks/index_search.py | tee benchmarks/results/index_search_$(date +%F).json

Reads nothing; prints one JSON line, in milliseconds: median and best of the repetitions, and the
mean of processor time over all threads. Where median and best are far apart, the machine was busy
with something else, and the processor time, from which the ratios are, says more.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis_apps.index import nearest


def unit_vectors(n: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def full_sort(vectors: torch.Tensor, query: torch.Tensor, n: int) -> list[int]:
    """LAVIS' page: every product, every one of them sorted."""
    return torch.argsort(vectors @ query, descending=True)[:n].tolist()


def python_sort(vectors: list[list[float]], query: list[float], n: int) -> list[int]:
    scores = [sum(a * b for a, b in zip(v, query, strict=True)) for v in vectors]
    return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:n]


def timed(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Milliseconds of a call, after one that is not counted."""
    call()
    taken = []
    started_cpu = time.process_time()
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    cpu = 1000 * (time.process_time() - started_cpu) / repeats
    figures = {"median": statistics.median(taken), "best": min(taken), "cpu": cpu}
    return {name: round(value, 2) for name, value in figures.items()}


def machine() -> str:
    """Processor and system, for the record."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, " + (
        f"{platform.system()} {platform.machine()}, no GPU used"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256, help="of a vector; 256 is BLIP's")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--n", type=int, default=24, help="hits a query")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    drawn = unit_vectors(options.pictures, options.width, options.seed)
    queries = unit_vectors(options.queries, options.width, options.seed + 1)
    in_torch, torch_queries = torch.from_numpy(drawn), torch.from_numpy(queries)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        np.save(file, drawn)
        mapped = np.load(file, mmap_mode="r")
        one = timed(lambda: nearest(mapped, queries[:1], options.n), options.repeats)
        many = timed(lambda: nearest(mapped, queries, options.n), options.repeats)
        found, _ = nearest(mapped, queries, options.n)
    sort_one = timed(lambda: full_sort(in_torch, torch_queries[0], options.n), options.repeats)
    sort_many = timed(
        lambda: [full_sort(in_torch, query, options.n) for query in torch_queries], options.repeats
    )
    rows, first = drawn.tolist(), queries[0].tolist()
    started_cpu = time.process_time()
    in_python = python_sort(rows, first, options.n)
    python_one = 1000 * (time.process_time() - started_cpu)
    if in_python != found[0].tolist():
        raise SystemExit("the two searches don't find the same pictures in the same order")
    print(
        json.dumps(
            {
                "benchmark": "index_search",
                "one_query_ms": one,
                f"{options.queries}_queries_ms": many,
                "full_sort_one_query_ms": sort_one,
                f"full_sort_{options.queries}_queries_ms": sort_many,
                "python_one_query_cpu_ms": round(python_one, 1),
                "full_sort_over_ours": round(sort_one["cpu"] / one["cpu"], 2),
                "full_sort_over_ours_many": round(sort_many["cpu"] / many["cpu"], 2),
                "pictures": options.pictures,
                "width": options.width,
                "hits": options.n,
                "repeats": options.repeats,
                "seed": options.seed,
                "threads": torch.get_num_threads(),
                "machine": machine(),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "torch": torch.__version__,
                "date": datetime.date.today().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
