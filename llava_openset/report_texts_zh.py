"""The Chinese words of the report of one run, and of the reasons and notes in metrics.json."""

from __future__ import annotations

import re

from llava_openset.protocols import CHOICE_RULE, KEYWORD_RULE, MATCH_RULE, TWO_QUERY_RULE

CHINESE: dict[str, str] = {
    "language": "zh",
    "comma": "、",
    "title": "开放集分类：已知与未知",
    "n_classes": "{n} 个已知类别",
    "n_pictures": "测试样本：已知 {known} 个，未知 {unknown} 个",
    "synthetic_both": "玩具数据和玩具模型：这些数字不代表真实模型和数据。",
    "synthetic_data": "玩具数据：这些数字不代表真实图片。",
    "synthetic_model": "玩具模型：它的回答和数字不代表真实模型。",
    "banner_title": "以下数字不能直接使用：",
    "shuffled": "对照实验：提问时给模型看的是另一张图片，而不是此处显示的图片。",
    "verdict_better": "协议 {protocol} 区分已知与未知的能力好于随机：AUROC {auroc}（{score}）",
    "verdict_worse": "协议 {protocol} 把未知排在已知之前：AUROC {auroc}（{score}），不如随机",
    "verdict_unclear": "协议 {protocol} 区分已知与未知的能力与随机无明显差别：AUROC {auroc}（"
    "{score}）",
    "verdict_none": "协议 {protocol} 没有 AUROC（{reason}）",
    "verdict_decides": "；做判定时，已知样本中 {named} 判对类别，未知样本中 {rejected} 被拒绝。",
    "verdict_no_threshold": "；没有判定，因为没有选出阈值，或其中一方没有样本。",
    "verdict_few": "其中一方只有 {n} 个样本，少于 {few} 个：仅供初步参考。",
    "tile_of": "{protocol}，n {n}",
    "auroc": "AUROC",
    "oscr": "OSCR",
    "aupr_known": "AUPR（已知为正）",
    "aupr_unknown": "AUPR（未知为正）",
    "fpr95_known_positive": "已知召回 95 % 时的 FPR，%",
    "fpr95_unknown_positive": "未知召回 95 % 时的 FPR，%",
    "aurc": "AURC",
    "ece": "ECE",
    "brier": "Brier",
    "closed_set_accuracy": "闭集准确率，%",
    "known_accept_rate": "已知被接受，%",
    "known_correct_and_accepted": "已知判对类别，%",
    "unknown_reject_rate": "未知被拒绝，%",
    "normalised_accuracy": "归一化准确率，%",
    "macro_f1_with_unknown": "宏 F1（含未知）",
    "known_right": "已知判对类别",
    "unknown_rejected": "未知被拒绝",
    "score_of": "得分 {value}",
    "no_threshold_stands": "{names} 没有能选出的阈值：以最可能的类别为判定，什么也不拒绝。",
    "two_query_apart": "two_query 还把去掉自己类别的已知图片算作未知：它的面积和曲线所用的样本与其"
    "他协议不同。",
    "about": "阅读前须知",
    "threshold_rule": "需要阈值时，只在验证部分上选取（准则：{criterion}）并记录；测试部分不参与。",
    "own_pictures_there": "未知测试图片中有 {n} 张是用户自己的。",
    "openness_is": "测试部分的开放度为 {value}（Scheirer 等，2013）：没有未知类别时为 0，未知类别"
    "相对越多越接近 1。",
    "part": "部分",
    "part_validation": "验证",
    "part_test": "测试",
    "parts": "样本",
    "parts_note": "按 {protocol} 的行数；two_query 对每张已知图片再问一次。",
    "known": "已知",
    "unknown": "未知",
    "classes_known": "已知类别（{n} 个）：{names}。",
    "classes_unknown": "未知类别（{n} 个）：{names}。",
    "rules_missing": "无法显示划分规则：{folder} 中已没有本次运行的 split.json。",
    "split_rules": "划分规则",
    "option": "选项",
    "value": "值",
    "protocols": "各协议并列",
    "protocols_what": "各协议用同样的测试图片。course：课程的指令，按关键词匹配。freetext：自由回"
    "答，由本项目的匹配器读取，提示中有或没有类别表和“unknown”选项。likelihood：给定图片，由模型对"
    "每个类别名打分。two_query：先用完整的类别表提问，再去掉图片自己的类别提问，后者算作未知。",
    "protocol": "协议",
    "n_both": "n 已知 / 未知",
    "at_chance": "{protocol} 只把 {named} % 的已知样本说对，不比在 {n} 个类别中乱猜（{chance} %）"
    "好：模型没有按这个提示回答，或分不清这些类别，该协议的拒绝率说明不了什么。",
    "decisions": "判定结果",
    "decisions_note": "自由回答按其所说的类别判定；likelihood 和 two_query 按验证部分的阈值判定。"
    "百分比及 95 % 区间。闭集准确率为拒绝之前的；归一化准确率是“已知判对类别”与“未知被拒绝”的平"
    "均；宏 F1 把未知当作另一个类别。错误算判错。",
    "ranking": "得分把已知排在未知之前的能力",
    "continued": "{title}（续）",
    "ranking_every": "所有得分的同样指标",
    "ranking_note": "这里不需要阈值。AUROC：并列各算一半，随机为 0.5。OSCR 还要求类别正确。FPR 为"
    "百分比；FPR、AURC（已知样本的风险—覆盖率）、ECE 和 Brier（回答说出了类别的已知样本）越低"
    "越好。95 % 区间按样本自助抽样，"
    "几个样本来自同一图片时按图片。",
    "score": "得分",
    "thresholds": "阈值",
    "threshold": "阈值",
    "criterion": "准则",
    "comes_from": "来源",
    "decides": "用于判定",
    "yes": "是",
    "notes": "说明",
    "thresholds_note": "得分不低于阈值的样本判为已知。底色标出的是该协议判定所用的得分。",
    "pair": "两方",
    "n": "n",
    "difference": "差异",
    "p": "p",
    "p_holm": "p（Holm）",
    "changed": "变好 / 变差",
    "tests_decisions": "配对检验：已知/未知判定，两两协议",
    "tests_decisions_none": "只运行了一个协议，没有检验。",
    "tests_auroc": "配对检验：主要得分的 AUROC，两两协议",
    "tests_auroc_none": "只运行了一个协议，没有检验。",
    "tests_auroc_scores": "配对检验：其他得分的 AUROC 与主要得分相比",
    "tests_auroc_scores_none": "没有协议有第二种得分，没有检验。",
    "tests_note": "后者减前者（比例），只用双方都有的样本；两个协议相比时都取用完整类别表的提问。"
    "{tests}。p（Holm）在本表的 {n} 个检验（一族）内校正。左侧有色条：p（Holm）不大于 0.05。",
    "mcnemar-exact": "McNemar 精确检验（判定的对与错）",
    "sign-flip-clustered": "按图片的符号翻转检验（几个样本来自同一图片）",
    "paired-bootstrap": "配对自助法（p 最小为 0.001）",
    "chart_decisions": "已知判对类别与未知被拒绝",
    "alt_decisions": "各协议的条形图及 95 % 区间。{said}。",
    "alt_decisions_one": "{protocol}：已知 {named} 判对类别，未知 {rejected} 被拒绝",
    "curves": "曲线与得分",
    "curves_what": "每个协议一条曲线，用其主要得分。自由回答的得分是所答词元概率的平均，未说出已知"
    "类别时为 0，所以曲线有一段长直线。",
    "curves_none": "没有 ROC 和精确率—召回率曲线：需要同时有已知和未知样本。",
    "chart_roc": "ROC",
    "chart_roc_scores": "{protocol} 各得分的 ROC",
    "chart_pr_known": "精确率与召回率（已知为正）",
    "chart_pr_unknown": "精确率与召回率（未知为正）",
    "chart_risk_coverage": "风险与覆盖率（已知样本）",
    "axis_roc_x": "未知被接受",
    "axis_roc_y": "已知被接受",
    "axis_pr_known_x": "已知的召回率",
    "axis_pr_known_y": "精确率",
    "axis_pr_unknown_x": "未知的召回率",
    "axis_pr_unknown_y": "精确率",
    "axis_risk_coverage_x": "保留比例（最确定的在前）",
    "axis_risk_coverage_y": "错误率",
    "chance": "随机",
    "alt_curves": "{title}：{names} 的曲线，曲线下面积见表格。",
    "note_points": "标记处为验证部分选出的阈值。“随机”是不含信息的得分。",
    "chart_histogram": "{protocol}：{score}",
    "axis_share": "样本比例，%",
    "threshold_at": "阈值 {value}",
    "alt_histogram": "{protocol} 下 {score} 的分布：{n_known} 个已知样本向上，{n_unknown} 个未知样"
    "本向下；阈值 {threshold}。",
    "classes": "类别",
    "classes_what": "按真实类别列出判定；最后一列是被当作未知的，最后一行是全部未知样本。",
    "confusion_none": "没有混淆矩阵：没有协议做出判定。",
    "chart_confusion": "{protocol}：真实类别与判定类别",
    "axis_decided": "判定",
    "axis_true": "真实",
    "alt_confusion": "{protocol} 下真实类别与判定类别的计数：{total} 个中 {right} 个在对角线上。",
    "note_confusion_errors": "有 {n} 个样本出错，不在其中。",
    "class_table": "{protocol}：各类别",
    "class": "类别",
    "kind": "属于",
    "right": "正确",
    "share": "比例，%",
    "before": "拒绝前正确",
    "commonest": "最常判为",
    "class_note": "正确：判对类别，未知则为被拒绝；95 % Wilson 区间。底色标出从未判对的类别。",
    "class_few": "{total} 个类别中有 {n} 个少于 {few} 个样本：请看区间，不要直接互相比较。",
    "two_query": "两次提问",
    "two_query_not_run": "没有运行（或没有运行完）two_query 协议：evaluate.py --protocol two_query "
    "可加入本次运行。",
    "two_query_what": "每张已知图片先用完整类别表提问，再去掉它自己的类别提问；后者没有正确答案，"
    "得分应当下降（D. Miller 等，ECCV 2024）。",
    "unknown_are": "未知是指",
    "query_left_out": "已知图片，去掉自己的类别",
    "query_unknown_pictures": "未知类别的图片",
    "query_left_out_correct_only": "去掉自己的类别，仅限第一次判对的图片",
    "queries": "按何为未知",
    "queries_note": "已知都是用完整类别表提问的同样图片。",
    "query_pairs": "同一图片，有和没有自己的类别",
    "higher_full": "完整类别表时更高，%",
    "mean_drop": "平均下降",
    "query_pairs_note": "{n} 张图片；用完整类别表时的闭集准确率为 {accuracy} %。并列各算一半。"
    "energy 是对各类别求和，缩短的类别表少一项，所以它的下降有一部分只是算术结果；这里请看 "
    "max_softmax 或 margin。",
    "course": "课程的四个数字",
    "course_table": "课程公布的，与此处各协议的",
    "figure": "指标",
    "published": "课程公布",
    "course_closed_set_accuracy": "已知图片判对类别",
    "course_predicted_as_known": "已知图片判为已知",
    "course_accuracy_among_those": "其中判对类别",
    "course_unknown_predicted_as_unknown": "未知图片判为未知",
    "course_own_pictures": "其中：自己的图片",
    "course_note": "百分比及 95 % Wilson 区间；课程的区间由其百分比和图片数算出。课程所说的闭集准"
    "确率把被拒绝的已知图片算错，这里相当于“已知判对类别”，而这里的闭集准确率是拒绝之前的。",
    "course_not_run": "没有运行（或没有运行完）course 协议：evaluate.py --protocol course "
    "可加入本次运行。",
    "course_why": "公布的数字与此处的数字并列，但性质不同：",
    "course_synthetic": "• 此处是画出来的图形和玩具模型，并不复现左列的任何数字，只说明这些指标能"
    "算出来。",
    "course_differs_1": "• 未知图片：课程用 30 张自己拍的整幅场景（宿舍、教室、公告栏），与 12 个"
    "类别相差很远。留出的类别离已知类别更近，更难拒绝。",
    "course_differs_2": "• 只有一个点：提示和关键词决定了拒绝的严格程度。没有得分就没有 AUROC，拒"
    "绝程度不同的两个模型无法排序。",
    "course_differs_3": "• 匹配：场景里有人而回答 person 就算模型错，狗被叫作 puppy 则算未知。其他"
    "协议考虑同义词、否定和歧义。",
    "course_differs_4": "• 图片少，没有区间：30 张中 26 张，可以是 70 % 到 95 %。",
    "course_differs_5": "• 图片选自 train2017，模型训练时用过。此处没有使用课程指令的原文。",
    "answers": "回答",
    "matches": "回答说的是什么",
    "match_class": "表中的类别",
    "match_unknown": "别的东西",
    "match_abstain": "什么也没说",
    "match_ambiguous": "两个表中的类别",
    "match_error": "错误",
    "matches_note": "测试部分。“别的东西”和“什么也没说”都算未知；有歧义的回答算作最先说到的类别。"
    "选择类协议总是给出一个类别。短横表示该协议不会有这种回答。",
    "completeness": "完整性",
    "count_expected": "应有",
    "count_answered": "已答",
    "count_errors": "错误",
    "count_missing": "缺少",
    "count_empty": "空",
    "count_cut": "被截断",
    "wrong_but_present": "判错但图中有",
    "completeness_note": "两部分合计。判错但图中有：已知样本被判为另一个已知类别，而图中确实也有"
    "它。",
    "cases": "实例",
    "cases_what": "按 {protocol} 的判定和它的 {score} 选取；每张卡片列出所有协议对该图片的回答。测"
    "试部分。",
    "case_unknown_accepted": "未知被判为已知，最确定的在前",
    "case_known_rejected": "已知被拒绝，最确定的在前",
    "case_wrong_class": "已知被判为另一类别，最确定的在前",
    "case_ambiguous": "有歧义的回答",
    "case_errors": "错误",
    "all_shown": "共 {total} 个，全部列出。",
    "order_highest": "共 {total} 个，列出 {score} 最高的 {shown} 个。",
    "order_lowest": "共 {total} 个，列出 {score} 最低的 {shown} 个。",
    "order_sampled": "共 {total} 个，按种子 {seed} 抽取 {shown} 个。",
    "truth": "实际",
    "present": "图中有",
    "no_decision": "没有判定",
    "likeliest": "最可能",
    "answered": "回答",
    "query": "提问",
    "missing": "未能算出的",
    "missing_none": "全部算出，且都有区间。",
    "reason": "原因",
    "where": "位置",
    "missing_note": "没有值的指标，以及没有区间、区间算法不同或样本较少的指标。",
    "take_away": "复制表格",
    "copy_markdown": "Markdown",
    "copy_csv": "CSV",
    "what_ran": "运行信息",
    "prompts": "提示与规则",
    "prompt": "提示（举例）",
    "rule": "规则",
    "scoring_options": "评分选项",
    "all_options": "全部选项",
    "environment": "环境",
    "method": "区间：95 %，已知与未知样本分别自助抽样的百分位区间（比例为 0 或 1、按类别以及课程的"
    "四个数字用 Wilson 区间）。",
    "made_by": "由 {command} 生成，{date}；该次运行：{run}。",
}

