"""This experiment's words in the comparison report, beside those of all experiments."""

from __future__ import annotations

from collections.abc import Sequence

from shared.comparison_texts import TEXTS as SHARED

OWN: dict[str, dict[str, str]] = {
    "en": {
        "title": "LLaVA: two runs compared",
        "title_predictions": "LLaVA: two sets of answers side by side",
        "title_many": "LLaVA: {n} runs compared",
        "protocols": "The three protocols in use",
        "published official-2021": "GT-Vision-Lab/VQA since March 2021; the headline here",
        "published official-2016": "LAVIS, BLIP, BLIP-2, whatever forked VQA before March 2021",
        "published always-normalise": "lmms-eval since August 2025, LLaVA's converter",
        "blind_note": "commonest answer of each question type, pictures unseen",
        "outcomes_note": "questions, second run against first",
        "confident_errors": "Confident errors of the second run",
        "better": "{second} answers better than {first}: {{base}} → {{tuned}}, a difference of "
        "{{difference}} points {{interval}}, p {{p}}.",
        "worse": "{second} answers worse than {first}: {{base}} → {{tuned}}, a difference of "
        "{{difference}} points {{interval}}, p {{p}}.",
        "summary_base": "first   {{value}}   {{name}}",
        "summary_tuned": "second  {{value}}   {{name}}",
    },
    "zh": {
        "title": "LLaVA：两次运行对比",
        "title_predictions": "LLaVA：两组回答并列",
        "title_many": "LLaVA：{n} 次运行对比",
        "protocols": "通行的三种评分规则",
        "published official-2021": "GT-Vision-Lab/VQA（2021 年 3 月起）；此处的主要指标",
        "published official-2016": "LAVIS、BLIP、BLIP-2 以及 2021 年 3 月前的各分支",
        "published always-normalise": "lmms-eval（2025 年 8 月起）、LLaVA 的转换脚本",
        "blind_note": "不看图片，每类问题都答该类最常见的答案",
        "outcomes_note": "问题数，后一次运行相对前一次",
        "confident_errors": "后一次运行的高置信度错误",
        "better": "{second} 答得比 {first} 好：{{base}} → {{tuned}}，相差 {{difference}} 个百分点 "
        "{{interval}}，p {{p}}。",
        "worse": "{second} 答得比 {first} 差：{{base}} → {{tuned}}，相差 {{difference}} 个百分点 "
        "{{interval}}，p {{p}}。",
        "summary_base": "前  {{value}}   {{name}}",
        "summary_tuned": "后  {{value}}   {{name}}",
    },
}
NAMING = ("better", "worse", "summary_base", "summary_tuned")  # hold the runs' names
TEXTS = {language: SHARED[language] | OWN[language] for language in OWN}


def texts_for(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The words in both languages, with two runs' own names where others say base and tuned."""
    first, second = (name.replace("{", "{{").replace("}", "}}") for name in names[:2])
    return {
        language: words
        | {key: words[key].format(first=first, second=second) for key in NAMING}
        | {"base": names[0], "tuned": names[1]}
        for language, words in TEXTS.items()
    }
