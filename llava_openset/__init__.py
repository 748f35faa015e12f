"""LLaVA on COCO 2017: known against unknown classes; prompts, matching, scores, reports."""
