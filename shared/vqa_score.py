"""Official VQA accuracy: a pure function of the predictions and the annotations.

A prediction earns min(1, matches/3) against every nine of the ten annotators, averaged over the
ten ways to leave one out. The two programs that were published as "official" (before and since
March 2021) differ in when they normalise an answer, and a third reading always does, so the
protocol is an argument and belongs in every record of a figure.

    python -m shared.vqa_score RESULTS QUESTIONS ANNOTATIONS [--protocol official-2016] [--summary]
    python -m shared.vqa_score RESULTS QUESTIONS --validate

Reads the JSON files of the VQA v2.0 layout; RESULTS is [{"question_id": int, "answer": str}, ...].
Prints one JSON object (scores 0..100, per question also 0..1). --validate prints what an
evaluation server would refuse, one line each, and exits 1 when there is anything.

Source of every rule marked "official": PythonEvaluationTools/vqaEvaluation/vqaEval.py (loadRes:
PythonHelperTools/vqaTools/vqa.py) at https://github.com/GT-Vision-Lab/VQA, commit 458a8b2
(8 October 2016) and commit a013f00 (11 March 2021). The published program runs under Python 2
only; where Python 3 would answer otherwise, here in rounding, Python 2.7 is followed.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypedDict

from shared.vqa_normalise import normalise_answer, punctuation_step, strip_answer

Protocol = Literal["official-2021", "official-2016", "always-normalise"]
PROTOCOLS: dict[Protocol, str] = {
    "official-2021": "the official program since March 2021 (GT-Vision-Lab/VQA a013f00)",
    "official-2016": "the official program until March 2021 (458a8b2); LAVIS, so BLIP-2's own "
    "validation figures; ovqa",
    "always-normalise": "lmms-eval since August 2025 (its pull request 794); LLaVA's converter",
}
# Who publishes under them, as metrics.json and the reports say it
PUBLISHED_UNDER: dict[str, str] = {
    "official-2021": "GT-Vision-Lab/VQA since March 2021 (the headline here)",
    "official-2016": "LAVIS, BLIP, BLIP-2 and everything forked from VQA before March 2021",
    "always-normalise": "lmms-eval since August 2025, LLaVA's converter",
}

_ANSWER = itemgetter("answer")


def _matches(prediction: str, answers: Sequence[str], protocol: Protocol) -> tuple[bool, ...]:
    """Which references the prediction equals, once both are brought to the protocol's form."""
    form = normalise_answer
    if protocol == "official-2016":
        # 458a8b2: the prediction always gets all steps. The references get the punctuation step
        # only (not even stripped), and only when the raw strings differ, so that a reference
        # "Two" can never be met.
        references = list(answers)
        if len(set(references)) > 1:
            references = list(map(punctuation_step, references))
    else:
        references = list(map(normalise_answer, answers))
        # Answers that are alike when stripped are alike when normalised, so most need one look.
        if protocol == "official-2021" and len(set(references)) == 1:
            stripped = list(map(strip_answer, answers))
            if len(set(stripped)) == 1:
                # a013f00: unanimous references are compared as they stand, case and all. Meant for
                # text read off the picture, says the maintainer (GT-Vision-Lab/VQA issue 14).
                form, references = strip_answer, stripped
    candidate = form(prediction)
    return tuple([reference == candidate for reference in references])


@lru_cache(2**12)
def _accuracy(matches: int, n: int) -> float:
    """Mean over n references of min(1, matches among the other n - 1, over 3).

    Closed form (k*min(1, (k-1)/3) + (n-k)*min(1, k/3)) / n in whole numbers, so that equal scores
    are equal floats. Ten references: 0, .3, .6, .9, 1 for k = 0, 1, 2, 3, 4 and more.
    """
    thirds = matches * min(3, max(matches - 1, 0)) + (n - matches) * min(3, matches)
    return thirds / (3 * n)


