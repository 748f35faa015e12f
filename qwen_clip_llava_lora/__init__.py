"""Qwen and CLIP built into a LLaVA: merge, LoRA on own data, contrast before and after."""
