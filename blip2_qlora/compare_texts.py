"""This experiment's words in the comparison report, beside those of all experiments."""

from __future__ import annotations

from shared.comparison_texts import TEXTS as SHARED

OWN: dict[str, dict[str, str]] = {
    "en": {
        "title": "BLIP-2: base and tuned model compared",
        "title_predictions": "BLIP-2: two sets of answers side by side",
        "protocols": "The three protocols in use",
        "published official-2021": "GT-Vision-Lab/VQA since March 2021; the headline here",
        "published official-2016": "LAVIS, BLIP, BLIP-2, whatever forked VQA before March 2021",
        "published always-normalise": "lmms-eval since August 2025, LLaVA's converter",
    },
    "zh": {
        "title": "BLIP-2：微调前后对比",
        "title_predictions": "BLIP-2：两组回答并列",
        "protocols": "通行的三种评分规则",
        "published official-2021": "GT-Vision-Lab/VQA（2021 年 3 月起）；此处的主要指标",
        "published official-2016": "LAVIS、BLIP、BLIP-2 以及 2021 年 3 月前的各分支",
        "published always-normalise": "lmms-eval（2025 年 8 月起）、LLaVA 的转换脚本",
    },
}
TEXTS = {language: SHARED[language] | OWN[language] for language in OWN}
