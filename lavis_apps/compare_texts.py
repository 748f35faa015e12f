"""This experiment's words on the comparison's page, beside those of all experiments."""

from __future__ import annotations

from shared.comparison_texts import TEXTS as SHARED

OWN: dict[str, dict[str, str]] = {
    "en": {
        "title": "Two models compared",
        "title_predictions": "Two sets of answers side by side",
        "protocols": "The three protocols in use",
        "published official-2021": "GT-Vision-Lab/VQA since March 2021; the headline here",
        "published official-2016": "LAVIS, BLIP, BLIP-2, whatever forked VQA before March 2021",
        "published always-normalise": "lmms-eval since August 2025, LLaVA's converter",
        "base": "First",
        "tuned": "Second",
        "better": "The second model is better: {base} → {tuned}, a difference of {difference} "
        "points {interval}, p {p}.",
        "worse": "The second model is worse: {base} → {tuned}, a difference of {difference} "
        "points {interval}, p {p}.",
        "trained_on_scored": "{run}: its weights were trained on {data}, which is what scores it",
        "outcomes_note": "samples, second against first",
        "confident_errors": "Confident errors of the second model",
        "summary_base": "first   {value}   {name}",
        "summary_tuned": "second  {value}   {name}",
        "no_question": "(the picture alone)",
        "confidence_what": "Confidence is the probability that the model gives to its answer, "
        "class or match; of a caption the geometric mean of its tokens' probabilities. It is the "
        "model's own figure, not a promise.",
        "figures": "Figures of the task",
        "first_value": "First, %",
        "second_value": "Second, %",
        "figures_note": "Percent and percentage points, second minus first, with 95 % intervals: "
        "bootstrap over pictures, 2,000 resamples, seed {seed}; a picture is drawn with all its "
        "queries in both runs. p of the paired test, adjusted by Holm's method over all rows but "
        "the first.",
        "figure_line": "{metric}: {first} → {second}, {difference} points {interval}, p {p}",
        "full_stop": ". ",
    },
    "zh": {
        "title": "两个模型的对比",
        "title_predictions": "两组回答并列",
        "protocols": "通行的三种评分规则",
        "published official-2021": "GT-Vision-Lab/VQA（2021 年 3 月起）；此处的主要指标",
        "published official-2016": "LAVIS、BLIP、BLIP-2 以及 2021 年 3 月前的各分支",
        "published always-normalise": "lmms-eval（2025 年 8 月起）、LLaVA 的转换脚本",
        "base": "前者",
        "tuned": "后者",
        "better": "后者更好：{base} → {tuned}，相差 {difference} 个百分点 {interval}，p {p}。",
        "worse": "后者更差：{base} → {tuned}，相差 {difference} 个百分点 {interval}，p {p}。",
        "trained_on_scored": "{run}：权重是用 {data} 训练的，而这里正是用它评分",
        "outcomes_note": "样本数，后者相对前者",
        "confident_errors": "后者自信的错误",
        "summary_base": "前者  {value}   {name}",
        "summary_tuned": "后者  {value}   {name}",
        "no_question": "（仅图片）",
        "confidence_what": "置信度是模型给自己的回答、类别或匹配判断的概率；"
        "对描述则是各个词元概率的几何平均数。这是模型自己的数字，不是保证。",
        "figures": "本任务的各项数值",
        "first_value": "前者，%",
        "second_value": "后者，%",
        "figures_note": "百分数与百分点，后者减前者；95 % 区间：按图片自助抽样 2,000 次，"
        "种子 {seed}，一张图片连同它的所有查询在两次运行中一起抽取。"
        "p 为配对检验；第一行之外按 Holm 法校正。",
        "figure_line": "{metric}：{first} → {second}，{difference} 个百分点 {interval}，p {p}",
        "full_stop": "。",
    },
}
TEXTS = {language: SHARED[language] | OWN[language] for language in OWN}
