"""Opening and checking the plugin."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from remora.plugin import FailureKind
from remora_sagemaker.pipeline import PipelineHandler
from remora_sagemaker.plugin import SageMakerPlugin
from remora_sagemaker.settings import SageMakerSettings
from remora_sagemaker.simulator import Fault

KEYS = {"plugin.sagemaker.access.key.id": "AKIATEST", "plugin.sagemaker.access.key.secret": "very-secret-key"}
REGION = {"plugin.sagemaker.region": "eu-west-1"}


def parse(properties):
    return SageMakerSettings.model_validate(properties)


def test_the_entry_point_names_the_plugin():
    (point,) = entry_points(group="remora.plugins", name="sagemaker")

    assert point.load() is SageMakerPlugin
    assert SageMakerPlugin.name == point.name


async def test_it_opens_a_handler_that_polls_as_configured(clock):
    settings = parse({**REGION, **KEYS, "plugin.sagemaker.poll.initial.seconds": "2"})

    async with SageMakerPlugin().open(settings, clock) as handlers:
        (handler,) = handlers
        assert isinstance(handler, PipelineHandler)
        assert (handler.task_type, handler.polling.initial, handler.polling.maximum) == ("SAGEMAKER", 2, 60)
        threads = {thread.get_name() for thread in asyncio.all_tasks()}
    assert threads


async def test_without_a_region_it_does_not_open_and_names_the_keys(clock):
    with pytest.raises(ValueError, match=r"no AWS region: set plugin.sagemaker.region or .* resource.aws.region"):
        async with SageMakerPlugin().open(parse(KEYS), clock):
            pass


async def test_a_rate_for_an_operation_that_does_not_exist_is_told_with_the_nearest(clock):
    settings = parse({**REGION, "plugin.sagemaker.rate.operations": "ListPipelineExecution=1"})

    with pytest.raises(ValueError, match=r"ListPipelineExecution is not an operation .* mean ListPipelineExecutions\?"):
        async with SageMakerPlugin().open(settings, clock):
            pass


async def test_an_aws_configuration_that_cannot_work_is_told_as_such(clock, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "missing")

    with pytest.raises(ValueError, match="the AWS profile that is configured does not exist"):
        async with SageMakerPlugin().open(parse(REGION), clock):
            pass


async def test_check_is_content_with_an_endpoint_that_answers(simulated_settings, simulated):
    assert await SageMakerPlugin().check(simulated_settings) == []
    assert simulated.calls == {"ListPipelines": 1}


@pytest.mark.parametrize(
    ("code", "kind"),
    [("UnrecognizedClientException", FailureKind.DENIED), ("ServiceUnavailable", FailureKind.TRANSIENT)],
)
async def test_check_says_what_the_endpoint_refuses(simulated_settings, simulated, code, kind):
    simulated.faults.add(Fault(operation="ListPipelines", error=code, message="no"))

    (failure,) = await SageMakerPlugin().check(simulated_settings)

    assert (failure.kind, failure.code) == (kind, code)
    assert "very-secret" not in str(failure)


async def test_check_says_that_nobody_answers():
    settings = parse({**REGION, **KEYS, "plugin.sagemaker.endpoint": "http://127.0.0.1:9"})

    (failure,) = await SageMakerPlugin().check(settings)

    assert failure.kind is FailureKind.TRANSIENT
    assert "could not be reached" in failure.message


async def test_check_says_that_there_are_no_credentials_and_what_to_set():
    (failure,) = await SageMakerPlugin().check(parse(REGION))

    assert (failure.kind, failure.code) == (FailureKind.DENIED, "NoCredentialsError")
    assert "plugin.sagemaker.access.key.id" in failure.message


async def test_check_says_that_there_is_no_region():
    (failure,) = await SageMakerPlugin().check(parse(KEYS))

    assert failure.kind is FailureKind.DENIED
    assert "no AWS region" in failure.message


async def test_a_defect_in_check_is_not_explained_away(monkeypatch):
    async def broken(*_):
        raise KeyError("defect")

    monkeypatch.setattr("remora_sagemaker.plugin._call_once", broken)
    with pytest.raises(KeyError):
        await SageMakerPlugin().check(parse({**REGION, **KEYS}))


def test_the_sdk_is_imported_only_by_who_opens_the_plugin():
    code = "import sys; import remora_sagemaker.plugin; print([m for m in sys.modules if m.startswith('boto')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
