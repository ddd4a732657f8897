"""The committed protobuf code is what proto/ generates, and the run-time floors are at least its stamps."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

_ROOT = Path(__file__).parents[2]
_COMMITTED = _ROOT / "worker/remora/v1"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    plugins = Path(sys.executable).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "--proto_path=proto"),
            *(f"--plugin={name}={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            *(f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            *(f"remora/v1/{path.name}" for path in (_ROOT / "proto/remora/v1").glob("*.proto")),
        ],
        cwd=_ROOT,
        check=True,
        capture_output=True,
    )
    return out / "remora/v1"


def test_the_committed_code_is_what_the_protos_generate(generated):
    committed = {path.name: path.read_text() for path in _COMMITTED.glob("*_pb2*")}
    fresh = {path.name: path.read_text() for path in generated.iterdir()}

    differing = {name for name in committed.keys() | fresh.keys() if committed.get(name) != fresh.get(name)}
    assert not differing, "run `make proto` and commit what it writes"


@pytest.mark.parametrize(
    ("stamp", "packages"),
    [
        (r"^# Protobuf Python Version: (\S+)$", {"protobuf"}),
        (
            r"^GRPC_GENERATED_VERSION = '(\S+)'$",
            {"grpcio", "grpcio-health-checking", "grpcio-reflection", "grpcio-status"},
        ),
    ],
)
def test_the_worker_asks_for_runtimes_at_least_as_new_as_the_generated_code(stamp, packages):
    stamps = {
        Version(found)
        for path in _COMMITTED.glob("*.py")
        for found in re.findall(stamp, path.read_text(), re.MULTILINE)
    }
    project = tomllib.loads((_ROOT / "worker/pyproject.toml").read_text())["project"]
    floors = {
        requirement.name: max(Version(part.version) for part in requirement.specifier if part.operator == ">=")
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name in packages
    }

    assert stamps
    assert floors.keys() == packages
    assert all(floor >= max(stamps) for floor in floors.values()), (floors, stamps)
