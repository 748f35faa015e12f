"""`make setup`: one virtual environment in `.venv` with the tested set of packages.

    python3 -m shared.setup

Uses uv when it is installed, else venv and pip. A torch of the calling Python that already sees
CUDA and meets the version range of pyproject.toml is kept (the environment then sees the system's
packages). Does nothing when the environment is up to date. Standard library only: it runs before
anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "installed.sha256"
MINIMUM = (3, 11)
PROBE = "import torch; print(torch.__version__, int(torch.cuda.is_available()))"


def main() -> None:
    if sys.version_info < MINIMUM:
        sys.exit(
            f"error: Python {sys.version.split()[0]}; 3.11 or newer is needed "
            "(for instance: conda create -n vlm python=3.12)"
        )
    wanted = wanted_hash()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    kept_torch = torch_with_cuda()
    if kept_torch:
        print(f"keeping torch {kept_torch}, which sees CUDA")
    requirements = install_list(kept_torch)
    create_environment(system_packages=bool(kept_torch))
    install(requirements)
    STAMP.write_text(wanted)
    print(f"environment ready: {ENVIRONMENT.name}")


def wanted_hash() -> str:
    content = (ROOT / "requirements.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(content).hexdigest()


def torch_with_cuda() -> str | None:
    """The version of the calling Python's torch, when it sees a GPU and is in the range."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if done.returncode != 0:
        return None
    version, sees_cuda = done.stdout.split()
    return version if sees_cuda == "1" and in_range(version, torch_range()) else None


def torch_range() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(least, below) from pyproject.toml's "torch>=A,<B"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    line = next(d for d in project["dependencies"] if d.startswith("torch>="))
    least, below = re.fullmatch(r"torch>=([\d.]+),<([\d.]+)", line).groups()
    return numbers(least), numbers(below)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[\d.]*\d", version).group().split("."))


def in_range(version: str, limits: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    return limits[0] <= numbers(version) < limits[1]


def install_list(kept_torch: str | None) -> list[str]:
    """Arguments for pip: the pinned set, with the torch that is kept in the place of the pin."""
    if not kept_torch:
        return ["-r", str(ROOT / "requirements.txt")]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if "==" in line and not line.startswith(("torch=", "#"))]
    return [*pins, f"torch=={kept_torch}", "-e", str(ROOT)]


def create_environment(*, system_packages: bool) -> None:
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    uv = shutil.which("uv")
    command = (
        [uv, "venv", "--python", sys.executable, str(ENVIRONMENT)]
        if uv
        else [sys.executable, "-m", "venv", str(ENVIRONMENT)]
    )
    subprocess.run([*command, *(["--system-site-packages"] if system_packages else [])], check=True)


def install(requirements: list[str]) -> None:
    uv = shutil.which("uv")
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = (
        [uv, "pip", "install", "--python", str(python)]
        if uv
        else [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    )
    print("installing the packages (a few minutes, a gigabyte or two) ...", flush=True)
    done = subprocess.run([*command, *requirements], cwd=ROOT)
    if done.returncode != 0:
        sys.exit(
            "error: the packages could not be installed; the lines above say why. Behind a slow "
            "line set PIP_INDEX_URL (or UV_DEFAULT_INDEX) to a mirror and run the command again."
        )


if __name__ == "__main__":
    main()
