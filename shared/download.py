"""Fetch data sets and models to the places where the scripts look for them.

    python -m shared.download vqav2 --limit 1000          questions, the default sample's pictures
    python -m shared.download vqav2                       train and val whole (20 GB)
    python -m shared.download coco2014 coco2017 --dry_run   sizes, time and places only
    python -m shared.download blip2-opt-2.7b              a model by its short name or Hub id
    python -m shared.download vqav2 --from ~/Downloads    files fetched by hand, without a network
    python -m shared.download gqa                         not fetched here: prints the commands

Sizes come first, an interrupted download continues with the same command, checksums are compared
where somebody published them. Reads shared/datasets_index.json; writes data/vqav2, data/coco2017
and data/models/<org>/<name>/ as data/README.md shows. HF_ENDPOINT names another model server.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import hub_models
from shared.datasets_index import (
    Archive,
    Pictures,
    in_place,
    load_index,
    picture_count,
    sample_pictures,
)
from shared.fetch import (
    BrokenFileError,
    FetchError,
    UnreachableError,
    check_file,
    check_free_space,
    disk_error,
    fetch,
    free_bytes,
    human_size,
    link_or_copy,
    open_session,
    unpack,
)
from shared.options import DATA_ROOT, UserError, guarded, portable_path, read_json

PICTURE_WORKERS = 8  # single pictures are small: the time goes into round trips
SPEEDS = (10e6, 1e6)  # bytes a second, for the time that is shown beforehand


@dataclass
class Plan:
    """What one data set still needs: whole archives, and folders with only a sample's pictures."""

    dataset: str
    title: str
    root: Path
    command: str
    archives: list[Archive] = field(default_factory=list)
    samples: list[Archive] = field(default_factory=list)
    ready: list[Archive] = field(default_factory=list)
    limit: int = 0
    seed: int = 0
    sampled: dict[str, list[str]] = field(default_factory=dict)  # picture folder -> file names

    def absent_pictures(self, archive: Archive) -> list[str] | None:
        """Those of the sample that are not here; None while the question files are not here."""
        folder = archive.pictures.folder
        if folder not in self.sampled:
            if not all((self.root / name).is_file() for a in self.archives for name in a.files):
                return None
            self.sampled[folder] = sample_pictures(
                self.root, archive.pictures, self.limit, self.seed
            )
        return [n for n in self.sampled[folder] if not (self.root / folder / n).is_file()]


def make_plan(index: Mapping[str, Any], dataset: str, options: argparse.Namespace) -> Plan:
    """What to fetch for `dataset`. Raises UserError for a split that it does not have."""
    entry = index["datasets"][dataset]
    splits = options.splits or (
        ["val"] if options.limit else [s for s in entry["splits"] if s != "test"]
    )
    unknown = [split for split in splits if split not in entry["splits"]]
    if unknown:
        raise UserError(f"{dataset} has no split {unknown[0]}; it has {', '.join(entry['splits'])}")
    root = Path(options.data_root) if options.data_root else DATA_ROOT / entry["folder"]
    command = f"python -m shared.download {dataset}"
    for flag in ("limit", "seed", "splits", "data_root"):
        value = getattr(options, flag)
        if value:
            values = value if isinstance(value, list) else [value]
            command += f" --{flag} " + " ".join(shlex.quote(str(v)) for v in values)
    plan = Plan(dataset, entry["title"], root, command, limit=options.limit, seed=options.seed)
    for name in dict.fromkeys(name for split in splits for name in entry["splits"][split]):
        archive = index["archives"][name]
        if in_place(archive, root):
            plan.ready.append(archive)
        elif archive.pictures and options.limit:
            plan.samples.append(archive)
        else:
            plan.archives.append(archive)
    return plan


def sample_bytes(plan: Plan, archive: Archive) -> int:
    """About what the sample's pictures weigh; one a question while the questions are not known."""
    absent = plan.absent_pictures(archive)
    count = min(plan.limit, archive.pictures.count) if absent is None else len(absent)
    return round(archive.bytes / archive.pictures.count * count)


