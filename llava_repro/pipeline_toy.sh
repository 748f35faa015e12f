#!/usr/bin/env bash
# The whole of LLaVA at laptop size: stage 1, stage 2, both evaluated on five tasks, a report each
# and one page over them.
# No download. Run it again and it goes on where it stopped.
#
#   bash llava_repro/pipeline_toy.sh
#   PYTHON=python3.12 RUNS=/tmp/try bash llava_repro/pipeline_toy.sh     another interpreter, folder
#
# Writes $RUNS/{toy_pretrain,toy_finetune,toy_pipeline}; RUNS is outputs/llava_repro.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
RUNS=${RUNS:-outputs/llava_repro}
OUT=$RUNS/toy_pipeline

"$PYTHON" llava_repro/train.py --toy --stage pretrain --output_dir "$RUNS/toy_pretrain"
"$PYTHON" llava_repro/train.py --toy --stage finetune --projector "$RUNS/toy_pretrain" \
  --output_dir "$RUNS/toy_finetune"

for task in vqav2 gqa textvqa scienceqa pope; do
  for stage in pretrain finetune; do
    "$PYTHON" llava_repro/evaluate.py --toy --task "$task" \
      --model "$RUNS/toy_$stage/model" --output_dir "$OUT/$task-$stage"
  done
  "$PYTHON" llava_repro/compare.py "$OUT/$task-pretrain" "$OUT/$task-finetune" \
    --output_dir "$OUT/$task-report"
done
"$PYTHON" llava_repro/overview.py "$OUT"
