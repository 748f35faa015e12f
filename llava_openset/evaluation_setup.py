"""What evaluate.py settles before a model answers: samples, run folder, prompts, the plan.

python llava_openset/evaluate.py --toy --dry_run
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_openset.matching import match_answer
from llava_openset.prompts import PLAIN_FORM, TEMPLATES, VARIANTS, prompt_form, prompt_text
from llava_openset.protocols import CHOICE_PROTOCOLS, Query, names_of, queries
from llava_openset.samples import Sample, Split, read_split
from llava_openset.settings import (
    DEFAULT_MODEL,
    NOT_THE_RUN,
    PROTOCOLS,
    RUNS,
    EvaluateOptions,
    path_or_none,
)
from shared.answering import Job, read_records, shuffle_pictures
from shared.comparison import locate
from shared.images import open_image
from shared.loading import (
    GIB,
    MemoryEstimate,
    adapter_fingerprint,
    fingerprint,
    model_folder,
    pick_device,
    pick_dtype,
    weight_bytes,
)
from shared.options import (
    MissingError,
    UserError,
    manifest_value,
    portable_path,
    read_json,
    resolved_config,
)
from shared.vqav2 import Question

if TYPE_CHECKING:
    from PIL.Image import Image

WORDS_TO_TOKENS = 1.5  # a rough rate, for the memory of a plan


# Samples


def load_samples(options: EvaluateOptions) -> tuple[Split, list[Sample]]:
    """The split, and the samples of this run in its order. Raises UserError, MissingError."""
    split = read_split(
        Path(options.split),
        path_or_none(options.private_images),
        path_or_none(options.private_labels),
        options.private_validation_share,
    )
    try:
        match_answer("", split.classes.known)
    except ValueError as error:  # now, and not when all is answered
        raise UserError(f"{options.split}: its classes cannot be told apart: {error}") from error
    samples = split.part("test") if options.part == "test" else list(split.samples)
    if not any(sample.part == "test" for sample in samples):
        raise UserError(f"{options.split}: no sample in its test part; make the split again")
    chosen = limited(samples, options.limit, options.seed)
    if not any(sample.part == "test" for sample in chosen):
        raise UserError(
            f"--limit {options.limit} takes validation samples only here, and figures are of test "
            "samples: give --limit 3 or more (0 for all)"
        )
    return split, chosen


def limited(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """`limit` samples (0 = all) in their order, taken from the classes and parts in turn, so that
    a small run has some of each."""
    if not 0 < limit < len(samples):
        return list(samples)
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.part, sample.label].append(sample)
    dealer = random.Random(seed)
    for group in groups.values():
        dealer.shuffle(group)
    order = list(groups.values())
    dealer.shuffle(order)
    in_turn = [s for s in chain(*zip_longest(*order)) if s is not None]
    # both parts and both kinds come early, whatever the number of their classes
    kinds: dict[tuple[str, bool], list[Sample]] = defaultdict(list)
    for sample in in_turn:
        kinds[sample.part, sample.known].append(sample)
    dealt = [s for s in chain(*zip_longest(*kinds.values())) if s is not None][:limit]
    taken = {sample.sample_id for sample in dealt}
    return [sample for sample in samples if sample.sample_id in taken]


# The run


def run_folder(options: EvaluateOptions) -> Path:
    return Path(options.output_dir) if options.output_dir else RUNS / run_name(options)


def run_name(options: EvaluateOptions) -> str:
    """What ran, in the folder's name: split, model, adapter, and what is not the default."""
    adapter = Path(options.adapter).resolve() if options.adapter else None
    parts = [
        Path(options.split).name,
        f"{options.limit}_seed{options.seed}" if options.limit else "",
        Path(options.private_images).name if options.private_images else "",
        Path(options.model).name,
        f"{adapter.parent.name}_{adapter.name}" if adapter else "",
        "" if options.quantization == "none" else options.quantization,
        "" if options.image_handling == "model" else options.image_handling,
        "" if options.part == "all" else options.part,
        "" if options.pictures == "own" else "shuffled",
    ]
    return "_".join(part for part in parts if part)