def print_plan(plan: Plan, with_time: bool) -> None:
    print(f"{plan.title}\n-> {portable_path(plan.root)}, {human_size(free_bytes(plan.root))} free")
    for archive in plan.ready:
        print(f"  {archive.name:32} in place")
    for archive in plan.archives:
        about = "about " if archive.approximate else ""
        have = begun_bytes(plan, archive)
        begun = f", {human_size(have)} already here" if have else ""
        print(
            f"  {archive.name:32} {about}{human_size(archive.bytes)}{begun}"
            f" -> {', '.join(archive.contents)}"
        )
    for archive in plan.samples:
        weight = sample_bytes(plan, archive)
        state = (
            f"about {human_size(weight)} -> {archive.pictures.folder}/" if weight else "in place"
        )
        print(f"  pictures of {plan.limit:,} questions (seed {plan.seed}): {state}")
    total = download_bytes(plan)
    if total and with_time:
        times = ", ".join(f"{human_time(total / s)} at {human_size(s)}/s" for s in SPEEDS)
        room = human_size(disk_bytes(plan))
        print(f"  to fetch: {human_size(total)} ({times}); needs {room} of disk")


def begun_bytes(plan: Plan, archive: Archive) -> int:
    """What an earlier start left of an archive."""
    folder = plan.root / "downloads"
    files = [folder / archive.name, folder / f"{archive.name}.part"]
    return sum(f.stat().st_size for f in files if f.is_file())


def download_bytes(plan: Plan) -> int:
    whole = sum(max(0, a.bytes - begun_bytes(plan, a)) for a in plan.archives)
    return whole + sum(sample_bytes(plan, a) for a in plan.samples)


def disk_bytes(plan: Plan) -> int:
    """The peak: everything unpacked, and one archive (the largest) beside what came out of it."""
    unpacked = sum(a.unpacked_bytes for a in plan.archives)
    largest = max((a.bytes for a in plan.archives), default=0)
    begun = sum(begun_bytes(plan, a) for a in plan.archives)
    return max(0, unpacked + largest - begun) + sum(sample_bytes(plan, a) for a in plan.samples)


def human_time(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"


def run_plan(plan: Plan) -> None:
    """Fetch what is missing. Raises UserError; without a network it says what belongs where."""
    if not plan.archives and not plan.samples:
        return
    check_free_space(plan.root, disk_bytes(plan), plan.dataset)
    session = open_session()
    try:
        for archive in plan.archives:
            fetch_archive(session, archive, plan.root)
        for archive in plan.samples:
            absent = plan.absent_pictures(archive)
            if absent:
                fetch_pictures(session, plan.root, archive.pictures, absent)
    except UnreachableError as error:
        raise UserError(f"{error}\n{by_hand(plan)}") from error


def fetch_archive(session: Any, archive: Archive, root: Path) -> None:
    """Download, check, unpack, delete the archive."""
    target = root / "downloads" / archive.name
    if not target.is_file():  # else it was checked when it got its name, and unpacking broke off
        fetch(session, archive.urls, target, size=archive.exact_bytes, sha256=archive.sha256)
    try:
        unpack(target, root, expected=archive.contents, tested=archive.sha256 is not None)
    except BrokenFileError as error:
        target.unlink()
        raise BrokenFileError(f"{error}\n  It was deleted: give the same command again.") from error
    target.unlink()
    if not any(target.parent.iterdir()):
        target.parent.rmdir()


def fetch_pictures(session: Any, root: Path, pictures: Pictures, missing: Sequence[str]) -> None:
    """Single pictures, several at a time; each is decoded before it gets its name.

    Raises UserError naming the pictures that did not come, after all others did.
    """
    from tqdm import tqdm

    from shared.images import open_image

    folder = root / pictures.folder
    failed: list[str] = []
    pool = ThreadPoolExecutor(PICTURE_WORKERS)
    try:
        tasks = [
            pool.submit(
                fetch, session, [pictures.url + n], folder / n, check=open_image, show=False
            )
            for n in missing
        ]
        quiet = 0.5 if sys.stderr.isatty() else 30
        for task in tqdm(as_completed(tasks), "pictures", len(tasks), unit="", mininterval=quiet):
            try:
                task.result()
            except (FetchError, BrokenFileError) as error:
                failed.append(str(error).splitlines()[0])
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(missing)} pictures did not come; the same command tries them "
            "again:\n  " + "\n  ".join(sorted(failed)[:10])
        )


