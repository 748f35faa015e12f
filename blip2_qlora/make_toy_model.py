"""Trains the toy BLIP-2/OPT from nothing: the checkpoint that `--toy` uses, committed under git.

Real `transformers` classes at 1/3000 of the size, so that every script runs the real code offline.
`toy_recipe.py` says how it is trained; this script runs it, saves the checkpoint in the Hub layout
(bf16 safetensors with processor and tokenizer), loads it again, and measures zero-shot VQA on the
toy val split with the paper's prompt and decoding. The manifest, written last, records all of it.

    python blip2_qlora/make_toy_model.py                                # the committed one
    python blip2_qlora/make_toy_model.py --output_dir /tmp/try --steps_scale 0.01   # a smoke test

Reads `data/toy/vqav2` (drawn when missing). Writes `data/toy_models/blip2_opt/`.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.options import DATA_ROOT, UserError

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

# The paper's VQA decoding (BLIP-2, arXiv:2301.12597, appendix).
DECODING = {"num_beams": 5, "length_penalty": -1.0, "max_new_tokens": 10}
EVALUATION_BATCH = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Trains the toy BLIP-2/OPT checkpoint from nothing.", allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, default=DATA_ROOT / "toy_models" / "blip2_opt")
    parser.add_argument("--data_root", type=Path, default=DATA_ROOT / "toy" / "vqav2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps_scale",
        type=float,
        default=1.0,
        help="multiplies all steps and the number of drawn pictures; 0.01 is a smoke test",
    )
    parser.add_argument("--limit", type=int, default=0, help="val questions measured; 0: all")
    options = parser.parse_args(arguments)
    try:
        manifest = make_toy_model(
            options.output_dir,
            options.data_root,
            seed=options.seed,
            steps_scale=options.steps_scale,
            limit=options.limit,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(manifest["figures"]))
    return 0


def make_toy_model(
    output_dir: Path, data_root: Path, seed: int = 0, steps_scale: float = 1.0, limit: int = 0
) -> dict[str, Any]:
    """Trains, saves and measures; returns the manifest. `output_dir` is replaced as a whole.

    Raises UserError when `output_dir` holds something else than a toy model.
    """
    import torch
    import transformers

    from blip2_qlora import toy_recipe
    from shared.toy_world.build import ensure_vqav2, read_manifest
    from shared.toy_world.recipe import file_sha256

    if (
        output_dir.exists()
        and any(output_dir.iterdir())
        and not read_manifest(output_dir).get("synthetic")
    ):
        raise UserError(f"{output_dir} holds something that is no toy model; give another folder")
    ensure_vqav2(data_root)
    start = time.perf_counter()
    processor = toy_recipe.build_processor()
    model, stages = toy_recipe.train(processor, seed, steps_scale)
    seconds = time.perf_counter() - start

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        figures = {**stages, **measure(folder, data_root, limit)}
        manifest = {
            "synthetic": True,
            "architecture": "Blip2ForConditionalGeneration with OPT",
            "parameters": sum(p.numel() for p in model.parameters()),
            "command": (
                f"python blip2_qlora/make_toy_model.py --seed {seed} --steps_scale {steps_scale:g}"
            ),
            "seed": seed,
            "steps_scale": steps_scale,
            "recipe_hash": toy_recipe.toy_recipe_hash(),
            "data_hash": read_manifest(data_root)["data_hash"],
            "vqa_row_share": toy_recipe.VQA_SHARE,
            "figures": figures,
            "training_seconds": round(seconds),
            "torch_threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "sha256": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        folder.chmod(0o755)
        shutil.rmtree(output_dir, ignore_errors=True)
        folder.rename(output_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def measure(folder: Path, data_root: Path, limit: int = 0) -> dict[str, Any]:
    """Zero-shot VQA accuracy (0..1) of a saved checkpoint on the val split, and the blind one."""
    import torch
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    from shared.blind import blind_baseline
    from shared.vqa_score import vqa_accuracy

    train, val = (
        _read(data_root / f"v2_mscoco_{split}_annotations.json")["annotations"]
        for split in ("train2014", "val2014")
    )
    questions = _read(data_root / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    questions, val = questions[: limit or None], val[: limit or None]
    processor = Blip2Processor.from_pretrained(folder)
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    answers = answer_questions(model, processor, questions, data_root / "val2014")
    scores: dict[str, list[float]] = {}
    for answer, annotation in zip(answers, val, strict=True):
        score = vqa_accuracy(answer, [a["answer"] for a in annotation["answers"]])
        scores.setdefault("all", []).append(score)
        scores.setdefault(annotation["answer_type"], []).append(score)
    return {
        "protocol": "official-2021",
        "decoding": DECODING,
        "questions": len(questions),
        "zero_shot": {kind: round(sum(s) / len(s), 4) for kind, s in scores.items()},
        "blind": round(blind_baseline(train, val), 4),
    }


def answer_questions(
    model: "Blip2ForConditionalGeneration",
    processor: "Blip2Processor",
    questions: Sequence[Mapping[str, Any]],
    folder: Path,
) -> list[str]:
    """Answers by plain `generate`, with the paper's prompt and decoding."""
    import torch
    from PIL import Image
    from tqdm import tqdm

    from blip2_qlora.toy_recipe import VQA_PROMPT

    answers: list[str] = []
    for start in tqdm(range(0, len(questions), EVALUATION_BATCH), desc="answering", disable=None):
        batch = questions[start : start + EVALUATION_BATCH]
        inputs = processor(
            images=[Image.open(folder / f"COCO_val2014_{q['image_id']:012d}.jpg") for q in batch],
            text=[VQA_PROMPT.format(q["question"]) for q in batch],
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = model.generate(**inputs, **DECODING)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]  # OPT's output repeats the prompt
        answers += [a.strip() for a in processor.batch_decode(new_tokens, skip_special_tokens=True)]
    return answers


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
