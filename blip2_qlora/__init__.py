"""BLIP-2: zero-shot captions and VQA, QLoRA on VQAv2, before/after report."""
