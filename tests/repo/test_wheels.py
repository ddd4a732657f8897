"""What is installed elsewhere is in the wheels, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_DISTRIBUTIONS = {"worker": "remora", "plugins/sagemaker": "remora_sagemaker"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """The wheel of each package."""
    found: dict[str, zipfile.ZipFile] = {}
    for source, package in _DISTRIBUTIONS.items():
        out = tmp_path_factory.mktemp(package)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out],
            cwd=_ROOT / source,
            check=True,
            capture_output=True,
        )
        (wheel,) = out.iterdir()
        found[package] = zipfile.ZipFile(wheel)
    return found


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


@pytest.mark.parametrize(("source", "package"), _DISTRIBUTIONS.items())
def test_a_wheel_has_every_file_of_its_package_and_only_these(wheels, source, package):
    known = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", package],
        cwd=_ROOT / source,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    content = {name for name in wheels[package].namelist() if ".dist-info/" not in name}

    assert content == {name for name in known if (_ROOT / source / name).exists()}
    assert f"{package}/py.typed" in content


def test_the_worker_brings_the_generated_api_with_its_types(wheels):
    for proto in (_ROOT / "proto/remora/v1").glob("*.proto"):
        for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
            assert f"remora/v1/{proto.stem}{suffix}" in wheels["remora"].namelist()


@pytest.mark.parametrize("package", _DISTRIBUTIONS.values())
def test_a_wheel_says_what_it_is_and_under_which_licence(wheels, package):
    metadata = Parser().parsestr(_metadata(wheels[package], "METADATA"))

    assert metadata["Name"] == package.replace("_", "-")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload()
    assert _metadata(wheels[package], "licenses/LICENSE") == (_ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(("package", "group"), [("remora", "remora.doors"), ("remora_sagemaker", "remora.plugins")])
def test_a_wheel_has_the_entry_points_by_which_the_worker_finds_it(wheels, package, group):
    assert f"[{group}]" in _metadata(wheels[package], "entry_points.txt")
