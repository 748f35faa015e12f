# Everything here is also a plain command: see README.md, "Without make".
PYTHON ?= python3
RUN := .venv/bin/python
OUT := outputs/blip2_qlora

.PHONY: help setup quickstart test test-fast test-pipelines lint bench toy-models sample clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## .venv with the tested packages (keeps a torch that already sees CUDA)
	@$(PYTHON) -m shared.setup

quickstart: setup  ## zero-shot -> 4-bit QLoRA -> report, on the embedded toy world, no download
	$(RUN) blip2_qlora/evaluate.py --toy --quantization nf4 --output_dir $(OUT)/quickstart_zero-shot
	$(RUN) blip2_qlora/train.py --toy --output_dir $(OUT)/quickstart_qlora
	$(RUN) blip2_qlora/evaluate.py --toy --quantization nf4 --adapter $(OUT)/quickstart_qlora/adapter --output_dir $(OUT)/quickstart_tuned
	$(RUN) blip2_qlora/compare.py --toy

test: setup  ## all tests but the toy trainings
	$(RUN) -m pytest -n 2 --dist loadfile -m "not pipeline"

test-fast: setup  ## the quick ones
	$(RUN) -m pytest -m "not pipeline and not slow and not browser"

test-pipelines: setup  ## trains each toy pipeline once and tests the figures
	$(RUN) -m pytest -m pipeline

lint: setup  ## style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: setup  ## measurements; each prints one JSON line
	$(RUN) benchmarks/vqa_score_speed.py

toy-models: setup  ## trains the committed toy checkpoints from nothing
	$(RUN) blip2_qlora/make_toy_model.py
	$(RUN) -m shared.toy_world.models clip
	$(RUN) -m shared.toy_world.models qwen2
	$(RUN) llava_repro/make_toy_model.py
	$(RUN) lavis_apps/make_toy_model.py

sample: quickstart  ## the committed sample run: 200 questions before and after, report, curve
	$(RUN) blip2_qlora/evaluate.py --toy --quantization nf4 --limit 200 --output_dir outputs/sample/zero-shot
	$(RUN) blip2_qlora/evaluate.py --toy --quantization nf4 --limit 200 --adapter $(OUT)/quickstart_qlora/adapter --output_dir outputs/sample/tuned
	$(RUN) blip2_qlora/compare.py --base_run outputs/sample/zero-shot --tuned_run outputs/sample/tuned --output_dir outputs/sample/report
	mkdir -p outputs/sample/training
	cp $(OUT)/quickstart_qlora/config.json $(OUT)/quickstart_qlora/environment.json $(OUT)/quickstart_qlora/metrics.json $(OUT)/quickstart_qlora/metrics.jsonl $(OUT)/quickstart_qlora/curve.png outputs/sample/training/

clean:  ## drawn toy data, caches; runs and models stay
	rm -rf data/toy .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
