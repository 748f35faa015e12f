"""Facts about this machine: torch, driver, packages, memory, browser, fonts.

Nothing is judged here; `shared/doctor.py` turns these facts into advice. torch and bitsandbytes are
tried in a process of their own: a broken build may crash without taking the report with it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.options import REPO_ROOT

CJK_FONT_FILES = re.compile(
    r"cjk|wqy|wenquanyi|simhei|simsun|msyh|pingfang|hiragino|sourcehan|heiti|songti|uming|ukai"
    r"|droidsansfallback",
    re.IGNORECASE,
)


def probe() -> None:
    """Print one JSON object a line about torch, torchvision and bitsandbytes. Run as a process."""

    def tell(**facts: object) -> None:
        print(json.dumps(facts), flush=True)

    import torch

    available = torch.cuda.is_available()
    tell(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        available=available,
        devices=[
            {"name": p.name, "total": p.total_memory}
            for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
    )
    device = "cuda" if available else "cpu"
    try:
        torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:
        tell(gpu_error=first_line(error))
        return
    if importlib.util.find_spec("torchvision"):
        try:
            import torchvision  # noqa: F401
        except Exception as error:  # a mismatched build fails in many ways
            tell(torchvision_error=first_line(error))
    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32
        ).to(device)
        with torch.no_grad():
            finite = layer(torch.ones(1, 64, device=device)).isfinite().all().item()
        tell(bitsandbytes=bitsandbytes.__version__, nf4=finite)
    except Exception as error:  # libraries that can't be loaded raise many types
        tell(nf4_error=first_line(error))


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def run_probe(timeout_s: int = 180) -> dict[str, Any]:
    """The facts that `probe` told before it ended or crashed; "error" says how it crashed.

    A probe that is still busy after `timeout_s` is no broken one: "timeout" says so, and what it
    told until then is kept.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", "from shared.machine import probe; probe()"],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        told = error.stdout or ""  # bytes in spite of text=True (subprocess, POSIX)
        facts = told_facts(told.decode() if isinstance(told, bytes) else told)
        question = f"did not answer in {timeout_s} s; is the machine busy? Ask again later"
        return facts | {"timeout": question, "error": question}
    except OSError as error:
        return {"error": first_line(error)}
    facts = told_facts(done.stdout)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        facts["error"] = last[0] if last else f"crashed with exit status {done.returncode}"
    return facts


def told_facts(output: str) -> dict[str, Any]:
    """The whole lines of `probe` together; a line that its end has cut is dropped."""
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{") and line.endswith("}"):
            facts |= json.loads(line)
    return facts


def read_driver() -> dict[str, str] | None:
    """Driver version and newest CUDA that it runs, from nvidia-smi's heading; None without one."""
    try:
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_driver(done.stdout)


def parse_driver(output: str) -> dict[str, str] | None:
    driver = re.search(r"(?:Driver|KMD) Version:\s*([\d.]+)", output)  # KMD, UMD: drivers of 2026
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*(\d+\.\d+)", output)
    return {"driver": driver[1], "cuda": cuda[1]} if driver and cuda else None


def installed_packages() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(name.lower().replace("_", "-"), distribution.version)
    return found


def requirements_of(package: str) -> list[str]:
    """What an installed package asks for; empty when it is not installed."""
    try:
        return importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def satisfies(version: str, requirement: str) -> bool:
    """Whether an installed version is in the range; unknown without `packaging`: then True."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def pip_command() -> str:
    """A uv environment has no pip of its own."""
    return "python -m pip" if importlib.util.find_spec("pip") else "uv pip"


def project_requirements() -> list[str]:
    import tomllib

    with (REPO_ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["dependencies"]


def available_memory() -> int | None:
    """Bytes of RAM that a new program can have, within a container's limit where there is one."""
    try:
        import psutil
    except ImportError:
        return None
    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def find_browser() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if shutil.which(name):
            return shutil.which(name)
    default = Path.home() / ".cache/ms-playwright"
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", default))
    return next((str(p) for p in sorted(folder.glob("chromium*"))), None)


def find_cjk_font() -> str | None:
    try:
        from matplotlib.font_manager import findSystemFonts
    except ImportError:
        return None
    return next((f for f in sorted(findSystemFonts()) if CJK_FONT_FILES.search(Path(f).name)), None)
