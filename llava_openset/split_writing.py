"""Makes the folder of a split: pictures or crops, the course's lists, and `split.json`.

The folder appears whole or not at all, and never in the place of something else: see
`make_split`. `splitting.py` has the rules, `samples.py` reads the folder.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_openset.samples import SPLIT_FILE, VERSION, Split, read_split
from llava_openset.split_settings import (
    TOY_SPLIT,
    SplitOptions,
    prepare_toy_data,
    toy_defaults,
)
from llava_openset.splitting import (
    COURSE_CLASSES,
    Candidate,
    Drawn,
    Rules,
    check_enough,
    choose_known,
    draw,
    find_candidates,
)
from shared.coco import ImageEntry, Instances, read_instances
from shared.images import ImageError, header_size, open_image
from shared.options import (
    MissingError,
    UserError,
    differences,
    manifest_value,
    portable_path,
    read_json,
    write_json,
)

LISTED_PROBLEMS = 50
TRAINING_CAVEAT = (
    "LLaVA-1.5 and BLIP-2 were trained on COCO's pictures, and Qwen-VL is to be taken as having "
    "seen them: unknown means outside the given list, not never seen."
)
META_COLUMNS = (
    "filename", "label", "part", "sample_id", "image_id", "annotation_id", "x", "y", "width",
    "height", "present",
)  # fmt: skip


@dataclass
class Plan:
    """What a split will be made of: classes, candidates in the order of drawing, what is left."""

    rules: Rules
    annotations: Path
    images_root: Path
    instances: Instances
    known: list[str]
    unknown: list[str]
    queues: dict[str, list[Candidate]]
    left_out: Counter[str]

    def picture(self, candidate: Candidate) -> Path:
        return self.images_root / self.instances.images[candidate.image_id].file_name


def plan_split(options: SplitOptions) -> Plan:
    """Reads the annotations and finds the candidates. Raises UserError for wrong classes."""
    rules = options.rules()
    annotations, images_root = options.places()
    instances = read_instances(annotations)
    left_out: Counter[str] = Counter()
    names = [c.name for c in instances.categories.values() if not c.stuff]
    if options.known_count:
        known, passed_over = choose_known(instances, options.known_count, rules)
        for name in passed_over:
            left_out[f"{name} passed over as known: too few pictures"] = 1
    else:
        known = _listed("--known_classes", options.known_classes or COURSE_CLASSES, names)
    unknown = (
        _listed("--unknown_classes", options.unknown_classes, names)
        if options.unknown_classes
        else [name for name in names if name not in known]
    )
    both = sorted(set(known) & set(unknown))
    if both:
        raise UserError(f"{', '.join(both)}: on both lists, of known and of unknown classes")
    queues, reasons = find_candidates(instances, set(known), set(unknown), rules)
    left_out.update(reasons)
    return Plan(rules, annotations, images_root, instances, known, unknown, queues, left_out)


def _listed(flag: str, given: Sequence[str], names: Sequence[str]) -> list[str]:
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            some = f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
            hint = f"did you mean {near[0]!r}?" if near else f"it has {len(names)}: {some}"
            raise UserError(f"{flag}: the file has no class of objects named {name!r}; {hint}")
    twice = [name for name, n in Counter(given).items() if n > 1]
    if twice:
        raise UserError(f"{flag}: {twice[0]} stands twice")
    return list(given)


def draw_samples(plan: Plan, *, decode: bool) -> Drawn:
    """The split's samples, each with a picture that is there; with `decode` a whole one too.

    Raises UserError when a class has too few, and MissingError when no picture is there at all.
    """
    if not plan.images_root.is_dir():
        raise MissingError(
            f"{plan.images_root}: no such folder; it has the pictures of {plan.annotations.name}. "
            "python -m shared.download coco2017 --splits val (or train) fetches both"
        )
    drawn = draw(
        plan.queues,
        plan.known,
        plan.unknown,
        plan.rules,
        lambda candidate: picture_problem(
            plan.picture(candidate), plan.instances.images[candidate.image_id], decode
        ),
    )
    check_enough(drawn, plan.known, plan.unknown, plan.rules, plan.left_out)
    if drawn.problems:
        plan.left_out["picture missing or broken"] = len(set(drawn.problems))
    for (name, part), n in drawn.missing.items():
        plan.left_out[f"{name}: {part} samples that could not be had"] = n
    return drawn


def picture_problem(path: Path, entry: ImageEntry, decode: bool) -> str:
    """What keeps a picture from being used, "" if nothing does; without `decode` by its header."""
    try:
        size = open_image(path).size if decode else header_size(path)
    except ImageError as error:
        return str(error)
    if size != (entry.width, entry.height):
        return (
            f"{path}: {size[0]}x{size[1]} pixels, {entry.width}x{entry.height} in the annotations"
        )
    return ""


def make_split(options: SplitOptions) -> tuple[Plan, Drawn, Split]:
    """Writes `options.output_dir`, which is replaced only where it is a split by the same rules."""
    folder = Path(options.output_dir)
    plan = plan_split(options)
    content = split_content(plan)
    check_replaceable(folder, content)
    drawn = draw_samples(plan, decode=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        write_files(temporary, plan, drawn, content)
        temporary.chmod(0o755)  # mkdtemp makes it readable by its owner only
        put_in_place(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return plan, drawn, read_split(folder)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Renames a finished split to `folder`; what stood there comes back when that fails."""
    old = temporary.with_name(temporary.name + "-old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def split_content(plan: Plan) -> dict[str, Any]:
    """`split.json` before the samples: what it was made from and by which rules."""
    root = plan.images_root.parent
    synthetic = bool(manifest_value(root, "synthetic"))
    rules = asdict(plan.rules)
    seed = rules.pop("seed")
    return {
        "version": VERSION,
        "synthetic": synthetic,
        "seed": seed,
        "rules": {
            **rules,
            "annotations": portable_path(plan.annotations),
            "images_root": portable_path(plan.images_root),
            "source_data_hash": manifest_value(root, "data_hash"),
        },
        "classes": {"known": plan.known, "unknown": plan.unknown},
        "caveats": caveats(plan, synthetic),
    }


def caveats(plan: Plan, synthetic: bool) -> list[str]:
    """What is to be said of every figure on this split."""
    held_back = manifest_value(plan.images_root.parent, "held_back_shapes") or []
    learned = [name for name in plan.unknown if name not in held_back]
    first = (
        "Synthetic pictures: the figures say nothing about real models. "
        + (
            f"The toy models have learned these unknown classes: {', '.join(learned)}."
            if learned
            else "The unknown classes are shapes that no toy model has learned."
        )
        if synthetic
        else TRAINING_CAVEAT
    )
    said = [first]
    if plan.rules.validation_per_class and plan.unknown:
        said.append(
            "Validation and test part have the same unknown classes, so a threshold has seen "
            "their kind, though never their pictures."
        )
    if not synthetic:
        said.append("An object of a class that nobody annotated may be in a picture all the same.")
    if plan.rules.unit == "crop":
        said.append("What a crop shows besides its object is told by boxes, not by masks.")
    return said


def check_replaceable(folder: Path, content: Mapping[str, Any]) -> None:
    """Raises UserError when something stands there that is not this split, perhaps redrawn."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / SPLIT_FILE).is_file():
        raise UserError(f"{folder} exists and holds no split: give another --output_dir")
    there = read_json(folder / SPLIT_FILE)
    if not isinstance(there, dict):
        raise UserError(f"{folder / SPLIT_FILE}: not a split: give another --output_dir")
    compared = []
    for version in (there, json.loads(json.dumps(content))):
        rules = version.get("rules")
        rules = dict(rules) if isinstance(rules, dict) else {}
        rules.pop("source_data_hash", None)
        compared.append(
            {"rules": rules, "seed": version.get("seed"), "classes": version.get("classes")}
        )
    differing = differences(*compared)
    if differing:
        raise UserError(
            f"{folder} holds a split by other rules ({'; '.join(differing)}). Give another "
            "--output_dir, or delete that folder."
        )


def write_files(folder: Path, plan: Plan, drawn: Drawn, content: Mapping[str, Any]) -> None:
    """Everything of the split into an empty folder, `split.json` last."""
    known = set(plan.known)
    digest = hashlib.sha256()
    rows: dict[str, list[list[object]]] = {"known": [], "unknown": []}
    samples: list[dict[str, Any]] = []
    for kind in rows:
        (folder / f"{kind}_images").mkdir()
    for candidate in drawn.samples:
        kind = "known" if candidate.label in known else "unknown"
        data, name = picture_file(plan.picture(candidate), candidate)
        (folder / f"{kind}_images" / name).write_bytes(data)
        sample = {
            "sample_id": candidate.sample_id,
            "file": f"{kind}_images/{name}",
            "label": candidate.label,
            "known": candidate.label in known,
            "part": candidate.part,
            "image_id": candidate.image_id,
            "box": None if candidate.box is None else list(candidate.box),
            "present": list(candidate.present),
        }
        samples.append(sample)
        digest.update(json.dumps(sample, sort_keys=True).encode())
        digest.update(hashlib.sha256(data).digest())
        rows[kind].append(
            [name, candidate.label, candidate.part, candidate.sample_id, candidate.image_id,
             candidate.annotation_id, *(candidate.box or ("", "", "", "")),
             ";".join(candidate.present)]
        )  # fmt: skip
    for kind, lines in rows.items():
        with (folder / f"{kind}_meta.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([META_COLUMNS, *lines])
    names = "".join(f"{name}\n" for name in plan.known)
    (folder / "known_classes.txt").write_text(names, encoding="utf-8")
    write_json(
        folder / SPLIT_FILE,
        {
            **content,
            "samples": samples,
            "left_out": dict(plan.left_out),
            "problems": list(dict.fromkeys(drawn.problems))[:LISTED_PROBLEMS],
            "data_hash": digest.hexdigest()[:16],
        },
    )


def picture_file(path: Path, candidate: Candidate) -> tuple[bytes, str]:
    """A sample's file: the picture as it is, or its crop as PNG, so that nothing is lost."""
    if candidate.box is None:
        return path.read_bytes(), f"{candidate.image_id:012d}{path.suffix.lower()}"
    x, y, width, height = map(int, candidate.box)
    buffer = io.BytesIO()
    open_image(path).crop((x, y, x + width, y + height)).save(buffer, "PNG")
    return buffer.getvalue(), f"{candidate.image_id:012d}_{candidate.annotation_id}.png"


def ensure_toy_split(folder: Path = TOY_SPLIT) -> Path:
    """The toy world's split, made where it is missing or its pictures were drawn anew."""
    prepare_toy_data()
    options = SplitOptions(**{**toy_defaults(), "output_dir": str(folder)})
    if (folder / SPLIT_FILE).is_file():
        source = read_split(folder).rules.get("source_data_hash")
        if source == manifest_value(options.data_root, "data_hash"):
            return folder
    make_split(options)
    return folder
