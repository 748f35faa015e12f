"""LLaVA from scratch: model, two-stage training, inference, evaluation."""