def by_hand(plan: Plan) -> str:
    """Which file belongs where, and from where else it may come."""
    lines = [
        "When the network is back, the same command goes on. Without one: fetch these files on "
        "another machine, or through a mirror or netdisk:"
    ]
    for archive in [a for a in plan.archives if not in_place(a, plan.root)]:
        lines.append(f"  {archive.name} ({human_size(archive.bytes)})")
        lines += [f"    from {url}" for url in archive.urls]
        lines.append(f"    goes to {', '.join(str(plan.root / c) for c in archive.contents)}")
    for archive in plan.samples:
        pictures = archive.pictures
        lines.append(
            f"  the pictures of {plan.limit} questions, singly from {pictures.url}, or all of "
            f"them: {archive.name} ({human_size(archive.bytes)}) from {archive.urls[0]}"
        )
        lines.append(f"    go to {plan.root / pictures.folder}/")
    lines.append(
        "Then, with FOLDER on this machine (zip files, or what was in them, anywhere in it):"
    )
    lines.append(f"  {plan.command} --from FOLDER")
    return "\n".join(lines)


def place_plan(plan: Plan, folder: Path) -> None:
    """Check files fetched by hand, then unpack or link them to their places.

    Raises BrokenFileError at the first wrong file, UserError when something is still missing.
    """
    files, loose = scan(folder, [*plan.archives, *plan.samples])
    for archive in [*plan.archives, *plan.samples]:
        names = None
        if archive.name in files:
            print(f"  {archive.name}: checking and unpacking {files[archive.name]}")
            unpack_by_hand(archive, files[archive.name], plan.root)
            continue
        for name, expected in archive.files.items():
            if Path(name).name in files:
                source = files[Path(name).name]
                check_json(source, expected["key"], expected.get("rows"))
                link_or_copy(source, plan.root / name)
                print(f"  {name}: from {source}")
        if archive.pictures:
            if archive in plan.samples:
                names = plan.absent_pictures(archive) or []
            link_pictures(plan.root, archive.pictures, loose[archive.pictures.folder], names)
    missing = still_missing(plan)
    if missing:
        raise UserError(
            f"not in {folder}, and still missing in {plan.root}:\n  "
            + "\n  ".join(missing)
            + "\nAdd them and give the same command again, or choose what you need with --splits."
        )


def scan(
    folder: Path, archives: Sequence[Archive]
) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """Wanted files by name, and pictures by the folder they belong to, anywhere in `folder`."""
    wanted = {a.name for a in archives} | {Path(n).name for a in archives for n in a.files}
    pictures = [a.pictures for a in archives if a.pictures]
    files: dict[str, Path] = {}
    loose: dict[str, dict[str, Path]] = {p.folder: {} for p in pictures}
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name in wanted:
                files.setdefault(name, Path(here, name))
            elif name.endswith(".jpg"):
                for p in pictures:
                    if Path(here).name == p.folder or (p.prefix and name.startswith(p.prefix)):
                        loose[p.folder][name] = Path(here, name)
    return files, loose


def unpack_by_hand(archive: Archive, path: Path, root: Path) -> None:
    try:
        check_file(path, size=archive.exact_bytes, sha256=archive.sha256, name=archive.name)
    except BrokenFileError as error:
        raise BrokenFileError(
            f"{path}: {error}\n  Fetch it again from {archive.urls[0]}. If it was only packed "
            "anew, unpack it yourself and give the folder that holds its files as --from."
        ) from error
    unpack(path, root, expected=archive.contents, tested=archive.sha256 is not None)


def check_json(path: Path, key: str, rows: int | None) -> None:
    """Raise UserError unless the file is an object with a list of the right length under `key`."""
    content = read_json(path)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise BrokenFileError(f"{path}: has no list {key!r}, so it is not the published file")
    if rows is not None and len(found) != rows:
        raise BrokenFileError(f"{path}: {len(found):,} {key}, the published file has {rows:,}")


def link_pictures(
    root: Path, pictures: Pictures, loose: Mapping[str, Path], names: Sequence[str] | None
) -> None:
    """Link pictures into their folder; `names` limits them to a sample. Broken ones are listed."""
    from tqdm import tqdm

    from shared.images import ImageError, header_size

    chosen = loose if names is None else {n: loose[n] for n in names if n in loose}
    broken = []
    for name, source in tqdm(chosen.items(), f"{pictures.folder}/", unit="", disable=not chosen):
        if (root / pictures.folder / name).is_file():
            continue
        try:
            header_size(source)
        except ImageError as error:
            broken.append(str(error))
            continue
        link_or_copy(source, root / pictures.folder / name)
    if broken:
        print(f"  {len(broken)} broken pictures left out:", *broken[:10], sep="\n    ")


