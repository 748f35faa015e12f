#!/usr/bin/env bash
# Every task at laptop size: the seven tasks from the command line, an index of own pictures, the
# figures of each task on held-out pictures, then captions trained for an epoch and retrieval for 200
# steps, with the same figures before and after on one page each.
# No download. Run it again and it goes on where it stopped.
#
#   bash lavis_apps/pipeline_toy.sh
#   PYTHON=python3.12 RUNS=/tmp/try bash lavis_apps/pipeline_toy.sh    other interpreter, folder
#
# Writes $RUNS/toy_pipeline/; RUNS is outputs/lavis_apps.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
OUT=${RUNS:-outputs/lavis_apps}/toy_pipeline
HERE=lavis_apps
mkdir -p "$OUT"

# figures before training; they draw the toy's pictures too
for task in caption vqa retrieval classification matching localization; do
  "$PYTHON" $HERE/evaluate.py --toy --task $task --output_dir "$OUT/$task"
done
"$PYTHON" $HERE/evaluate.py --toy --task classification --model data/toy_models/clip \
  --output_dir "$OUT/classification_clip"

# an index of own pictures, and each task once from the command line
"$PYTHON" $HERE/build_index.py --toy --output "$OUT/index"
for task in caption vqa matching classification features localization; do
  "$PYTHON" $HERE/predict.py --toy --task $task --json > "$OUT/predict_$task.jsonl"
done
"$PYTHON" $HERE/predict.py --task search --toy --index "$OUT/index" \
  --query "a red star" --json > "$OUT/predict_search.jsonl"

# captions and retrieval trained, and what it changed
for task in caption retrieval; do
  "$PYTHON" $HERE/train.py --toy --task $task --output_dir "$OUT/train_$task"
  "$PYTHON" $HERE/evaluate.py --toy --task $task --model "$OUT/train_$task/model" \
    --output_dir "$OUT/${task}_trained"
  "$PYTHON" $HERE/compare.py "$OUT/$task" "$OUT/${task}_trained" \
    --output_dir "$OUT/${task}_before_after"
done
