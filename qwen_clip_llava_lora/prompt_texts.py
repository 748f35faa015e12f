"""What the page of compare_prompts.py says, in English and Chinese.

python -m pytest tests/qwen_clip_llava_lora/test_compare_prompts.py
"""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "code": "en",
        "title": "{model}: prompt templates compared",
        "subtitle": "{n:,} pictures, run {run}",
        "language_en": "English",
        "language_zh": "Chinese",
        "and": " and ",
        "synthetic": "Toy {parts}: these figures say nothing about a real one.",
        "synthetic_data": "data",
        "synthetic_model": "model",
        "unfinished_title": "Unfinished run",
        "unfinished": "Some descriptions were not asked for, as the server stopped answering; the "
        "same describe_images.py command goes on.",
        "verdict_few": "{language}: {n} template(s) with usable descriptions, so nothing to "
        "compare.",
        "verdict_references": "{language}: {best} is nearest to the references of {n} pictures "
        "(CIDEr {value:.3f}",
        "verdict_clear": "; clearly nearer than {others}).",
        "verdict_unclear": "; no clear difference to the others).",
        "verdict_aspects": "{language}: {best} covers most, {value:.1f} of {n} aspects a "
        "description.",
        "pictures": "Pictures",
        "pictures_note": "{train:,} training and {validation:,} validation rows; {problems} "
        "problems",
        "usable": "Usable",
        "unusable_answers": "{n} unusable answers on the way",
        "cost": "Cost",
        "cost_unknown": "no price given, or no token counts",
        "cost_note": "unusable answers included",
        "templates": "Templates",
        "template": "Template",
        "unusable": "Unusable answers",
        "failed": "Failed",
        "length": "Length",
        "covered": "Aspects",
        "distinct": "Distinct-1 / -2",
        "different": "Different texts",
        "tokens": "Tokens in / out",
        "seconds": "s each",
        "cost_1000": "Cost per 1,000",
        "requests": "Requests",
        "texts": "What came out",
        "texts_note": "Usable: descriptions over those asked for. Length: words (Chinese: "
        "characters) a description with its 95 % interval over pictures. Aspects: mean number "
        "covered. Distinct-n: different n-grams over all, of as many tokens for each template of a "
        "language.",
        "effort": "What it took",
        "effort_note": "Unusable answers: malformed, empty or cut ones, asked for again. Failed: "
        "the model or server, a broken picture, or not asked. Seconds: time of the requests over "
        "usable descriptions; at a server many are under way at once and wait for each other. "
        "Cost: by the prices given, unusable answers included.",
        "outcomes": "What became of the descriptions",
        "outcomes_note": "Usable, malformed to the end, failed.",
        "outcome_ok": "usable",
        "outcome_malformed": "malformed",
        "outcome_failed": "failed",
        "aspects": "Aspects covered",
        "aspect": "Aspect",
        "words": "Words",
        "aspect_words": "Words that show an aspect",
        "covered_axis": "descriptions that cover it (%)",
        "aspects_chart": "Aspects covered, with 95 % intervals",
        "aspects_note": "Percent of usable descriptions in which a word of the aspect occurs, with "
        "95 % intervals over pictures. A word is a sign that something is said, not that it is "
        "true.",
        "no_aspects": "No template names aspects.",
        "references": "Against references",
        "not_given": "no references given",
        "not_matched": "no picture has references in this language",
        "no_references": "No figures: {reason}. --references FILE gives captions of the pictures.",
        "references_note": "As pycocoevalcap gives them (papers print them times 100; CIDEr goes "
        "to 10), with 95 % intervals, of sample 0 of {n:,} pictures with {each} reference(s) each; "
        "words: {tokenizer}. References have a length of {length} on average: these metrics punish "
        "a description that is much longer, however true it is.",
        "metrics_axis": "times 100",
        "references_chart": "BLEU and ROUGE-L, with 95 % intervals",
        "without": "Without description",
        "pairs": "Differences in CIDEr",
        "pair": "Pair",
        "difference": "Second minus first",
        "p_holm": "p (Holm)",
        "wins": "Better / equal / worse",
        "pairs_note": "Both drawn at the same pictures; p by swapping the two captions of "
        "pictures, "
        "adjusted over all pairs of the language. A coloured edge: p (Holm) at most 0.05.",
        "agreement": "Agreement between templates",
        "agreement_head": "ROUGE-L of ... against ...",
        "agreement_note": "Each row's descriptions scored with the column's as the only reference, "
        "over the pictures that both describe: high where two templates say the same.",
        "samples": "Samples",
        "samples_title": "{n} of {total:,} pictures",
        "samples_note": "Drawn with seed {seed}.",
        "references_en": "References",
        "references_zh": "References (Chinese)",
        "answer_note": "length {n}, {covered} of {aspects} aspects: {names}",
        "status_malformed": "malformed",
        "status_error": "error",
        "status_skipped": "skipped",
        "status_missing": "missing",
        "prompts": "The prompts",
        "step": "Step",
        "prompt": "Prompt",
        "copy": "Table to copy",
        "summary": "  {name}: {usable} usable, length {length}, {covered} aspects, cost per 1,000 "
        "{cost}",
    },
    "zh": {
        "code": "zh",
        "title": "{model}：提示词模板比较",
        "subtitle": "{n:,} 张图片，运行 {run}",
        "language_en": "英文",
        "language_zh": "中文",
        "and": "和",
        "synthetic": "玩具{parts}：这些数字不能说明真实模型或数据。",
        "synthetic_data": "数据",
        "synthetic_model": "模型",
        "unfinished_title": "运行未完成",
        "unfinished": "服务器停止回答，有些描述没有问到；用同样的 describe_images.py "
        "命令可以继续。",
        "verdict_few": "{language}：只有 {n} 个模板有可用的描述，无法比较。",
        "verdict_references": "{language}：在 {n} 张图片上，{best} 最接近参考描述（CIDEr "
        "{value:.3f}",
        "verdict_clear": "；明显优于 {others}）。",
        "verdict_unclear": "；与其他模板没有明显差别）。",
        "verdict_aspects": "{language}：{best} 覆盖最多，每条描述平均覆盖 {n} 个方面中的 "
        "{value:.1f} 个。",
        "pictures": "图片",
        "pictures_note": "训练 {train:,} 行，验证 {validation:,} 行；{problems} 个问题",
        "usable": "可用",
        "unusable_answers": "其间有 {n} 个不可用的回答",
        "cost": "费用",
        "cost_unknown": "没有给出价格，或没有词元计数",
        "cost_note": "包括不可用的回答",
        "templates": "模板",
        "template": "模板",
        "unusable": "不可用的回答",
        "failed": "失败",
        "length": "长度",
        "covered": "方面",
        "distinct": "Distinct-1 / -2",
        "different": "不同的文本",
        "tokens": "词元 入 / 出",
        "seconds": "每条秒数",
        "cost_1000": "每千条费用",
        "requests": "请求",
        "texts": "得到的描述",
        "texts_note": "可用：可用的描述 / 要求的描述。长度：每条描述的词数（中文为字数），"
        "附按图片计算的 95 % 区间。方面：平均覆盖的个数。Distinct-n：不同的 n 元组占全部的比例，"
        "同一语言的各模板取同样多的词。",
        "effort": "所需的代价",
        "effort_note": "不可用的回答：格式错误、空白或被截断，会重新提问。失败："
        "模型或服务器出错、图片损坏，或没有问到。秒数：请求时间除以可用描述数；"
        "服务器同时处理多个请求，它们会互相等待。费用：按给出的价格，包括不可用的回答。",
        "outcomes": "描述的结果",
        "outcomes_note": "可用、始终格式错误、失败。",
        "outcome_ok": "可用",
        "outcome_malformed": "格式错误",
        "outcome_failed": "失败",
        "aspects": "覆盖的方面",
        "aspect": "方面",
        "words": "词语",
        "aspect_words": "代表各方面的词语",
        "covered_axis": "覆盖该方面的描述（%）",
        "aspects_chart": "覆盖的方面，附 95 % 区间",
        "aspects_note": "可用描述中出现该方面词语的百分比，附按图片计算的 95 % 区间。"
        "出现词语只说明提到了，"
        "不说明说得对。",
        "no_aspects": "没有模板列出方面。",
        "references": "与参考描述比较",
        "not_given": "没有给出参考描述",
        "not_matched": "没有图片有这种语言的参考描述",
        "no_references": "没有数字：{reason}。可用 --references 文件 给出图片的参考描述。",
        "references_note": "与 pycocoevalcap 的数值相同（论文中乘以 100；CIDEr 最大为 10），附 "
        "95 % 区间；"
        "取 {n:,} 张图片的第 0 个样本，每张有 {each} 条参考；分词：{tokenizer}。参考描述平均长度 "
        "{length}："
        "比参考长得多的描述，即使属实，这些指标也会扣分。",
        "metrics_axis": "乘以 100",
        "references_chart": "BLEU 与 ROUGE-L，附 95 % 区间",
        "without": "无描述",
        "pairs": "CIDEr 的差",
        "pair": "一对",
        "difference": "后者减前者",
        "p_holm": "p（Holm）",
        "wins": "更好 / 相同 / 更差",
        "pairs_note": "两者取同样的图片；p 值由交换图片的两条描述得到，并按该语言的所有对校正。"
        "彩色边：p（Holm）"
        "不大于 0.05。",
        "agreement": "模板之间的一致程度",
        "agreement_head": "ROUGE-L（行对列）",
        "agreement_note": "以列的描述为唯一参考给行的描述打分，取两者都有描述的图片："
        "数值高说明两个模板说的相同。",
        "samples": "样例",
        "samples_title": "{total:,} 张图片中的 {n} 张",
        "samples_note": "随机种子 {seed}。",
        "references_en": "参考（英文）",
        "references_zh": "参考",
        "answer_note": "长度 {n}，{aspects} 个方面中的 {covered} 个：{names}",
        "status_malformed": "格式错误",
        "status_error": "错误",
        "status_skipped": "跳过",
        "status_missing": "缺失",
        "prompts": "提示词",
        "step": "步骤",
        "prompt": "提示词",
        "copy": "可复制的表格",
        "summary": "  {name}：可用 {usable}，长度 {length}，方面 {covered}，每千条费用 {cost}",
    },
}
