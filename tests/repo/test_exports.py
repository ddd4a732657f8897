"""What others build on is named, documented and light: the contracts pull in nothing of the worker."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import pytest

_CONTRACTS = {
    "remora.plugin": {"remora.plugin"},
    "remora.pace": {"remora.pace", "remora.plugin"},
    "remora.door": {"remora.door", "remora.errors", "remora.plugin", "remora.task"},
    "remora.testing": {"remora.testing", "remora.pace", "remora.plugin"},
}
"""The public modules, and which modules of ours each may bring along."""
_HEAVY = {"boto3", "botocore", "google.protobuf", "grpc", "rich", "sqlite3", "structlog"}


@pytest.mark.parametrize("name", _CONTRACTS)
def test_an_all_names_what_is_there_in_order(name):
    module = importlib.import_module(name)
    # Without one, everything that has no underscore is public.
    public = getattr(module, "__all__", ())

    assert list(public) == sorted(public)
    assert not [exported for exported in public if not hasattr(module, exported)]


@pytest.mark.parametrize("name", _CONTRACTS)
def test_every_public_class_and_function_is_documented(name):
    module = importlib.import_module(name)
    defined = [
        thing
        for key, thing in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == name
    ]

    assert defined
    assert not [thing.__name__ for thing in defined if not thing.__doc__]
    assert inspect.getdoc(module)


@pytest.mark.parametrize(("name", "ours"), _CONTRACTS.items())
def test_a_contract_imports_nothing_that_it_must_not(name, ours):
    program = f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    loaded = set(json.loads(output))

    assert {module for module in loaded if module.startswith("remora.")} <= ours
    assert not loaded & _HEAVY