def form_of(options: EvaluateOptions) -> str:
    """How the model is asked beside its chat form; of a model that is not here, plain."""
    try:
        folder = model_folder(options.model, options.revision)
    except MissingError:
        return PLAIN_FORM
    return prompt_form(read_json(folder / "config.json").get("model_type"))


def run_config(options: EvaluateOptions, split: Split) -> dict[str, Any]:
    """`config.json`: the options and what they came to. Raises where model or device is missing.

    What is asked of the same samples, and how it is scored, may change between starts of a run.
    """
    form = form_of(options)
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    config = resolved_config(
        options,
        script="evaluate",
        asked={
            "prompt_form": form,
            "prompts": prompts(options, split, form),
            "image_handling": options.image_handling,
            "max_new_tokens": options.max_new_tokens,
        },
        compute_dtype=str(dtype).removeprefix("torch."),
        model_fingerprint=fingerprint(model_folder(options.model, options.revision)),
        adapter_fingerprint=adapter_fingerprint(options.adapter),
        data_hash=split.data_hash,
        synthetic={"data": split.synthetic, "model": is_synthetic(options)},
    )
    return {key: value for key, value in config.items() if key not in NOT_THE_RUN}


def is_synthetic(options: EvaluateOptions) -> bool:
    """Whether the model, or its adapter, is a toy by its manifest."""
    parts = filter(None, (options.model, options.adapter))
    return any(bool(manifest_value(part, "synthetic")) for part in parts)


def prompts(options: EvaluateOptions, split: Split, form: str) -> dict[str, str]:
    return {key: prompt_text(key, split.classes.known, options.question, form) for key in TEMPLATES}


def options_of_run(options: EvaluateOptions) -> EvaluateOptions:
    """--score_only: the run's own samples and model in the place of what the flags say."""
    folder = run_folder(options)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no config.json in it, so it is no run of evaluate.py")
    config = read_json(file)
    absent = [name for name in (*options.run_options, "synthetic") if name not in config]
    if config.get("script") != "evaluate" or absent:
        raise UserError(f"{file}: not a run of llava_openset/evaluate.py")
    taken = {name: config[name] for name in options.run_options}
    for name in ("split", "private_images", "private_labels"):
        if taken[name] is not None:
            taken[name] = str(locate(taken[name]))
    return replace(options, **taken)


def check_same_split(folder: Path, split: Split) -> None:
    """Raises UserError when the samples are no longer those that were asked about."""
    asked = read_json(folder / "config.json").get("data_hash")
    if asked != split.data_hash:
        raise UserError(
            f"{split.folder}: another split (data {split.data_hash}) than {folder.name} was asked "
            f"about (data {asked}); make that one again, or run evaluate.py in another --output_dir"
        )


def records_file(folder: Path, protocol: str) -> Path:
    return folder / f"predictions_{protocol}.jsonl"


def queries_there(
    options: EvaluateOptions, samples: Sequence[Sample], folder: Path
) -> tuple[dict[str, list[Query]], list[str]]:
    """Protocol key -> its queries, of what the folder has all records of; and a note on each that
    was stopped: what it has not answered yet is not wrong. Raises UserError where nothing is whole.
    """
    found: dict[str, list[Query]] = {}
    notes: list[str] = []
    for protocol in PROTOCOLS:
        file = records_file(folder, protocol)
        if not file.is_file():
            continue
        records = read_records(file)
        variants: list[str] = []
        if protocol == "freetext":
            there = {record.get("variant") for record in records.values()}
            asked_now = "freetext" in options.protocol and not options.score_only
            wanted = options.freetext_variants if asked_now else ()
            variants = [variant for variant in VARIANTS if variant in there or variant in wanted]
        planned: dict[str, list[Query]] = {}
        for query in queries(protocol, samples, variants):
            planned.setdefault(query.protocol_key, []).append(query)
        for key, own in planned.items():
            n_there = sum(query.key in records for query in own)
            if n_there == len(own):
                found[key] = own
            else:
                notes.append(unfinished(own[0], n_there, len(own)))
    if not found:
        raise UserError(
            f"{folder}: no protocol is answered; run evaluate.py without --score_only"
            + "".join(f"\n  {note}" for note in notes)
        )
    return found, notes


