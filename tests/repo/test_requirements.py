"""The locks pin everything with hashes, name no registry, and are no older than what they lock."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[2]
_LOCKS = ("build", "runtime", "dev")
_PROJECTS = ("worker/pyproject.toml", "plugins/sagemaker/pyproject.toml")
_OURS = {"remora", "remora-sagemaker"}


def _pins(lock: str) -> list[Requirement]:
    text = (_ROOT / f"requirements/{lock}.txt").read_text().replace("\\\n", "")
    return [Requirement(line.partition(" --hash=")[0]) for line in text.splitlines() if line]


def _pinned(lock: str) -> dict[str, Requirement]:
    """The pins that count here, by name."""
    return {canonicalize_name(pin.name): pin for pin in _pins(lock) if pin.marker is None or pin.marker.evaluate()}


def _inputs(lock: str) -> list[Requirement]:
    texts: list[str] = []
    if lock != "runtime":
        lines = (_ROOT / f"requirements/{lock}.in").read_text().splitlines()
        texts += [line for line in lines if line and not line.startswith("#")]
    if lock != "build":
        for path in _PROJECTS:
            project = tomllib.loads((_ROOT / path).read_text())["project"]
            texts += [*project["dependencies"], *project.get("optional-dependencies", {}).get("simulator", ())]
    wanted = map(Requirement, texts)
    return [one for one in wanted if one.name not in _OURS and (one.marker is None or one.marker.evaluate())]


@pytest.mark.parametrize("lock", _LOCKS)
def test_every_pin_has_hashes_and_nothing_else_stands_in_a_lock(lock):
    for block in re.split(r"\n(?=\S)", (_ROOT / f"requirements/{lock}.txt").read_text().rstrip()):
        first, *rest = block.split(" \\\n")

        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^\n]+)?", first)
        assert rest, f"{first} has no hash"
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in rest), first


@pytest.mark.parametrize("lock", _LOCKS)
def test_a_lock_satisfies_what_it_was_made_from(lock):
    pinned = _pinned(lock)
    stale = [
        str(wanted)
        for wanted in _inputs(lock)
        if (pin := pinned.get(canonicalize_name(wanted.name))) is None
        or not wanted.specifier.contains(next(iter(pin.specifier)).version)
    ]

    assert not stale, "run `make lock` and commit what it writes"


def test_the_tests_run_with_what_is_shipped():
    runtime, dev = ({(pin.name, str(pin)) for pin in _pins(lock)} for lock in ("runtime", "dev"))

    assert runtime <= dev


def test_the_distributions_are_built_with_what_is_locked():
    pinned = _pinned("build")
    for path in (*_PROJECTS, "tests/example_plugin/pyproject.toml"):
        for wanted in map(Requirement, tomllib.loads((_ROOT / path).read_text())["build-system"]["requires"]):
            assert wanted.specifier.contains(next(iter(pinned[wanted.name].specifier)).version), path