RULES = {
    KEYWORD_RULE: "回答是自由文本。判定：类别表中第一个名称出现在回答里的类别，否则为未知。",
    MATCH_RULE: "回答是自由文本。判定：按名称、复数和同义词所说的类别；什么也没说或拒绝回答则为"
    "未知；说到两个类别（有歧义）时取先说的。",
    CHOICE_RULE: "每个类别名按其接在提示之后的对数似然打分，类别取其最可能的名称；判定：得分最高的"
    "类别，低于阈值为未知。",
    TWO_QUERY_RULE: "每个类别名按其接在提示之后的对数似然打分，类别取其最可能的名称；判定：得分最高"
    "的类别，低于阈值为未知。已知：用完整类别表的已知样本。未知：提示和选项中都去掉自己类别的同样样本，"
    "以及用完整类别表的未知样本。全部计入；只含判对样本的结果列在旁边。",
}
# Caveats, reasons and notes that metrics.json holds, as patterns; what is not here stays English.
REASONS: tuple[tuple[str, str], ...] = (
    (r"no known sample", "没有已知样本"),
    (r"no unknown sample", "没有未知样本"),
    (r"no sample", "没有样本"),
    (r"no threshold", "没有阈值"),
    (r"no validation sample", "没有验证样本"),
    (r"no known sample whose answer names a class", "没有回答说出类别的已知样本"),
    (r"of the (\d+) of (\d+) known samples whose answer names a class",
     "{1} 个已知样本中回答说出类别的 {0} 个"),
    (r"no known validation sample", "没有已知的验证样本"),
    (r"no known validation sample was answered", "没有已知的验证样本得到回答"),
    (r"no decision: no threshold was chosen", "没有判定：没有选出阈值"),
    (r"no sample in common", "没有共同的样本"),
    (r"not all scores lie in \[0, 1\]: they are no probabilities",
     "得分不都在 [0, 1] 内：不是概率"),
    (r"the number of unknown classes is not given", "没有给出未知类别的个数"),
    (r"every resample gives the same figure: no interval", "每次重抽样结果相同：没有区间"),
    (r"every resample gives the same difference: no interval, no test",
     "每次重抽样差异相同：没有区间和检验"),
    (r"every image has the same difference: no interval", "每张图片差异相同：没有区间"),
    (r"the images' differences do not vary: no minimum detectable difference",
     "图片间的差异没有变化：没有可检出差异"),
    (r"one (known|unknown) (sample|picture): no interval", "只有一个{0}{1}：没有区间"),
    (r"only (\d+) (known|unknown) (sample|picture)s: the interval is too narrow",
     "只有 {0} 个{1}{2}：区间偏窄"),
    (r"only (\d+) clusters: the interval is too narrow", "只有 {0} 张图片：区间偏窄"),
    (r"(\d) in every resample: Wilson's interval over (\d+) (sample|picture)s",
     "每次重抽样都是 {0}：按 {1} 个{2}的 Wilson 区间"),
    (r"left out, not finished: ([\w-]+): (\d+) of (\d+) answered",
     "未完成，不计入：{0} 的 {2} 个提问中已答 {1} 个"),
    (r"the same command with (--.+) goes on", "用同样的命令加上 {0} 可以继续"),
    (r"no split has this figure", "没有划分有此指标"),
    (r"(\d+) of (\d+) splits don't have this figure", "{1} 个划分中 {0} 个没有此指标"),
    (r"one split: no interval", "只有一个划分：没有区间"),
    (r"the same in every split: no interval", "各划分相同：没有区间"),
    (r"follows from the numbers of classes", "由类别数得出"),
    (r"(\w+) is no probability of being right", "{0} 不是判对的概率"),
    (r"Synthetic pictures: the figures say nothing about real models\. The unknown classes are "
     r"shapes that no toy model has learned\.",
     "合成图片：这些数字不代表真实模型。未知类别是玩具模型都没有学过的图形。"),
    (r"Synthetic pictures: the figures say nothing about real models\. The toy models have learned "
     r"these unknown classes: (.*)\.",
     "合成图片：这些数字不代表真实模型。以下未知类别玩具模型学过：{0}。"),
    (r"LLaVA-1\.5 and BLIP-2 were trained on COCO's pictures, and Qwen-VL is to be taken as having "
     r"seen them: unknown means outside the given list, not never seen\.",
     "LLaVA-1.5 和 BLIP-2 训练时用过 COCO 的图片，Qwen-VL 也应当作见过：“未知”指不在所给类别表"
     "中，不是从未见过。"),
    (r"Validation and test part have the same unknown classes, so a threshold has seen their kind, "
     r"though never their pictures\.",
     "验证和测试部分的未知类别相同，所以阈值见过这些类别，但没有见过测试图片。"),
    (r"An object of a class that nobody annotated may be in a picture all the same\.",
     "图片中也可能有无人标注的类别的物体。"),
    (r"What a crop shows besides its object is told by boxes, not by masks\.",
     "裁剪图中除物体外还有什么，是按边框而不是按掩码判断的。"),
    (r"validation", "验证部分"),
    (r"the answer itself", "回答本身"),
)  # fmt: skip
NOUNS = {"known": "已知", "unknown": "未知", "sample": "样本", "picture": "图片"}


def in_chinese(text: str) -> str:
    """A rule, caveat, reason or note; parts between ";" one by one, unknown ones as they are."""
    if text in RULES:
        return RULES[text]
    said = []
    for part in text.split("; "):
        for pattern, chinese in REASONS:
            found = re.fullmatch(pattern, part)
            if found:
                part = chinese.format(*(NOUNS.get(group, group) for group in found.groups()))
                break
        said.append(part)
    return "；".join(said)
