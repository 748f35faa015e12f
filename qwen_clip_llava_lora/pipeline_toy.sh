#!/usr/bin/env bash
# The course experiment at laptop size: merge the toy Qwen2 and the toy CLIP, align the projector,
# train LoRA by the course preset, and for contrast the projector alone for as many steps; each
# model answers the same held-out pictures, and one page compares them all.
# No download. Run it again and it goes on where it stopped.
#
#   bash qwen_clip_llava_lora/pipeline_toy.sh
#   PYTHON=python3.12 RUNS=/tmp/try bash qwen_clip_llava_lora/pipeline_toy.sh   other interpreter, folder
#
# Writes $RUNS/{toy_merged,toy_align,toy_course,toy_projector,toy_pipeline}; RUNS is
# outputs/qwen_clip_llava_lora.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
RUNS=${RUNS:-outputs/qwen_clip_llava_lora}
OUT=$RUNS/toy_pipeline
HERE=qwen_clip_llava_lora

"$PYTHON" $HERE/merge_model.py --toy --output_dir "$RUNS/toy_merged"
"$PYTHON" $HERE/train.py --toy --preset align --model "$RUNS/toy_merged" \
  --output_dir "$RUNS/toy_align"
"$PYTHON" $HERE/train.py --toy --preset course --model "$RUNS/toy_merged" \
  --projector "$RUNS/toy_align" --output_dir "$RUNS/toy_course"
"$PYTHON" $HERE/train.py --toy --preset course --train_type projector --model "$RUNS/toy_merged" \
  --projector "$RUNS/toy_align" --output_dir "$RUNS/toy_projector"

"$PYTHON" $HERE/evaluate.py --toy --model "$RUNS/toy_merged" --output_dir "$OUT/merged"
for run in align projector course; do
  "$PYTHON" $HERE/evaluate.py --toy --model "$RUNS/toy_merged" \
    --adapter "$RUNS/toy_$run/adapter" --output_dir "$OUT/$run"
done
"$PYTHON" $HERE/compare.py "$OUT/align" "$OUT/course" --output_dir "$OUT/align-course"
"$PYTHON" $HERE/compare.py "$OUT/merged" "$OUT/align" "$OUT/projector" "$OUT/course" \
  --output_dir "$OUT/report"