def unfinished(query: Query, n_there: int, n_all: int) -> str:
    """Why a protocol is not scored, and how to go on."""
    flags = f"--protocol {query.protocol}"
    if query.protocol == "freetext":
        flags += f" --freetext_variants {query.variant}"
    return (
        f"left out, not finished: {query.protocol_key}: {n_there} of {n_all} answered; "
        f"the same command with {flags} goes on"
    )


def picture_opener(jobs: Sequence[Job], options: EvaluateOptions) -> Callable[[Question], Image]:
    """Opens the picture that is shown with a prompt: its own, or by --pictures another's.

    The deal depends on the pictures' names and the seed, so it is the same in every protocol.
    """
    asked = [job.question for job in jobs]
    shown = shuffle_pictures(asked, options.seed) if options.pictures == "shuffled" else {}
    return lambda question: open_image(shown.get(question.sample_id, question).image)


# The plan


def print_plan(
    options: EvaluateOptions, split: Split, samples: Sequence[Sample], folder: Path
) -> None:
    """--dry_run: samples, every prompt, how many there are, the memory; no weights are loaded."""
    form = form_of(options)
    print(f"run:      {portable_path(folder)}")
    print(f"split:    {portable_path(split.folder)}, data {split.data_hash}, "
          f"{len(split.classes.known)} known classes")  # fmt: skip
    for part in ("validation", "test"):
        known = sum(s.part == part and s.known for s in samples)
        unknown = sum(s.part == part and not s.known for s in samples)
        print(f"  {part}: {known} known, {unknown} unknown samples")
    shown = prompts(options, split, form)
    for protocol in options.protocol:
        planned: dict[str, list[Query]] = defaultdict(list)
        for query in queries(protocol, samples, options.freetext_variants):
            planned[query.protocol_key].append(query)
        for key, own in planned.items():
            print(f"{key}: {len(own)} prompts\n  {shown[key]!r}")
        if protocol in CHOICE_PROTOCOLS:
            named = names_of(tuple(split.classes.known))
            print(f"  {len(named)} names of {len(split.classes.known)} classes scored behind each")
    for line in memory_plan(options, max(shown.values(), key=len)):
        print(line)
    for caveat in split.caveats:
        print(f"note: {caveat}")


def memory_plan(options: EvaluateOptions, longest: str) -> list[str]:
    """Model and memory, from config.json; of LLaVA-1.5-7B also where it is not on disk."""
    import torch
    import transformers

    from shared.vision_families import FAMILIES

    try:
        folder = model_folder(options.model, options.revision)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        source = "on disk"
    except MissingError as error:
        if options.model != DEFAULT_MODEL:
            return [f"model:    {options.model}: {error}"]
        config = transformers.LlavaConfig()  # its defaults are that model's numbers
        source = "not on disk: published numbers"
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{options.model}: model_type {config.model_type}; supported: {', '.join(FAMILIES)}"
        )
    architecture = (config.architectures or ["LlavaForConditionalGeneration"])[0]
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    language = model.get_decoder() if hasattr(model, "get_decoder") else model.language_model
    packed = sum(p.numel() for p in language.parameters())
    counts = {"packed": packed, "rest": sum(p.numel() for p in model.parameters()) - packed}
    dtype = pick_dtype(options.dtype, pick_device(options.device))
    text = config.text_config
    heads = getattr(text, "num_attention_heads", None) or text.num_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    n_pictures = getattr(config, "image_seq_length", None) or 576
    tokens = round(WORDS_TO_TOKENS * len(longest.split())) + n_pictures + options.max_new_tokens
    cache = 2 * text.num_hidden_layers * kv_heads * head * dtype.itemsize
    memory = MemoryEstimate(
        weights=weight_bytes(counts, ("packed",), options.quantization, dtype.itemsize) / GIB,
        trainable=0.0,
        activations=2 * options.batch_size * tokens * cache / GIB,  # prompts, and names behind them
    )
    total = sum(counts.values())
    return [
        f"model:    {portable_path(options.model)} ({config.model_type}, {total / 1e6:,.0f} M "
        f"parameters, {source}), quantization {options.quantization}, {dtype}",
        f"memory:   {memory}",
    ]