@lru_cache(2**12)
def _accuracy_as_summed(matches: tuple[bool, ...]) -> float:
    """`_accuracy` with the official program's rounding errors, which depend on the order.

    Only its sums and its two-decimal figures need this: an exact tie such as 1.875 is not one
    after adding thirds. Written as a loop because sum() compensates since Python 3.12.

    References are left out by position. The official program leaves out all annotation dicts equal
    to this one, which is the same as long as each has its answer_id, as in the official files;
    with bare strings it would drop every equal answer and score six "yes" of ten with .4.
    """
    n_matches = sum(matches)
    total = 0.0
    for match in matches:
        total += min(1.0, (n_matches - match) / 3)
    return total / len(matches)


@lru_cache(2**12)
def _percentage(total: float, n: int) -> float:
    """round(100*total/n, 2) as Python 2 rounds: an exact tie goes away from zero, 3.125 to 3.13."""
    exact = Decimal(100 * total / n)
    return float(exact.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))


def _check_question(prediction: Any, answers: Any) -> None:
    if not isinstance(prediction, str):
        raise ValueError(f"prediction is {_typed(prediction)}, must be a string")
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not answers:
        raise ValueError(f"answers is {_typed(answers)}, must be a non-empty list of strings")
    for i, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise ValueError(f"answers[{i}] is {_typed(answer)}, must be a string")


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; one of {', '.join(PROTOCOLS)}")


def vqa_accuracy(
    prediction: str, answers: Sequence[str], protocol: Protocol = "official-2021"
) -> float:
    """VQA accuracy of one answer, 0..1, against the annotators' strings.

    Any number of references; the official leave-one-out gives a single reference nothing to be
    compared with, so that its score is always 0. Protocols (`PROTOCOLS` says who publishes what):

    - `official-2021`: strip everything; unless all references are then equal, apply punctuation
      and word steps to all of them and to the prediction. Ten times "yes" against "Yes" is 0.
    - `official-2016`: the prediction gets all steps, references that are not all equal get the
      punctuation step.
    - `always-normalise`: all steps on everything.

    Raises ValueError for an empty list of answers and for anything that is not a string.
    """
    _check_protocol(protocol)
    _check_question(prediction, answers)
    return _accuracy(sum(_matches(prediction, answers, protocol)), len(answers))


