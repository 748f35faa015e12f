"""Commands in the documents: scripts that exist, flags they know, the Chinese README has them too.

Toy commands are run by hand and by the pipeline tests; this holds what a renamed flag would break.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import lru_cache

import pytest

from shared.options import REPO_ROOT

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/README*.md")
    for path in REPO_ROOT.glob(pattern)
    if not path.relative_to(REPO_ROOT).parts[0].startswith(".")
)
CODE = re.compile(r"```bash\n(.*?)```|`([^`\n]+)`", re.DOTALL)
PYTHON = re.compile(
    r"(?:^|\s)(?:\S*/)?(?:python3?)\s+(?P<rest>(?:-m\s+)?\S+.*)$|launch.*?(?P<script>\S+\.py.*)$"
)
ALIEN = {"pip", "pytest", "venv", "ruff"}  # modules that are not ours


def commands(text: str) -> list[str]:
    """The lines of code in a document that call a script or module of this repository."""
    found = []
    for block, inline in CODE.findall(text):
        for line in (block or inline).replace("\\\n", " ").splitlines():
            match = PYTHON.search(line.split(" #")[0].strip())
            if match:
                found.append((match["rest"] or match["script"]).strip())
    return [line for line in found if line.split()[0] != "-c"]


@lru_cache
def help_text(*program: str) -> str:
    """--help_all of a training script, else --help."""
    for flag in ("--help_all", "--help"):
        done = subprocess.run(
            [sys.executable, *program, flag], cwd=REPO_ROOT, capture_output=True, text=True
        )
        if done.returncode == 0 and "usage" in done.stdout:
            return done.stdout
    raise AssertionError(f"{program}: no help\n{done.stderr}")


def program_of(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    return (tuple(words[:2]), words[2:]) if words[0] == "-m" else ((words[0],), words[1:])


def problem_of(command: str) -> str | None:
    """What is wrong with a documented command: no such script, no such flag."""
    program, arguments = program_of(shlex.split(command))
    name = program[-1]
    if name in ALIEN:
        return None
    path = REPO_ROOT / (f"{name.replace('.', '/')}.py" if program[0] == "-m" else name)
    if not path.is_file() and not (path.with_suffix("") / "__main__.py").is_file():
        return f"there is no {path.relative_to(REPO_ROOT)}"
    flags = [word for word in arguments if word.startswith("--")]
    if not flags:
        return None
    known = set(re.findall(r"--\w+", help_text(*program)))
    unknown = [flag for flag in flags if flag.split("=")[0] not in known]
    return f"{unknown} not in its --help" if unknown else None


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO_ROOT)))
def test_documented_commands_exist(document):
    problems = {
        command: problem
        for command in commands(document.read_text("utf-8"))
        if "." in command and (problem := problem_of(command))
    }
    assert not problems


def test_the_check_sees_a_wrong_flag_and_a_wrong_script():
    assert commands(
        "Run `python a/b.py --x 1` or\n```bash\npython -m shared.doctor  # why\n```"
    ) == [
        "a/b.py --x 1",
        "-m shared.doctor",
    ]
    assert "no_such" in (problem_of("blip2_qlora/predict.py --no_such 1") or "")
    assert "there is no" in (problem_of("blip2_qlora/nothing.py --toy") or "")
    assert problem_of("blip2_qlora/predict.py --toy") is None


@pytest.mark.parametrize(
    "english", [path for path in DOCUMENTS if path.with_suffix(".zh-CN.md").is_file()], ids=str
)
def test_the_chinese_document_has_the_same_commands(english):
    chinese = english.with_suffix(".zh-CN.md")
    wanted = set(commands(english.read_text("utf-8")))
    given = {line.removesuffix(" --language zh") for line in commands(chinese.read_text("utf-8"))}
    assert wanted
    assert given == wanted
