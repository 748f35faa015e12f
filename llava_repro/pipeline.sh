#!/usr/bin/env bash
# Both stages of a LLaVA and its evaluation on real data. Default: the small English model, on one
# 24 GB card. pipeline_toy.sh is the same at laptop size.
#
#   bash llava_repro/pipeline.sh                          (the small English model)
#   PRESET=chinese bash llava_repro/pipeline.sh           (the small Chinese model)
#   PRESET=v1_5 LAUNCH="accelerate launch --config_file llava_repro/configs/ddp.yaml" \
#     STAGE2=v1_5_lora bash llava_repro/pipeline.sh       (LLaVA v1.5 with LoRA, eight GPUs)
#
# What is missing is said before anything trains, with the commands that bring it (data/README.md).
# Evaluation is over whole splits. Each step continues where it stopped; TASKS="pope scienceqa"
# takes fewer tasks.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
PRESET=${PRESET:-english}
STAGE2=${STAGE2:-${PRESET}_finetune}
LAUNCH=${LAUNCH:-$PYTHON}
TASKS=${TASKS:-vqav2 gqa textvqa scienceqa pope}
CONFIGS=llava_repro/configs
OUT=outputs/llava_repro/$PRESET

# what is missing is said here, before hours of training
# shellcheck disable=SC2086  # several tasks are several words
"$PYTHON" llava_repro/check_inputs.py "$CONFIGS/${PRESET}_pretrain.yaml" "$CONFIGS/$STAGE2.yaml" \
  --tasks $TASKS
"$PYTHON" llava_repro/train.py "$CONFIGS/${PRESET}_pretrain.yaml" --dry_run
"$PYTHON" llava_repro/train.py "$CONFIGS/$STAGE2.yaml" --dry_run

$LAUNCH llava_repro/train.py "$CONFIGS/${PRESET}_pretrain.yaml" --output_dir "$OUT/stage1" \
  --save_model
$LAUNCH llava_repro/train.py "$CONFIGS/$STAGE2.yaml" --projector "$OUT/stage1" \
  --output_dir "$OUT/stage2" --save_model

for task in $TASKS; do
  for stage in stage1 stage2; do
    "$PYTHON" llava_repro/evaluate.py --task "$task" --model "$OUT/$stage/model" \
      --limit 0 --output_dir "$OUT/$task-$stage"
  done
  "$PYTHON" llava_repro/compare.py "$OUT/$task-stage1" "$OUT/$task-stage2" \
    --output_dir "$OUT/$task-report"
done
"$PYTHON" llava_repro/overview.py "$OUT"
