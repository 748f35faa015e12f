#!/usr/bin/env bash
# The open-set experiment at laptop size: a split of drawn pictures in COCO's layout, all four
# protocols by the committed toy LLaVA with their report, the control with other samples' pictures,
# and single objects cut out of pictures that hold several.
# No download, no training. Run it again and it goes on where it stopped.
#
#   bash llava_openset/pipeline_toy.sh
#   PYTHON=python3.12 RUNS=/tmp/try bash llava_openset/pipeline_toy.sh   another interpreter, folder
#
# Writes $RUNS/{toy_split,toy,toy_shuffled,toy_crops_split,toy_crops}; RUNS is outputs/llava_openset.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
RUNS=${RUNS:-outputs/llava_openset}

"$PYTHON" llava_openset/make_known_from_coco.py --toy --output_dir "$RUNS/toy_split"
"$PYTHON" llava_openset/evaluate.py --toy --split "$RUNS/toy_split" --output_dir "$RUNS/toy"
"$PYTHON" llava_openset/evaluate.py --toy --split "$RUNS/toy_split" --pictures shuffled \
  --protocol likelihood --report none --output_dir "$RUNS/toy_shuffled"
"$PYTHON" llava_openset/make_known_from_coco.py --toy --unit crop \
  --output_dir "$RUNS/toy_crops_split"
"$PYTHON" llava_openset/evaluate.py --toy --split "$RUNS/toy_crops_split" --protocol likelihood \
  --output_dir "$RUNS/toy_crops"
