"""The shape of the repository, and what must not be written into it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]

_LONGEST_MODULE = 450
"""Lines; a module of tests is as long as what it tests."""
_LONGER: dict[str, str] = {}
"""Modules that may be longer, each with its reason."""

_MACHINE = re.compile(r"(?<![\w.~$}-])/(?:home|root|Users|work)/")
_REGISTRY = re.compile(
    r"\b(?:pypi[.]org|pythonhosted[.]org|artifactory|jfrog|codeartifact|pkg[.]dev|npmjs)\b", re.IGNORECASE
)


def _tracked() -> list[Path]:
    """The files that git knows and that are there."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # whoever owns the checkout
    names = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := _ROOT / name).is_file()]


def _relative(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


@pytest.mark.parametrize(
    "name", ["proto", "worker", "plugins", "tests", "config/common.properties", "Dockerfile", "README.md", "LICENSE"]
)
def test_what_everybody_looks_for_is_there(name):
    assert (_ROOT / name).exists()


def test_folders_that_are_no_packages_have_no_init():
    stray = [
        _relative(path)
        for path in _tracked()
        if path.name == "__init__.py"
        and path.relative_to(_ROOT).parts[0] in {"proto", "config", "tests"}
        and not _relative(path).startswith("tests/example_plugin/remora_example/")
    ]

    assert not stray


def test_test_modules_have_different_names():
    names = [path.name for path in _tracked() if path.name.startswith("test_")]

    assert len(names) == len(set(names))


def test_there_is_no_uv_lock_because_it_would_record_addresses():
    assert not [_relative(path) for path in _tracked() if path.name == "uv.lock"]


@pytest.mark.parametrize("pattern", [_MACHINE, _REGISTRY], ids=["paths of a machine", "hosts of a registry"])
def test_nothing_of_the_machine_it_was_written_on_is_in_the_repository(pattern):
    found = [
        f"{_relative(path)}:{number}: {line.strip()}"
        for path in _tracked()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]

    assert not found, "\n".join(found)


def test_modules_are_short():
    lengths = {
        _relative(path): len(path.read_text().splitlines())
        for path in _tracked()
        if path.suffix == ".py" and "/v1/" not in path.as_posix() and not path.name.startswith("test_")
    }
    longer = {name: length for name, length in lengths.items() if length > _LONGEST_MODULE}

    assert longer.keys() == _LONGER.keys(), f"split by idea, or give a reason; or remove one: {longer}"
