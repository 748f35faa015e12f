"""Hashes of a recipe: they change when the code or constants that decide a result change.

Comments, docstrings and blank lines are left out, so that explaining better redraws and retrains
nothing.
"""

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path


def recipe_hash(sources: Sequence[Path]) -> str:
    """Hex SHA-256 (first 16 digits) of the code lines of Python files, in the order given."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.name}\n{code_lines(path.read_text('utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def code_lines(source: str) -> str:
    """The source without docstrings, comment lines and blank lines."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    kept = [line.rstrip() for line in lines]
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