def still_missing(plan: Plan) -> list[str]:
    missing = []
    for archive in plan.archives:
        missing += [n for n in archive.files if not (plan.root / n).is_file()]
        if archive.pictures:
            have, need = picture_count(plan.root / archive.pictures.folder), archive.pictures.count
            if have < need:
                missing.append(f"{archive.pictures.folder}/: {have:,} of {need:,} pictures")
    for archive in plan.samples:
        folder, absent = archive.pictures.folder, plan.absent_pictures(archive)
        if absent is None:
            missing.append(f"{folder}/: pictures of {plan.limit} questions (chosen from the above)")
        elif absent:
            missing.append(
                f"{folder}/: {len(absent):,} of the sample's {len(plan.sampled[folder]):,} pictures"
                f", such as {absent[0]}"
            )
    return missing


def resolve_targets(index: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """("dataset", name) or ("model", Hub id) for each name; UserError suggests the nearest one.

    For a data set that comes by other programs the error says which commands fetch it.
    """
    known = {alias: entry["id"] for alias, entry in index["models"].items()}
    resolved = []
    for name in names:
        if name in index["by_hand"]:
            raise UserError(index["by_hand"][name].how_to())
        if name in index["datasets"]:
            resolved.append(("dataset", name))
        elif name in known or hub_models.is_hub_id(name):
            resolved.append(("model", known.get(name, name)))
        else:
            choices = [*index["datasets"], *index["by_hand"], *known, *known.values()]
            near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(choices)}"
            raise UserError(f"{name}: no data set and no model of that name; {hint}")
    return resolved


def parse_arguments(argv: Sequence[str] | None, index: Mapping[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shared.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(index['datasets'])}, {', '.join(index['models'])}, or a Hub id ORG/NAME; "
        f"{', '.join(index['by_hand'])}: prints the commands that fetch it",
    )
    parser.add_argument("--dry_run", action="store_true", help="show sizes, time and places, stop")
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="vqav2: only the pictures of the N questions that evaluate.py --limit N asks",
    )
    parser.add_argument("--seed", type=int, default=0, help="of that sample (default 0)")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "val", "test"),
        help="default: train val; with --limit: val",
    )
    parser.add_argument(
        "--from", dest="from_folder", metavar="FOLDER", help="take files fetched by hand from here"
    )
    parser.add_argument(
        "--data_root",
        metavar="FOLDER",
        help="put the data set there (give the scripts the same --data_root)",
    )
    parser.add_argument("--revision", help="model: branch, tag or commit (default main)")
    options = parser.parse_args(argv)
    if options.limit < 0:
        parser.error("--limit must be positive")
    if options.from_folder and not Path(options.from_folder).is_dir():
        parser.error(f"--from {options.from_folder}: there is no such folder")
    return options


def check_combination(index: Mapping[str, Any], options: argparse.Namespace, targets: list) -> None:
    """Raise UserError for options that don't belong to what is fetched."""
    datasets = [name for kind, name in targets if kind == "dataset"]
    if options.limit and datasets != ["vqav2"]:
        raise UserError("--limit is a sample of VQAv2 questions: use it with vqav2 alone")
    if options.data_root and len(datasets) < len(targets):
        raise UserError(
            "--data_root is for data sets; a model goes to data/models, where the scripts look for "
            "it. For another disk make data/models a link to a folder there."
        )
    if options.data_root and len({index["datasets"][d]["folder"] for d in datasets}) > 1:
        raise UserError("--data_root: these data sets have different places; fetch them one by one")
    if options.revision and datasets:
        raise UserError("--revision is for models; the data sets have one version")


def main(argv: Sequence[str] | None = None) -> None:
    index = load_index()
    options = parse_arguments(argv, index)
    targets = resolve_targets(index, options.targets)
    check_combination(index, options, targets)
    try:
        get_targets(index, options, targets)
    except OSError as error:
        raise disk_error(error, Path(options.data_root or DATA_ROOT)) from error
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: make setup") from error


def get_targets(
    index: Mapping[str, Any], options: argparse.Namespace, targets: Sequence[tuple[str, str]]
) -> None:
    for kind, name in targets:
        if kind == "model":
            sizes = {entry["id"]: entry["bytes"] for entry in index["models"].values()}
            hub_models.get_model(
                name,
                revision=options.revision,
                from_folder=Path(options.from_folder) if options.from_folder else None,
                dry_run=options.dry_run,
                known=sizes,
            )
            continue
        plan = make_plan(index, name, options)
        print_plan(plan, with_time=not options.from_folder)
        if options.dry_run:
            continue
        if options.from_folder:
            place_plan(plan, Path(options.from_folder))
        else:
            run_plan(plan)
        print(f"{name}: what was asked for is in {portable_path(plan.root)}")


if __name__ == "__main__":
    guarded(main)
