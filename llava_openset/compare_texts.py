"""The words of the comparison of runs, beside those of a single run's report; both languages."""

from __future__ import annotations

from llava_openset.report_texts import TEXTS as OF_ONE_RUN

OWN: dict[str, dict[str, str]] = {
    "en": {
        "title_pictures": "Open-set classification: {n} runs on the same pictures",
        "title_splits": "Open-set classification: one setup on {n} splits",
        "figures": "Figures",
        "tests": "Paired tests",
        "splits": "Over the splits",
        "method_pictures": "Intervals of figures: 95 %, bootstrap over known and unknown samples "
        "apart. Tests are paired by picture; resampling seed {seed}.",
        "method_splits": "Intervals of each split's figures: 95 %, bootstrap over known and "
        "unknown samples apart; of means: Student's t over splits, without cutting at 0 and 1.",
        "compared_by": "Made by {command} on {date}.",
        "synthetic_short": "toy data or a toy model: no measure of real ones",
        "summary_run": "{name}  {protocol}: AUROC {auroc}, normalised accuracy {normalised} %",
        "summary_test": "  {family}, {pair}: {difference}, p {p} (Holm), n {n}",
        "summary_report": "report: {path}",
        "family_decisions": "known/unknown decisions",
        "family_naming": "naming of the known",
        "family_auroc": "AUROC",
        "verdict_no_mean": "{protocol} has no AUROC over the splits: {reason}.",
        "verdict_mean": "Over {n} splits {protocol} reaches a mean AUROC of {auroc} (t interval "
        "over splits).",
        "verdict_mean_alone": "Over {n} splits {protocol} reaches a mean AUROC of {auroc}, "
        "without an interval.",
        "verdict_no_auroc": "Not every run has an AUROC under {protocol}, so none is called best.",
        "verdict_best": "Under {protocol}, {name} ranks known above unknown best: AUROC {auroc}.",
        "verdict_above": " It is clearly above {names}.",
        "verdict_not_apart": " It can't be told apart from {names}.",
        "tile_size": "{protocol}, n {known} known, {unknown} unknown",
        "axis_auroc": "AUROC x 100",
        "axis_normalised_accuracy": "%",
        "chart_auroc": "AUROC of the headline score",
        "chart_normalised_accuracy": "Normalised accuracy",
        "alt_bars": "Bars by protocol and run with 95 % intervals; the figures are in the tables.",
        "figures_pictures": "Every run was asked about the same test pictures.",
        "figures_splits": "The same setup on splits drawn by the same rules; each column is a "
        "split.",
        "figure_note": "The upper rows by {decision}, which decides, from AUROC on by {headline}. "
        "Rates and FPR in percent, the rest from 0 to 1. FPR, AURC, ECE, Brier: lower is better.",
        "between_decisions": "Known/unknown decisions",
        "between_naming": "Closed-set accuracy (known, before rejection)",
        "between_auroc": "AUROC of the headline score",
        "between_note": "Second minus first, as a share, on the same pictures. {tests}. p (Holm) "
        "is adjusted over the {n} tests of this table, all pairs and protocols, one family. A "
        "coloured edge: p (Holm) is at most 0.05.",
        "few_samples": "Only {known} known and {unknown} unknown samples: intervals and tests are "
        "rough.",
        "splits_what": "Mean and 95 % t interval over {n} splits. Splits share pictures and "
        "classes, so they are not quite independent and the interval is rather too narrow.",
        "mean": "Mean",
        "sd": "SD over splits",
        "n_splits": "n splits",
        "split": "Split",
        "seed": "Seed",
        "split_table": "Splits",
        "cases_between": "By the known/unknown decisions under {protocol}; test part.",
        "case_divided_unknown": "Unknown pictures on which the runs differ",
        "case_divided_known": "Known pictures on which the runs differ",
        "case_all_wrong": "Every run decides wrongly",
        "nothing_differs": "No option differs between the runs.",
        "differing": "What differs",
    },
    "zh": {
        "title_pictures": "开放集分类：同样图片上的 {n} 次运行",
        "title_splits": "开放集分类：同一设置在 {n} 个划分上",
        "figures": "指标",
        "tests": "配对检验",
        "splits": "各划分合计",
        "method_pictures": "指标的区间：95 %，已知与未知样本分别自助抽样。检验按图片配对；重抽样种"
        "子 {seed}。",
        "method_splits": "各划分指标的区间：95 %，已知与未知样本分别自助抽样；平均值的区间：各划分"
        "的 t 区间，不在 0 和 1 处截断。",
        "compared_by": "由 {command} 生成，{date}。",
        "synthetic_short": "玩具数据或玩具模型，不代表真实情况",
        "summary_run": "{name}  {protocol}：AUROC {auroc}，归一化准确率 {normalised} %",
        "summary_test": "  {family}，{pair}：{difference}，p {p}（Holm），n {n}",
        "summary_report": "报告：{path}",
        "family_decisions": "已知/未知判定",
        "family_naming": "已知类别的命名",
        "family_auroc": "AUROC",
        "verdict_no_mean": "{protocol} 在各划分上没有 AUROC：{reason}。",
        "verdict_mean": "{protocol} 在 {n} 个划分上的平均 AUROC 为 {auroc}（各划分的 t 区间）。",
        "verdict_mean_alone": "{protocol} 在 {n} 个划分上的平均 AUROC 为 {auroc}，没有区间。",
        "verdict_no_auroc": "不是每次运行在 {protocol} 下都有 AUROC，因此不评最好。",
        "verdict_best": "在 {protocol} 下，{name} 区分已知与未知最好：AUROC {auroc}。",
        "verdict_above": "它明显好于 {names}。",
        "verdict_not_apart": "它与 {names} 的差别不明确。",
        "tile_size": "{protocol}，已知 n {known}，未知 n {unknown}",
        "axis_auroc": "AUROC x 100",
        "axis_normalised_accuracy": "%",
        "chart_auroc": "主要得分的 AUROC",
        "chart_normalised_accuracy": "归一化准确率",
        "alt_bars": "各协议和各次运行的条形图及 95 % 区间；数字见表格。",
        "figures_pictures": "每次运行的测试图片都相同。",
        "figures_splits": "同一设置，按同样规则抽取的划分；每列一个划分。",
        "figure_note": "上面几行按用于判定的 {decision}，自 AUROC 起按 {headline}。比率和 FPR 为百"
        "分比，其余为 0 到 1。FPR、AURC、ECE、Brier 越低越好。",
        "between_decisions": "已知/未知判定",
        "between_naming": "闭集准确率（已知样本，拒绝之前）",
        "between_auroc": "主要得分的 AUROC",
        "between_note": "后者减前者（比例），同样的图片。{tests}。p（Holm）在本表的 {n} 个检验（所"
        "有两两组合和协议，一族）内校正。左侧有色条：p（Holm）不大于 0.05。",
        "few_samples": "只有 {known} 个已知和 {unknown} 个未知样本：区间和检验都很粗略。",
        "splits_what": "{n} 个划分的平均值及 95 % t 区间。各划分共用图片和类别，并不完全独立，区间"
        "偏窄。",
        "mean": "平均",
        "sd": "各划分的标准差",
        "n_splits": "划分数",
        "split": "划分",
        "seed": "种子",
        "split_table": "各划分",
        "cases_between": "按 {protocol} 下的已知/未知判定；测试部分。",
        "case_divided_unknown": "各次运行判定不同的未知图片",
        "case_divided_known": "各次运行判定不同的已知图片",
        "case_all_wrong": "每次运行都判错",
        "nothing_differs": "各次运行的选项没有不同。",
        "differing": "不同之处",
    },
}
TEXTS = {language: OF_ONE_RUN[language] | OWN[language] for language in OWN}
