"""The words of the report of one run: English here, the same keys in Chinese beside it.

`in_words` turns reasons and notes, which metrics.json holds in English, into the page's language.
"""

from __future__ import annotations

from collections.abc import Mapping

from llava_openset.report_texts_zh import CHINESE, in_chinese

ENGLISH: dict[str, str] = {
    "language": "en",
    "comma": ", ",
    "title": "Open-set classification: known against unknown",
    "n_classes": "{n} known classes",
    "n_pictures": "{known} known and {unknown} unknown test samples",
    "synthetic_both": "Toy data and a toy model: the figures say nothing about real ones.",
    "synthetic_data": "Toy data: these figures say nothing about real pictures.",
    "synthetic_model": "A toy model: its words and figures say nothing about the real one.",
    "banner_title": "These figures can't be used as they stand:",
    "shuffled": "control: every question was asked about another picture than the one shown here.",
    "verdict_better": "Protocol {protocol} ranks known above unknown better than chance: AUROC "
    "{auroc} ({score})",
    "verdict_worse": "Protocol {protocol} ranks unknown above known: AUROC {auroc} ({score}), "
    "worse than chance",
    "verdict_unclear": "Protocol {protocol} can't be told from chance at ranking known above "
    "unknown: AUROC {auroc} ({score})",
    "verdict_none": "Protocol {protocol} has no AUROC ({reason})",
    "verdict_decides": "; deciding, it names {named} of the known rightly and rejects {rejected} "
    "of the unknown.",
    "verdict_no_threshold": "; there is no decision, as no threshold was chosen or one side has "
    "no sample.",
    "verdict_few": " Only {n} samples on one side, fewer than {few}: take it as a first look.",
    "tile_of": "{protocol}, n {n}",
    "auroc": "AUROC",
    "oscr": "OSCR",
    "aupr_known": "AUPR, known positive",
    "aupr_unknown": "AUPR, unknown positive",
    "fpr95_known_positive": "FPR at 95 % known recall, %",
    "fpr95_unknown_positive": "FPR at 95 % unknown recall, %",
    "aurc": "AURC",
    "ece": "ECE",
    "brier": "Brier",
    "closed_set_accuracy": "Closed-set accuracy, %",
    "known_accept_rate": "Known accepted, %",
    "known_correct_and_accepted": "Known named rightly, %",
    "unknown_reject_rate": "Unknown rejected, %",
    "normalised_accuracy": "Normal\u00adised accuracy, %",
    "macro_f1_with_unknown": "Macro-F1 with unknown",
    "known_right": "known right",
    "unknown_rejected": "unknown rejected",
    "score_of": "score {value}",
    "no_threshold_stands": "No threshold could be chosen for {names}: the likeliest class stands "
    "as the decision, and nothing is rejected.",
    "two_query_apart": "two_query also counts known pictures asked without their own class as "
    "unknown: its areas and curves are of other samples than the rest.",
    "about": "Before reading",
    "threshold_rule": "Where a threshold decides, it was chosen on the validation part alone "
    "(criterion: {criterion}) and recorded; the test part never moves it.",
    "own_pictures_there": "{n} of the unknown test pictures are the user's own.",
    "openness_is": "Openness of the test part {value} (Scheirer et al. 2013): 0 without unknown "
    "classes, towards 1 the more of them there are for each known one.",
    "part": "Part",
    "part_validation": "validation",
    "part_test": "test",
    "parts": "Samples",
    "parts_note": "Rows of {protocol}; two_query asks each known picture a second time.",
    "known": "known",
    "unknown": "unknown",
    "classes_known": "Known classes ({n}): {names}.",
    "classes_unknown": "Unknown classes ({n}): {names}.",
    "rules_missing": "The rules of the split can't be shown: {folder} has no split.json of this "
    "run any more.",
    "split_rules": "Rules of the split",
    "option": "Option",
    "value": "Value",
    "protocols": "Protocols side by side",
    "protocols_what": "The same test pictures under every protocol. course: the course's "
    "instruction, matched by keyword. freetext: a free answer, read by our matcher, with or "
    "without the class list and an “unknown” option in the prompt. likelihood: every class name "
    "scored by the model, given the picture. two_query: the picture asked with the full list, and "
    "again with its own class taken out, which then counts as unknown.",
    "protocol": "Protocol",
    "n_both": "n known / unknown",
    "at_chance": "{protocol} names {named} % of the known samples rightly, no more than guessing "
    "among {n} classes does ({chance} %): the model does not follow this prompt or cannot tell the "
    "classes apart, and the protocol's rejection rate says nothing.",
    "decisions": "What is decided",
    "decisions_note": "Free answers decide by what they name; likelihood and two_query by the "
    "threshold of the validation part. Percent with 95 % intervals. Closed-set accuracy is before "
    "any rejection; normalised accuracy is the mean of known named rightly and unknown rejected; "
    "macro-F1 counts unknown as one more class. Errors count as wrong.",
    "ranking": "How well the scores rank known above unknown",
    "continued": "{title}, continued",
    "ranking_every": "The same of every score",
    "ranking_note": "No threshold is needed here. AUROC: ties half; chance is 0.5. OSCR also asks "
    "for the right class. FPR in percent; FPR, AURC (risk over coverage, known samples), ECE and "
    "Brier (known samples whose answer names a class): lower is better. 95 % intervals by "
    "bootstrap over samples, or over pictures where samples share one.",
    "score": "Score",
    "thresholds": "Thresholds",
    "threshold": "Threshold",
    "criterion": "Criterion",
    "comes_from": "From",
    "decides": "Decides",
    "yes": "yes",
    "notes": "Notes",
    "thresholds_note": "A sample is accepted as known when its score is at least the threshold. "
    "Marked: the score by which the protocol decides.",
    "pair": "Pair",
    "n": "n",
    "difference": "Difference",
    "p": "p",
    "p_holm": "p (Holm)",
    "changed": "Better / worse",
    "tests_decisions": "Paired tests: known/unknown decisions, every two protocols",
    "tests_decisions_none": "no test, as only one protocol ran.",
    "tests_auroc": "Paired tests: AUROC of the headline scores, every two protocols",
    "tests_auroc_none": "no test, as only one protocol ran.",
    "tests_auroc_scores": "Paired tests: AUROC of the other scores against the headline",
    "tests_auroc_scores_none": "no test, as no protocol has a second score.",
    "tests_note": "Second minus first, as a share, on the samples both have, each asked with the "
    "whole list when two protocols meet. {tests}. p (Holm) is adjusted over the {n} tests of this "
    "table, one family. A coloured edge: p (Holm) is at most 0.05.",
    "mcnemar-exact": "McNemar's exact test (right and wrong decisions)",
    "sign-flip-clustered": "Sign flips over pictures, as several samples share one",
    "paired-bootstrap": "Paired bootstrap, whose p is 0.001 at least",
    "chart_decisions": "Known named rightly and unknown rejected",
    "alt_decisions": "Bars with 95 % intervals by protocol. {said}.",
    "alt_decisions_one": "{protocol}: {named} of known named rightly, {rejected} of unknown "
    "rejected",
    "curves": "Curves and scores",
    "curves_what": "One curve a protocol, by its headline score. A free answer's score is the "
    "mean probability of its words, and 0 where it names no known class, so its curves have a "
    "long straight piece.",
    "curves_none": "No ROC and precision-recall curves: they need known and unknown samples.",
    "chart_roc": "ROC",
    "chart_roc_scores": "ROC of every score of {protocol}",
    "chart_pr_known": "Precision and recall, known positive",
    "chart_pr_unknown": "Precision and recall, unknown positive",
    "chart_risk_coverage": "Risk and coverage (known samples)",
    "axis_roc_x": "unknown accepted",
    "axis_roc_y": "known accepted",
    "axis_pr_known_x": "recall of known",
    "axis_pr_known_y": "precision",
    "axis_pr_unknown_x": "recall of unknown",
    "axis_pr_unknown_y": "precision",
    "axis_risk_coverage_x": "share kept, surest first",
    "axis_risk_coverage_y": "error rate",
    "chance": "chance",
    "alt_curves": "{title}: curves of {names}. The areas under them are in the tables.",
    "note_points": "Marked: the threshold of the validation part. Chance: a score that knows "
    "nothing.",
    "chart_histogram": "{protocol}: {score}",
    "axis_share": "share of samples, %",
    "threshold_at": "threshold {value}",
    "alt_histogram": "Shares of {score} under {protocol}, {n_known} known samples upwards and "
    "{n_unknown} unknown ones downwards; threshold {threshold}.",
    "classes": "Classes",
    "classes_what": "Decisions by true class; the last column is what was taken for unknown, the "
    "last row holds all unknown samples.",
    "confusion_none": "No confusion matrix: no protocol made a decision.",
    "chart_confusion": "{protocol}: decided class by true class",
    "axis_decided": "decided",
    "axis_true": "true",
    "alt_confusion": "Counts of decided classes by true class under {protocol}: {right} of "
    "{total} on the diagonal.",
    "note_confusion_errors": "{n} samples are errors and not in it.",
    "class_table": "{protocol}: by class",
    "class": "Class",
    "kind": "Kind",
    "right": "Right",
    "share": "Share, %",
    "before": "Right before rejection",
    "commonest": "Most decided",
    "class_note": "Right: named by its class, or rejected where unknown; 95 % Wilson intervals. "
    "Marked: never right.",
    "class_few": "{n} of {total} classes have fewer than {few} samples: their shares are to be "
    "read by their intervals, not one against the other.",
    "two_query": "Asked twice",
    "two_query_not_run": "Protocol two_query did not run, or not to its end: evaluate.py "
    "--protocol two_query adds it to this run.",
    "two_query_what": "Each known picture is asked with the full class list and again with its "
    "own class taken out; then no answer is right, and the score should fall (D. Miller et al., "
    "ECCV 2024).",
    "unknown_are": "Unknown are",
    "query_left_out": "known pictures, own class left out",
    "query_unknown_pictures": "pictures of unknown classes",
    "query_left_out_correct_only": "own class left out, of pictures first named rightly",
    "queries": "By what counts as unknown",
    "queries_note": "Known are the same pictures with the full list.",
    "query_pairs": "The same picture with and without its class",
    "higher_full": "Higher with the full list, %",
    "mean_drop": "Mean drop",
    "query_pairs_note": "{n} pictures; closed-set accuracy with the full list {accuracy} %. Ties "
    "count half. Energy sums over the classes, and the shortened list has one summand less: part "
    "of its fall is arithmetic, so read max_softmax or margin here.",
    "course": "The course's four figures",
    "course_table": "Published, and by each protocol here",
    "figure": "Figure",
    "published": "Course, published",
    "course_closed_set_accuracy": "Known pictures named rightly",
    "course_predicted_as_known": "Known pictures taken for known",
    "course_accuracy_among_those": "Named rightly among those",
    "course_unknown_predicted_as_unknown": "Unknown pictures taken for unknown",
    "course_own_pictures": "of these: own pictures",
    "course_note": "Percent with 95 % Wilson intervals; those of the course follow from its "
    "percentages and numbers of pictures. What the course calls closed-set accuracy counts "
    "rejected known pictures as wrong; here that is “known named rightly”, and closed-set "
    "accuracy is before rejection.",
    "course_not_run": "Protocol course did not run, or not to its end: evaluate.py "
    "--protocol course adds it to this run.",
    "course_why": "Published and own figures stand side by side and differ in kind:",
    "course_synthetic": "• Here: drawn shapes and a toy model. Nothing of the left column is "
    "reproduced by that; it shows that the figures are computed.",
    "course_differs_1": "• Unknown pictures: the course took 30 own photographs of whole scenes "
    "(dorm room, classroom, notice board), far from its 12 classes. Held-back classes lie nearer "
    "to the known ones and are harder to reject.",
    "course_differs_2": "• One point: the prompt and the keywords fix how strictly is rejected. "
    "Without a score there is no AUROC, and two models that reject differently can't be ranked.",
    "course_differs_3": "• Matching: a scene with a person in it that is called “person” counts "
    "against the model, and a dog called “puppy” as unknown. The other protocols use synonyms, "
    "negation and ambiguity.",
    "course_differs_4": "• Few pictures and no interval: 26 of 30 is anything from 70 to 95 %.",
    "course_differs_5": "• The pictures: chosen from train2017, which the model was trained on. "
    "Its own wording of the instruction is not used here.",
    "answers": "Answers",
    "matches": "What the answers name",
    "match_class": "a listed class",
    "match_unknown": "something else",
    "match_abstain": "nothing",
    "match_ambiguous": "two listed classes",
    "match_error": "error",
    "matches_note": "Test part. Something else and nothing both count as unknown; an ambiguous "
    "answer counts as the class it names first. Choice protocols always name a class. "
    "A dash stands where the protocol has no such answer.",
    "completeness": "Completeness",
    "count_expected": "Expected",
    "count_answered": "Answered",
    "count_errors": "Errors",
    "count_missing": "Missing",
    "count_empty": "Empty",
    "count_cut": "Cut",
    "wrong_but_present": "Wrong but present",
    "completeness_note": "Both parts together. Wrong but present: known samples given another "
    "known class that the picture shows too.",
    "cases": "Cases",
    "cases_what": "By the decisions of {protocol} and its {score}; every card shows what all "
    "protocols said of the picture. Test part.",
    "case_unknown_accepted": "Unknown called known, surest first",
    "case_known_rejected": "Known rejected, surest first",
    "case_wrong_class": "Known given another class, surest first",
    "case_ambiguous": "Ambiguous answers",
    "case_errors": "Errors",
    "all_shown": "All {total}.",
    "order_highest": "{shown} of {total}, highest {score} first.",
    "order_lowest": "{shown} of {total}, lowest {score} first.",
    "order_sampled": "{shown} of {total}, drawn with seed {seed}.",
    "truth": "truth",
    "present": "in the picture",
    "no_decision": "no decision",
    "likeliest": "likeliest",
    "answered": "answer",
    "query": "query",
    "missing": "What could not be computed",
    "missing_none": "Everything was computed, with intervals.",
    "reason": "Reason",
    "where": "Where",
    "missing_note": "Figures without a value, and figures whose interval is none or another than "
    "the rest, or that are of fewer samples.",
    "take_away": "To copy",
    "copy_markdown": "Markdown",
    "copy_csv": "CSV",
    "what_ran": "What ran",
    "prompts": "Prompts and rules",
    "prompt": "Prompt, an example",
    "rule": "Rule",
    "scoring_options": "Scoring",
    "all_options": "All options",
    "environment": "Environment",
    "method": "Intervals: 95 %, percentile bootstrap over known and unknown samples apart "
    "(Wilson's where a share is 0 or 1, by class, and for the course's figures).",
    "made_by": "Made by {command} on {date}; the run: {run}.",
}
TEXTS = {"en": ENGLISH, "zh": CHINESE}


def in_words(text: str, words: Mapping[str, str]) -> str:
    """A reason or note of metrics.json in the page's language."""
    return in_chinese(text) if words["language"] == "zh" else text
