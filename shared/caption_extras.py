"""METEOR and SPICE of tokenised captions: the caption metrics that are programs of others.

METEOR 1.5 is a Java program. Where Java or its jar is missing, nltk's METEOR takes its place under
its own name, METEOR_nltk: the parameters of 2007, no paraphrases, no weight for function words, so
that its values (about .6 on COCO, where METEOR 1.5 gives .35) stand beside no published METEOR.
SPICE runs where everything it needs is at hand, else one line says what is missing; it was never
run with its own programs by those who wrote this, only with a stand-in for them in the tests.

    python -m pytest tests/shared/test_caption_score.py

Reads the jars where the environment variables METEOR_JAR and SPICE_JAR say, or in an installed
pycocoevalcap; writes nothing but SPICE's files in a temporary folder. Source of how the programs
are called: https://github.com/salaniz/pycocoevalcap, meteor/meteor.py and spice/spice.py.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Tokens = Sequence[str]
TIMEOUT_S = 3600  # of a Java program, for all images together


@dataclass(frozen=True)
class ExtraScore:
    """A metric by another program; where it could not run `corpus` is None and `note` says why."""

    name: str
    corpus: float | None
    per_image: list[float]
    note: str


def meteor_scores(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens], language: str
) -> ExtraScore:
    """METEOR 1.5 of English captions where Java and its jar are present, else METEOR_nltk.

    One candidate an image, one or more references. The note names the version and its stages, and
    why it is not 1.5 where it is not.
    """
    problem = meteor_problem(language)
    if problem is None:
        try:
            corpus, per_image = _meteor_by_jar(references, candidates)
            return ExtraScore("METEOR", corpus, per_image, "METEOR 1.5 (Java), -l en -norm")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            problem = f"METEOR 1.5 failed: {_one_line(error)}"
    score, stages = _meteor_by_nltk(references, candidates, language)
    note = f"nltk's METEOR, stages {', '.join(stages)}; not METEOR 1.5 ({problem})"
    return ExtraScore("METEOR_nltk", sum(score) / len(score), score, note)


def spice_scores(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens], language: str
) -> ExtraScore:
    """SPICE's F-score; None with the reason where it can't run or fails."""
    problem = spice_problem(language)
    if problem is None:
        try:
            per_image = _spice_by_jar(references, candidates)
            return ExtraScore("SPICE", sum(per_image) / len(per_image), per_image, "SPICE 1.0")
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            problem = f"SPICE failed: {_one_line(error)}"
    return ExtraScore("SPICE", None, [], problem)


def meteor_problem(language: str = "en") -> str | None:
    """Why METEOR 1.5 can't run here, in one line; None where it can."""
    if language != "en":
        return "its stages here are those of English"
    if shutil.which("java") is None:
        return "no Java on the path"
    jar = _jar("METEOR_JAR", "meteor/meteor-1.5.jar")
    if jar is None:
        return "no meteor-1.5.jar: pip install pycocoevalcap, or set METEOR_JAR"
    if not any((jar.parent / "data").glob("paraphrase-en.gz")):
        return f"no data/paraphrase-en.gz beside {jar.name}"
    return None


def spice_problem(language: str = "en") -> str | None:
    """Why SPICE can't run here, in one line; None where nothing is known to be missing."""
    if language != "en":
        return "SPICE parses English only"
    jar = _jar("SPICE_JAR", "spice/spice-1.0.jar")
    if jar is None:
        return "SPICE: no spice-1.0.jar: pip install pycocoevalcap, or set SPICE_JAR"
    missing = [
        name
        for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
        if not (jar.parent / "lib" / name).is_file()
    ]
    if missing:
        return f"SPICE: no {' and '.join(missing)} in the folder lib beside {jar.name}"
    version = _java_version()
    if version not in (8, 11):
        found = "none is on the path" if version is None else f"this is Java {version}"
        return f"SPICE needs Java 8 or 11; {found}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"SPICE's database has no version for {platform.machine()}"
    return None