def vqa_accuracies(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """`vqa_accuracy` under each protocol: they need the same strings, so all three are cheap."""
    _check_question(prediction, answers)
    return {
        protocol: _accuracy(sum(_matches(prediction, answers, protocol)), len(answers))
        for protocol in PROTOCOLS
    }


class VqaScore(TypedDict):
    """Scores of one results file. Percentages are 0..100 with two decimals, as the official
    program prints them; None when there is nothing to divide by, and `note` says why."""

    protocol: str
    n: int  # questions scored: all of the questions, answered or not
    overall: float | None  # over n: a missing or failed answer counts as wrong
    overallAnswered: float | None  # over the answered only, to see what the failures cost
    perAnswerType: dict[str, float]
    perQuestionType: dict[str, float]
    missing: int  # questions without an answer (or with status "skipped")
    errors: int  # questions whose answer has status "error"
    duplicates: int  # predictions replaced by a later one of the same question
    unasked: int  # annotations without a question, left out
    note: str | None
    perQuestion: dict[int, float]  # question_id: 0..1
    evalQA: dict[int, float]  # question_id: 0..100, the official file of that name


def score_vqa(
    predictions: list[dict[str, Any]],
    questions: dict[str, Any] | list[dict[str, Any]],
    annotations: dict[str, Any] | list[dict[str, Any]],
    protocol: Protocol = "official-2021",
) -> VqaScore:
    """Score predictions against the annotations of all questions given.

    `predictions` are {"question_id": int, "answer": str} and may carry "status": "ok", "skipped"
    or "error" (the last two need no answer and score 0); of several for one question the last
    counts, as in the official program. `questions` and `annotations` are the parsed official files
    or the lists in them; a sample of the questions is scored against the full annotations. Nothing
    given is changed (the official program normalises the references in place, and a second call
    may then see them as unanimous).

    The official program refuses a file with a question missing; here it counts as wrong and is
    reported. `validate_results` refuses like the official one.

    Raises ValueError, naming the row, for what is not in the layout: an unknown or repeated id,
    a question without annotation, an annotation without answers, an answer that is no string.
    """
    _check_protocol(protocol)
    asked = _rows_by_id(questions, "questions")
    annotated = _rows_by_id(annotations, "annotations")
    for question_id, question in asked.items():
        annotation = annotated.get(question_id)
        image_id = question.get("image_id")
        problem = None
        if annotation is None:
            problem = "no annotation; are the two files of the same split?"
        elif image_id is not None and image_id != annotation.get("image_id", image_id):
            problem = "not the image_id of its annotation; of another data set?"
        if problem:
            raise ValueError(f"{_where('questions', asked, question_id)}: {problem}")
    given = _last_predictions(predictions, asked)

    summed: dict[int, float] = {}  # in the order of the annotations, which decides the sums
    exact: dict[int, float] = {}
    by_answer_type: dict[str, list[float]] = defaultdict(list)
    by_question_type: dict[str, list[float]] = defaultdict(list)
    answered: list[float] = []
    errors = 0
    for question_id, annotation in annotated.items():
        if question_id not in asked:
            continue
        try:
            answers = _annotators_answers(annotation)
        except ValueError as error:
            where = _where("annotations", annotated, question_id)
            raise ValueError(f"{where}: {error}") from None
        prediction = given.get(question_id)
        status = prediction.get("status", "ok") if prediction else "skipped"
        value = exact[question_id] = 0.0
        if status == "ok":
            matches = _matches(prediction["answer"], answers, protocol)
            value = _accuracy_as_summed(matches)
            exact[question_id] = _accuracy(sum(matches), len(matches))
            answered.append(value)
        errors += status == "error"
        summed[question_id] = value
        by_answer_type[annotation["answer_type"]].append(value)
        by_question_type[annotation["question_type"]].append(value)

    missing = len(asked) - len(answered) - errors
    note = None
    if not asked:
        note = "no questions, so there is no accuracy"
    elif missing:
        note = (
            f"{missing} of {len(asked)} questions have no answer and count as wrong; the official "
            "program refuses such a file (--validate names them)"
        )
    return VqaScore(
        protocol=protocol,
        n=len(asked),
        overall=_mean_percentage(list(summed.values())),
        overallAnswered=_mean_percentage(answered),
        perAnswerType={k: _mean_percentage(v) for k, v in by_answer_type.items()},
        perQuestionType={k: _mean_percentage(v) for k, v in by_question_type.items()},
        missing=missing,
        errors=errors,
        duplicates=len(predictions) - len(given),
        unasked=len(annotated) - len(asked),
        note=note,
        perQuestion=exact,
        evalQA={question_id: _percentage(score, 1) for question_id, score in summed.items()},
    )


def _mean_percentage(scores: list[float]) -> float | None:
    total = 0.0
    for score in scores:  # not sum(): see _accuracy_as_summed
        total += score
    return _percentage(total, len(scores)) if scores else None


def _typed(value: Any) -> str:
    """A value for a message: its type, and itself cut to a readable length."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _rows_by_id(data: dict[str, Any] | list[dict[str, Any]], key: str) -> dict[int, dict[str, Any]]:
    """{question_id: row} of an official file or the list in it, in its order."""
    if isinstance(data, dict):
        if key not in data:
            raise ValueError(
                f"{key}: the file has no key {key!r}, only {', '.join(map(str, data)) or 'none'}; "
                f"is it the {key} file?"
            )
        data = data[key]
    if not isinstance(data, list):
        raise ValueError(f"{key}: {_typed(data)}, must be a list")
    rows: dict[int, dict[str, Any]] = {}
    for i, row in enumerate(data):
        question_id = _question_id(row, key, i)
        if question_id in rows:
            first = _where(key, rows, question_id)
            raise ValueError(f"{key}[{i}]: question_id {question_id} again, first in {first}")
        rows[question_id] = row
    return rows


def _where(key: str, rows: dict[int, Any], question_id: int) -> str:
    """A row's name, made when there is a message: for every row it would show in the time."""
    return f"{key}[{list(rows).index(question_id)}] (question_id {question_id})"


def _question_id(row: Any, key: str, i: int) -> int:
    if not isinstance(row, dict):
        raise ValueError(f"{key}[{i}]: {_typed(row)}, must be an object")
    question_id = row.get("question_id")
    if type(question_id) is not int:  # True is an int to isinstance
        if "question_id" not in row:
            raise ValueError(f"{key}[{i}]: no question_id")
        raise ValueError(f"{key}[{i}]: question_id is {_typed(question_id)}, must be an int")
    return question_id


def _annotators_answers(annotation: dict[str, Any]) -> list[str]:
    """The strings of an annotation, after a look at all fields that scoring uses."""
    for key in ("answer_type", "question_type"):
        if not isinstance(annotation.get(key), str):
            raise ValueError(f"{key} is {_typed(annotation.get(key))}, must be a string")
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers:
        raise ValueError("no answers")
    try:
        texts = list(map(_ANSWER, answers))
        if set(map(type, texts)) == {str}:  # this and the line above keep to C: two million answers
            return texts
    except (KeyError, TypeError):
        pass
    i, entry = next(
        (i, entry)
        for i, entry in enumerate(answers)
        if not isinstance(entry, dict) or type(entry.get("answer")) is not str
    )
    raise ValueError(f'answers[{i}] is {_typed(entry)}, must be {{"answer": string, ...}}')


def _last_predictions(
    predictions: list[dict[str, Any]], asked: dict[int, Any]
) -> dict[int, dict[str, Any]]:
    """{question_id: prediction}, the last of each question.

    Official loadRes: a results file is a list, and no id may be foreign to the questions.
    """
    if not isinstance(predictions, list):
        raise ValueError(f"predictions: {_typed(predictions)}, must be a list of objects")
    last: dict[int, dict[str, Any]] = {}
    for i, row in enumerate(predictions):
        question_id = _question_id(row, "predictions", i)
        status = row.get("status", "ok")
        problem = None
        if question_id not in asked:
            problem = "not among the questions; is it of another split?"
        elif status not in ("ok", "error", "skipped"):
            problem = f"status is {_typed(status)}, must be ok, error or skipped"
        elif status == "ok" and not isinstance(row.get("answer"), str):
            problem = f"answer is {_typed(row.get('answer'))}, must be a string"
        if problem:
            raise ValueError(f"predictions[{i}] (question_id {question_id}): {problem}")
        last[question_id] = row
    return last


def validate_results(
    results: Any,
    questions: dict[str, Any] | list[dict[str, Any]],
    annotations: dict[str, Any] | list[dict[str, Any]] | None = None,
) -> list[str]:
    """What an evaluation server would refuse in a results file, one sentence each; [] when good.

    Checked: a list of objects; question_id an int, answer a string; each id once; the ids exactly
    those of the questions (official loadRes), and of the annotations when given. The VQA v2.0
    server wants all 447,793 test questions, also for test-dev. Raises ValueError when the
    questions or the annotations are themselves at fault.
    """
    asked = _rows_by_id(questions, "questions")
    problems = []
    if isinstance(questions, dict) and questions.get("data_subtype") == "test-dev2015":
        problems.append(
            "these are the test-dev questions; the server wants answers to all test questions, "
            "also for test-dev: check against v2_OpenEnded_mscoco_test2015_questions.json"
        )
    if annotations is not None:
        annotated = _rows_by_id(annotations, "annotations")
        problems += _listed("questions without annotation", asked.keys() - annotated.keys())
        problems += _listed("annotations without question", annotated.keys() - asked.keys())
    if not isinstance(results, list):
        return [*problems, f"the file holds {_typed(results)}, must be a list of objects"]
    first: dict[int, int] = {}
    for i, row in enumerate(results):
        try:
            question_id = _question_id(row, "results", i)
        except ValueError as error:
            problems.append(str(error))
            continue
        where = f"results[{i}] (question_id {question_id})"
        if question_id in first:
            problems.append(f"{where}: answered before, in results[{first[question_id]}]")
        elif question_id not in asked:
            problems.append(f"{where}: not among the questions")
        first.setdefault(question_id, i)
        if not isinstance(row.get("answer"), str):
            problems.append(f"{where}: answer is {_typed(row.get('answer'))}, must be a string")
    missing = asked.keys() - first.keys()
    problems += _listed("questions without answer", missing)
    if 0 < len(missing) < len(asked):
        problems.append(
            f"{len(asked) - len(missing)} of {len(asked)} questions are answered, so these are the "
            "results of a sample; a server takes the whole split (evaluate.py --limit 0)"
        )
    return problems


def _listed(what: str, question_ids: set[int]) -> list[str]:
    """One line for any number of ids, the ten smallest by name; none for none."""
    if not question_ids:
        return []
    named = ", ".join(map(str, sorted(question_ids)[:10])) + ", ..." * (len(question_ids) > 10)
    return [f"{len(question_ids)} {what}: question_id {named}"]


def _read_json(path: Path) -> Any:
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.json"))[:5])
        raise IsADirectoryError(
            f"{path}: a folder, expected a JSON file" + (f"; in it: {inside}" if inside else "")
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON in UTF-8: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a results file that does not pass --validate, 2 for input
    that cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.vqa_score",
        description="Official VQA accuracy of a results file, printed as one JSON object.",
        epilog="Protocols: " + "; ".join(f"{name}: {who}" for name, who in PROTOCOLS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("results", type=Path, help="[{question_id, answer}, ...]")
    parser.add_argument("questions", type=Path, help="v2_OpenEnded_mscoco_*_questions.json")
    parser.add_argument(
        "annotations",
        type=Path,
        nargs="?",
        help="v2_mscoco_*_annotations.json; --validate goes without",
    )
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="official-2021")
    parser.add_argument(
        "--summary", action="store_true", help="leave out perQuestion and evalQA, a value each"
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="score nothing; name what an evaluation server would refuse, exit 1 if there is any",
    )
    options = parser.parse_args(argv)
    if options.annotations is None and not options.validate:
        parser.error("ANNOTATIONS is needed for scoring (only --validate goes without)")
    try:
        questions = _read_json(options.questions)
        annotations = _read_json(options.annotations) if options.annotations else None
        if options.validate:
            try:
                results = _read_json(options.results)
            except ValueError as error:
                problems = [str(error)]
            else:
                problems = validate_results(results, questions, annotations)
            shown = problems[:50] + ["..."] * (len(problems) > 50)
            verdict = f"{len(problems)} problems" if problems else "valid"
            print(*shown, f"{options.results}: {verdict}", sep="\n")
            return 1 if problems else 0
        score = score_vqa(_read_json(options.results), questions, annotations, options.protocol)
    except (OSError, ValueError) as error:
        files = f"predictions {options.results}, questions {options.questions}"
        if options.annotations:
            files += f", annotations {options.annotations}"
        print(f"error: {error}\n({files})", file=sys.stderr)
        return 2
    if options.summary:
        del score["perQuestion"], score["evalQA"]
    print(json.dumps(score))
    return 0


if __name__ == "__main__":
    sys.exit(main())
