"""`make setup`: which torch is kept, what is installed."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from shared import setup


@pytest.mark.parametrize(
    ("version", "kept"),
    [("2.9.0+cu130", True), ("2.13.0", True), ("2.8.1", False), ("3.0.0", False), ("2.9", True)],
)
def test_the_range_of_torch_is_that_of_pyproject(version, kept):
    assert setup.torch_range() == ((2, 9), (3,))
    assert setup.in_range(version, setup.torch_range()) is kept


@pytest.mark.parametrize(
    ("printed", "status", "kept"),
    [
        ("2.12.0+cu130 1", 0, "2.12.0+cu130"),
        ("2.12.0 0", 0, None),
        ("2.4.0 1", 0, None),
        ("", 1, None),
    ],
)
def test_only_a_torch_that_sees_cuda_is_kept(monkeypatch, printed, status, kept):
    answer = SimpleNamespace(returncode=status, stdout=printed)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: answer)
    assert setup.torch_with_cuda() == kept


def test_a_kept_torch_takes_the_place_of_the_pin():
    arguments = setup.install_list("2.12.0+cu130")
    assert "torch==2.12.0+cu130" in arguments
    assert not [a for a in arguments if a.startswith("torch==2.13")]
    assert "transformers==5.23.0" in arguments
    assert arguments[-2:] == ["-e", str(setup.ROOT)]
    assert setup.install_list(None)[0] == "-r"


def test_an_up_to_date_environment_is_left_alone(tmp_path, monkeypatch):
    stamp = tmp_path / "stamp"
    stamp.write_text(setup.wanted_hash())
    monkeypatch.setattr(setup, "STAMP", stamp)
    monkeypatch.setattr(setup, "create_environment", lambda **_: pytest.fail("made anew"))
    setup.main()


def test_pins_lie_in_the_ranges_of_pyproject():
    """requirements.txt and pyproject.toml must not drift apart."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((setup.ROOT / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(d) for d in project["dependencies"]]
    ranges += [Requirement(d) for d in project["optional-dependencies"]["test"]]
    lines = (setup.ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert lines[-1] == "-e ."
    for requirement in ranges:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
