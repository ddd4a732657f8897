"""What README.md shows is what there is: permissions, properties, the workflow and the plugin."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import javaproperties
import pytest
from remora.config import Properties
from remora.errors import ConfigurationError
from remora.scheduler.dagfile import parse
from remora_sagemaker.pipeline import PipelineHandler
from remora_sagemaker.settings import SageMakerSettings

ROOT = Path(__file__).parents[2]


def block(language):
    """The only block of a language in the document."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return text


def test_the_policy_allows_what_the_handler_needs_and_no_more():
    statements = json.loads(block("json"))["Statement"]
    actions = [action for statement in statements for action in statement["Action"]]
    assert sorted(actions) == sorted(PipelineHandler.permissions)


def test_the_properties_are_known_and_their_placeholders_are_refused():
    properties = javaproperties.loads(block("properties"))
    with pytest.raises(ConfigurationError) as refused:
        Properties(properties, {}, "README.md").settings(SageMakerSettings)
    assert len(refused.value.problems) == len(properties) == 3
    assert all("is still the placeholder" in problem for problem in refused.value.problems)


def test_the_workflow_can_be_run_and_nothing_in_it_is_ignored():
    workflow = parse(block("yaml"))
    assert list(workflow.tasks) == ["train", "register"]
    assert workflow.notes == ()


def test_the_plugin_is_an_excerpt_of_the_example():
    source = (ROOT / "tests/example_plugin/remora_example/__init__.py").read_text()
    assert [line for line in block("python").splitlines() if line not in source.splitlines()] == []


def test_the_entry_point_is_that_of_the_example():
    project = tomllib.loads((ROOT / "tests/example_plugin/pyproject.toml").read_text())["project"]
    assert tomllib.loads(block("toml"))["project"]["entry-points"] == project["entry-points"]
