"""The house rules that a machine can hold: who imports whom, and what no module may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.options import REPO_ROOT

MAX_LINES = 500
EXPERIMENTS = sorted(
    path.parent.name for path in REPO_ROOT.glob("*/__init__.py") if path.parent.name != "shared"
)
# Scoring and data must be usable, and quick to start, where no model is.
WITHOUT_TORCH = (
    "shared.options",
    "shared.images",
    "shared.vqav2",
    "shared.vqa_score",
    "shared.vqa_normalise",
    "shared.significance",
    "shared.answering",
    "shared.loading",
    "shared.report",
    "shared.toy_world.build",
    "shared.blind",
    "shared.estimates",
    "shared.calibration",
    "shared.runs",
    "shared.verification",
    "shared.comparison",
    "shared.comparison_report",
    "shared.comparison_many",
    "shared.comparison_many_report",
    "shared.caption_score",
    "shared.caption_files",
    "shared.caption_report",
    "shared.coco_captions",
    "shared.conversations",
    "llava_repro.templates",
    "llava_repro.prepare_data",
    "blip2_qlora.settings",
    "blip2_qlora.scoring",
    "blip2_qlora.verifying",
    "blip2_qlora.predict",
    "blip2_qlora.evaluate",
    "blip2_qlora.train",
    "shared.endpoint",
    "llava_repro.tasks",
    "llava_repro.judge",
    "llava_repro.score",
    "llava_repro.evaluate",
    "llava_repro.compare",
    "shared.coco",
    "llava_openset.splitting",
    "llava_openset.samples",
    "llava_openset.make_known_from_coco",
    "llava_openset.matching",
    "llava_openset.protocols",
    "llava_openset.scoring",
    "llava_openset.evaluate",
    "llava_openset.predict",
    "shared.llava_parts",
    "qwen_clip_llava_lora.merge_settings",
    "qwen_clip_llava_lora.merge_model",
    "qwen_clip_llava_lora.merge_adapter",
    "qwen_clip_llava_lora.data_formats",
    "qwen_clip_llava_lora.prepare_data",
    "qwen_clip_llava_lora.train",
    "qwen_clip_llava_lora.evaluate",
    "qwen_clip_llava_lora.comparing",
    "qwen_clip_llava_lora.compare",
    "qwen_clip_llava_lora.demo",
    "qwen_clip_llava_lora.describe_images",
    "qwen_clip_llava_lora.compare_prompts",
    "lavis_apps.data",
    "lavis_apps.train",
    "lavis_apps.index",
    "lavis_apps.index_pictures",
    "lavis_apps.index_building",
    "lavis_apps.build_index",
    "lavis_apps.search",
    "lavis_apps.app",
    "lavis_apps.blip_demo",
)


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPO_ROOT / folder).rglob("*.py"))


def code() -> list[Path]:
    return modules("shared", *EXPERIMENTS)


def everything() -> list[Path]:
    return [*code(), *modules("tests", "benchmarks")]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path, *, for_types: bool = True) -> Iterator[str]:
    """Names of imported modules, also those inside functions; `from a import b` gives a and a.b.

    Without `for_types`, what stands under `if TYPE_CHECKING:` is left out.
    """
    passed_over: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            passed_over |= set(ast.walk(node))
        if node in passed_over:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_script(path: Path) -> bool:
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO_ROOT).with_suffix("").parts)


def offences(paths: list[Path], wrong) -> list[str]:
    return [
        f"{path.relative_to(REPO_ROOT)}: {name}"
        for path in paths
        for name in imported(path)
        if wrong(path, name)
    ]


def test_the_reader_of_imports_sees_them_all(tmp_path):
    """A rule that reads nothing holds always."""
    file = tmp_path / "a.py"
    file.write_text("import a.b\nfrom c import d\ndef f():\n    from e.f import g\n    import h\n"
                    "if TYPE_CHECKING:\n    import i\n")  # fmt: skip
    assert set(imported(file)) == {"a.b", "c", "c.d", "e.f", "e.f.g", "h", "i"}
    assert set(imported(file, for_types=False)) == {"a.b", "c", "c.d", "e.f", "e.f.g", "h"}
    assert "blip2_qlora" in EXPERIMENTS
    assert len(code()) > 20
    assert is_script(REPO_ROOT / "blip2_qlora" / "train.py")


def test_experiments_never_import_each_other():
    def wrong(path: Path, name: str) -> bool:
        own = path.relative_to(REPO_ROOT).parts[0]
        return name.split(".")[0] in set(EXPERIMENTS) - {own}

    assert offences(modules(*EXPERIMENTS), wrong) == []


def test_shared_imports_no_experiment():
    found = offences(modules("shared"), lambda _, name: name.split(".")[0] in EXPERIMENTS)
    assert found == []


def test_scripts_never_import_scripts():
    """What two scripts need stands in a module of their folder."""
    scripts = {name_of(path) for path in modules(*EXPERIMENTS) if is_script(path)}
    assert "blip2_qlora.evaluate" in scripts
    found = [
        f"{name_of(path)}: {name}"
        for path in modules(*EXPERIMENTS)
        for name in imported(path, for_types=False)
        if name in scripts
    ]
    assert found == []


def test_nothing_imports_a_library_called_evaluate():
    """`evaluate.py` is named like a library; a script that imported that would get ours."""
    assert offences(everything(), lambda _, name: name.split(".")[0] == "evaluate") == []


def test_no_module_hides_a_library():
    """From inside its folder `python train.py` puts the folder first on the path."""
    libraries = {"datasets", "transformers", "torch", "peft", "PIL", "gradio", "tokenizers"}
    taken = {path.stem for path in code()} & (libraries | set(sys.stdlib_module_names))
    assert taken - {"__init__", "__main__"} == set()


@pytest.mark.parametrize("path", everything(), ids=name_of)
def test_every_file_opens_with_what_it_is(path):
    assert ast.get_docstring(tree(path)), f"{path}: no docstring"


def test_no_module_is_longer_than_500_lines():
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in code()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def calls(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def test_nothing_is_unpickled():
    """`torch.load` runs the code in a file unless told not to; pickle always does."""
    found = []
    for path in everything():
        for call in calls(path):
            name = ast.unparse(call.func)
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{name_of(path)}: {ast.unparse(call)}")
            if name in {"pickle.load", "pickle.loads", "joblib.load"}:
                found.append(f"{name_of(path)}: {name}")
            if keywords.get("allow_pickle") == "True":
                found.append(f"{name_of(path)}: allow_pickle")
    assert found == []


def test_no_model_s_own_code_is_trusted():
    found = [
        f"{name_of(path)}: {ast.unparse(call)}"
        for path in everything()
        for call in calls(path)
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
    ]
    assert found == []


def test_no_bare_except_and_no_star_import():
    found = []
    for path in everything():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{name_of(path)} line {node.lineno}: bare except")
            if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
                found.append(f"{name_of(path)} line {node.lineno}: import *")
    assert found == []


def test_functions_of_the_project_are_typed():
    """Every parameter and every result, in what others read and call."""
    found = []
    for path in code():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [
                a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")
            ]
            if node.returns is None:
                untyped.append("result")
            if untyped:
                found.append(f"{name_of(path)}.{node.name}: {', '.join(untyped)}")
    assert found == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_it_imports_where_there_is_no_torch(module):
    """Scoring, data, reports and every `--help` start without the heavy libraries."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'matplotlib', 'gradio'):\n"
        "    sys.modules[name] = None\n"
        f"import {module}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
