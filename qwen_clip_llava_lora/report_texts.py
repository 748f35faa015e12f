"""This experiment's words on the pages of compare.py, beside the shared ones.

Both languages have the same keys. Text alone: nothing is computed here.

    python qwen_clip_llava_lora/compare.py RUN RUN --language zh
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.comparison_texts import TEXTS as SHARED

OWN: dict[str, dict[str, str]] = {
    "en": {
        # instead of the shared words: a headline that is not always an accuracy
        "chart_answer_types": "Headline score by language",
        "chart_question_types": "Headline score by class",
        "chart_question_types_top": "Headline score by class, the {n} largest",
        "chart_outcomes": "Samples answered better, equally well, worse",
        "chart_risk": "Score when the least sure answers are left out",
        "alt_bars": "Bars of the headline score with 95 % intervals; the figures are in the table.",
        "axis_accuracy": "score, %",
        "by_answer_type": "By language",
        "by_question_type": "By class",
        "without_errors": "Score without errors",
        "coverage_head": "Score of the surest {share:.0%}",
        "questions": "{n:,} samples",
        "outcomes_note": "samples, second run against first",
        "confident_errors": "Confident errors of the second run",
        "title": "Qwen + CLIP: two runs compared",
        "title_predictions": "Qwen + CLIP: two sets of answers side by side",
        "title_many": "Qwen + CLIP: {n} runs compared",
        "better": "{second} answers better than {first} by {{metric}}: {{base}} → {{tuned}}, a "
        "difference of {{difference}} points {{interval}}, p {{p}}.",
        "worse": "{second} answers worse than {first} by {{metric}}: {{base}} → {{tuned}}, a "
        "difference of {{difference}} points {{interval}}, p {{p}}.",
        "unclear": "No clear difference by {{metric}}: {{base}} → {{tuned}}, {{difference}} points "
        "{{interval}}, p {{p}}.",
        "summary_base": "first   {{value}}   {{name}}",
        "summary_tuned": "second  {{value}}   {{name}}",
        "protocols": "The three protocols in use",
        "published official-2021": "GT-Vision-Lab/VQA since March 2021; the headline here",
        "published official-2016": "LAVIS, BLIP-2, whatever forked VQA before March 2021",
        "published always-normalise": "lmms-eval since August 2025, LLaVA's converter",
        # every metric
        "contrast": "Contrast",
        "metrics_table": "Every metric",
        "metric": "Metric",
        "first_run": "First",
        "second_run": "Second",
        "metrics_note": "Second minus first over the same samples; intervals of 95 % draw "
        "pictures. Each row is a test of its own: with many rows one of twenty falls below 0.05 by "
        "chance. A coloured edge: p is at most 0.05. ",
        "metrics_note_many": "Second minus first over the same samples; intervals of 95 % draw "
        "pictures. p (Holm): adjusted over the pairs of each metric, Wilcoxon's likewise. A "
        "coloured edge: it is at most 0.05. ",
        "tests_note": "Tests: exact McNemar for right or wrong answers about a picture each, else "
        "sign flips by picture; captions are resampled by sample and swapped within samples, "
        "the figure computed anew (METEOR as the mean of its captions). Macro-F1 has an "
        "interval and no test.",
        "chart_likelihood": "Log-likelihood of the references, per token",
        "alt_likelihood": "Histogram of the samples, the first run upwards, the second downwards.",
        "axis_nats": "nats a token",
        "axis_share": "samples, %",
        "no_likelihood": "No likelihoods to compare: {reason}.",
        "likelihood_verdict": "Log-likelihood of the references: {base} → {tuned} nats a sample, "
        "{difference} {interval}, p {p} (sign flips), {wilcoxon} (Wilcoxon).",
        "m log_likelihood": "log-likelihood, a sample",
        "m per_token": "log-likelihood, a token",
        "m exact_match": "exact match",
        "m token_f1": "token F1",
        "m vqa": "VQA accuracy (official-2021)",
        "m class": "class accuracy, matched",
        "m likeliest": "class accuracy, likeliest",
        "m macro_f1": "macro-F1, matched",
        "u nats": "nats",
        "u points": "%",
        "u figure": "0–1",
        "u cider": "0–10",
        "lang en": "English",
        "lang zh": "Chinese",
        "class": "Class",
        "f1": "F1, %",
    },
    "zh": {
        "chart_answer_types": "各语言的主要得分",
        "chart_question_types": "各类别的主要得分",
        "chart_question_types_top": "各类别的主要得分（最大的 {n} 类）",
        "chart_outcomes": "变好、相同、变差的样本",
        "chart_risk": "舍去最不确定的回答后的得分",
        "alt_bars": "主要得分条形图及 95 % 区间；数字见表格。",
        "axis_accuracy": "得分，%",
        "by_answer_type": "按语言",
        "by_question_type": "按类别",
        "without_errors": "不计错误的得分",
        "coverage_head": "最确定的 {share:.0%} 的得分",
        "questions": "{n:,} 个样本",
        "outcomes_note": "样本数，后一次运行相对前一次",
        "confident_errors": "后一次运行的高置信度错误",
        "title": "Qwen + CLIP：两次运行对比",
        "title_predictions": "Qwen + CLIP：两组回答并列",
        "title_many": "Qwen + CLIP：{n} 次运行对比",
        "better": "按 {{metric}}，{second} 答得比 {first} 好：{{base}} → {{tuned}}，相差 "
        "{{difference}} 个百分点 {{interval}}，p {{p}}。",
        "worse": "按 {{metric}}，{second} 答得比 {first} 差：{{base}} → {{tuned}}，相差 "
        "{{difference}} 个百分点 {{interval}}，p {{p}}。",
        "unclear": "按 {{metric}} 没有明显差异：{{base}} → {{tuned}}，{{difference}} 个百分点 "
        "{{interval}}，p {{p}}。",
        "summary_base": "前  {{value}}   {{name}}",
        "summary_tuned": "后  {{value}}   {{name}}",
        "protocols": "通行的三种评分规则",
        "published official-2021": "GT-Vision-Lab/VQA（2021 年 3 月起）；此处的主要指标",
        "published official-2016": "LAVIS、BLIP-2 以及 2021 年 3 月前的各分支",
        "published always-normalise": "lmms-eval（2025 年 8 月起）、LLaVA 的转换脚本",
        "contrast": "对比",
        "metrics_table": "全部指标",
        "metric": "指标",
        "first_run": "前",
        "second_run": "后",
        "metrics_note": "同一批样本上后一次减前一次；95 % 区间按图片抽样。每一行是一次单独的检验："
        "行数多时，二十行中约有一行会偶然低于 0.05。彩色边表示 p 不超过 0.05。",
        "metrics_note_many": "同一批样本上后一次减前一次；95 % 区间按图片抽样。p（Holm）："
        "在每个指标的各对之间校正，Wilcoxon 亦同。彩色边表示它不超过 0.05。",
        "tests_note": "检验：每张图片只有一个回答、且非对即错时用精确 McNemar 检验，"
        "否则按图片翻转符号；"
        "图片描述指标按样本抽样，并在样本内交换两次运行的描述后重新计算（METEOR 取各描述的平均）。"
        "宏平均 F1 只有区间，没有检验。",
        "chart_likelihood": "参考答案每个词元的对数似然",
        "alt_likelihood": "样本的直方图：前一次向上，后一次向下。",
        "axis_nats": "每个词元的 nat",
        "axis_share": "样本，%",
        "no_likelihood": "没有可比较的似然：{reason}。",
        "likelihood_verdict": "参考答案的对数似然：每个样本 {base} → {tuned} nat，"
        "{difference} {interval}，p {p}（符号翻转），{wilcoxon}（Wilcoxon）。",
        "m log_likelihood": "对数似然，每个样本",
        "m per_token": "对数似然，每个词元",
        "m exact_match": "完全匹配",
        "m token_f1": "词元 F1",
        "m vqa": "VQA 准确率（official-2021）",
        "m class": "类别准确率（匹配）",
        "m likeliest": "类别准确率（最可能）",
        "m macro_f1": "宏平均 F1（匹配）",
        "u nats": "nat",
        "u points": "%",
        "u figure": "0–1",
        "u cider": "0–10",
        "lang en": "英文",
        "lang zh": "中文",
        "class": "类别",
        "f1": "F1，%",
    },
}
NAMING = ("better", "worse", "unclear", "summary_base", "summary_tuned")  # hold names or the metric
TEXTS = {language: SHARED[language] | OWN[language] for language in OWN}


def texts_for(names: Sequence[str], metric: str) -> dict[str, dict[str, str]]:
    """The words in both languages with the first two runs' names, and the headline's, in them."""
    first, second, headline = (escaped(name) for name in (*names[:2], metric))
    return {
        language: words
        | {
            key: words[key].format(first=first, second=second).replace("{metric}", headline)
            for key in NAMING
        }
        | {"base": names[0], "tuned": names[1]}
        for language, words in TEXTS.items()
    }


def escaped(name: str) -> str:
    """Braces doubled, as the words are formatted once more."""
    return name.replace("{", "{{").replace("}", "}}")