def _jar(variable: str, inside: str) -> Path | None:
    """The file that the environment variable names, or the one in an installed pycocoevalcap."""
    if os.environ.get(variable):
        named = Path(os.environ[variable])
        return named.resolve() if named.is_file() else None
    found = importlib.util.find_spec("pycocoevalcap")
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / inside).is_file():
            return (Path(folder) / inside).resolve()
    return None


def _java_version() -> int | None:
    """8, 11, 17, ... of the Java on the path; None where there is none."""
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else None


def _meteor_by_jar(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]
) -> tuple[float, list[float]]:
    """The corpus value, which METEOR makes from summed statistics, and each image's value.

    One line a question, one line an answer: first every image's statistics, then one question with
    them all, which is answered by a line for each image and one for the corpus. The jar reads the
    machine's language: with a comma as decimal mark its numbers would be no numbers.
    """
    jar = _jar("METEOR_JAR", "meteor/meteor-1.5.jar")
    command = ["java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    command += ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        cwd=jar.parent if jar else None,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(line: str) -> str:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        too_long = threading.Timer(TIMEOUT_S, process.kill)
        too_long.start()
        try:
            statistics = []
            for texts, candidate in zip(references, candidates, strict=True):
                parts = [_field(text) for text in [*texts, candidate]]
                statistics.append(ask(" ||| ".join(["SCORE", *parts])))
            answers = [ask(" ||| ".join(["EVAL", *statistics]))]
            answers += [process.stdout.readline().strip() for _ in candidates]
        finally:
            too_long.cancel()
            process.kill()
    try:
        values = [float(answer) for answer in answers]
    except ValueError as error:
        raise ValueError(f"an answer of its program is no number: {error}") from error
    return values[-1], values[:-1]


def _field(tokens: Tokens) -> str:
    """A caption as a part of a line whose parts are divided by |||."""
    return " ".join(tokens).replace("|||", "").replace("  ", " ").replace("\n", " ")


def _meteor_by_nltk(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens], language: str
) -> tuple[list[float], list[str]]:
    """Each image's value, the best of its references, and the stages in use.

    Synonyms only for English where WordNet is on the disk: nothing is downloaded.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    english = language == "en"
    wordnet = _wordnet() if english else None
    stages = ["exact"] + ["Porter stem"] * english + ["WordNet synonyms"] * bool(wordnet)
    stemmer = _Cached(PorterStemmer().stem if english else str)
    synonyms = wordnet or _NoSynonyms()
    values = [
        max(
            single_meteor_score(reference, candidate, stemmer=stemmer, wordnet=synonyms)
            for reference in texts
        )
        if candidate
        else 0.0
        for texts, candidate in zip(references, candidates, strict=True)
    ]
    return values, stages


class _Cached:
    """What single_meteor_score takes for a stemmer; each word is stemmed once."""

    def __init__(self, stem: Any) -> None:
        self.stem = lru_cache(None)(stem)


class _NoSynonyms:
    """What single_meteor_score takes for WordNet where there is none."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _wordnet() -> Any | None:
    import nltk

    for name in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            nltk.data.find(name)
        except LookupError:
            continue
        from nltk.corpus import wordnet

        return wordnet
    return None


def _spice_by_jar(
    references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]
) -> list[float]:
    jar = _jar("SPICE_JAR", "spice/spice-1.0.jar")
    rows = [
        {"image_id": i, "test": " ".join(candidate), "refs": [" ".join(text) for text in texts]}
        for i, (texts, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "captions.json", Path(folder) / "scores.json"
        cache = Path(folder) / "cache"
        cache.mkdir()
        given.write_text(json.dumps(rows), encoding="utf-8")
        command = ["java", "-Xmx8G", "-jar", str(jar), str(given)]
        command += ["-cache", str(cache), "-out", str(found), "-silent"]
        subprocess.run(
            command,
            capture_output=True,
            check=True,
            timeout=TIMEOUT_S,
            cwd=jar.parent if jar else None,
        )
        scores = {row["image_id"]: row["scores"] for row in json.loads(found.read_text())}
    values = [float(scores[i]["All"]["f"]) for i in range(len(rows))]
    if not all(map(math.isfinite, values)):
        raise ValueError("an image's score is no number")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
