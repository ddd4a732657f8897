"""What the tests of the SageMaker plugin share: its model, a clock, and an AWS that answers from a list."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore.loaders
import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from remora.plugin import TaskDefinition, TaskKey
from remora.testing import ManualClock
from remora_sagemaker.budget import OutOfBudgetError
from remora_sagemaker.handle import PipelineHandle
from remora_sagemaker.pipeline import PipelineHandler
from remora_sagemaker.settings import SageMakerSettings
from remora_sagemaker.simulator import SimulatedClock, Simulator
from remora_sagemaker.validation import RequestValidator

DEFINITION = {
    "Version": "2020-12-01",
    "Parameters": [],
    "Steps": [
        {"Name": "Prepare", "Type": "Processing", "Arguments": {}},
        {"Name": "Train", "Type": "Training", "Arguments": {}, "DependsOn": ["Prepare"]},
    ],
}


@pytest.fixture(scope="session", autouse=True)
def _models_are_parsed_once() -> Iterator[None]:
    """Parsing SageMaker's model takes a tenth of a second for each new session."""
    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", lambda *_: loader)
        yield


@pytest.fixture(autouse=True)
def _no_aws_of_this_machine(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def model():
    return botocore.session.get_session().get_service_model("sagemaker")


@pytest.fixture(scope="session")
def validator(model):
    return RequestValidator(model)


@pytest.fixture
def clock():
    return ManualClock()


class Shaped(dict[str, Any]):
    """An object of botocore's model: neither has nor gives fields that the model does not know."""

    def __init__(self, content: Mapping[str, Any], shape: Any) -> None:
        unknown = set(content) - set(shape.members)
        assert not unknown, f"{shape.name} has no {unknown}"
        super().__init__({name: shaped(value, shape.members[name]) for name, value in content.items()})
        self._shape = shape

    def get(self, name: str, default: Any = None) -> Any:
        assert name in self._shape.members, f"{self._shape.name} has no {name}"
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        assert name in self._shape.members, f"{self._shape.name} has no {name}"
        return super().__getitem__(name)


def shaped(value: Any, shape: Any) -> Any:
    if shape.type_name == "structure" and isinstance(value, Mapping):
        return Shaped(value, shape)
    if shape.type_name == "list" and isinstance(value, list):
        return [shaped(item, shape.member) for item in value]
    return value


Reply = Mapping[str, Any] | Exception | Callable[[Mapping[str, Any]], Mapping[str, Any]]


class FakeAws:
    """Answers from lists, and holds requests and answers to botocore's model. The last answer of a list stays."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._replies: dict[str, list[Reply]] = {}
        self.requests: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.targets: list[Any] = []
        self.allowed: dict[str, int] = {}

    def on(self, operation: str, *replies: Reply) -> None:
        self._replies[operation] = list(replies)

    async def call(self, target: Any, operation: str, request: Mapping[str, Any], *, until: float = 0.0) -> Any:
        if operation in self.allowed:
            if self.allowed[operation] <= 0:
                raise OutOfBudgetError
            self.allowed[operation] -= 1
        shape = self._model.operation_model(operation)
        assert not (report := ParamValidator().validate(request, shape.input_shape)).has_errors(), (
            report.generate_report()
        )
        self.requests[operation].append(dict(request))
        self.targets.append(target)
        replies = self._replies[operation]
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, Exception):
            raise reply
        return shaped(reply(request) if callable(reply) else reply, shape.output_shape)


@pytest.fixture
def simulated():
    """A simulated account with the pipeline Abalone, whose time only moves when it is advanced."""
    simulator = Simulator(clock=SimulatedClock(frozen=True, start=1_750_000_000.25))
    simulator.create_pipeline("Abalone", DEFINITION)
    return simulator


@pytest.fixture
async def simulated_url(simulated):
    async with simulated.serve() as url:
        yield url


@pytest.fixture
def simulated_settings(simulated_url):
    return SageMakerSettings.model_validate(
        {
            "plugin.sagemaker.region": "us-east-1",
            "plugin.sagemaker.endpoint": simulated_url,
            "plugin.sagemaker.access.key.id": "AKIASECRETID",
            "plugin.sagemaker.access.key.secret": "very-secret-key",
            "plugin.sagemaker.session.token": "very-secret-token",
            "plugin.sagemaker.rate.default": "1000",
        }
    )


@pytest.fixture
def aws(model):
    return FakeAws(model)


@pytest.fixture
def settings():
    return SageMakerSettings.model_validate({"plugin.sagemaker.region": "eu-west-1"})


@pytest.fixture
def handler(aws, validator, settings, clock):
    return PipelineHandler(aws, validator, settings, "eu-west-1", clock)


@pytest.fixture
def make_task(handler):
    """Return a definition and its parsed parameters."""

    def make(request: Any = None, *, task_id: str = "task-1", attempt: int = 1, **others: Any) -> Any:
        request = {"PipelineName": "Abalone"} if request is None else request
        parameters = json.dumps({"sagemakerRequestJson": request, **others})
        key = TaskKey(task_id=task_id, attempt=attempt)
        definition = TaskDefinition(key=key, task_type="SAGEMAKER", parameters=parameters)
        return definition, handler.parameters.model_validate_json(parameters)

    return make


@pytest.fixture
def arn_of():
    def arn(name: str, pipeline: str = "abalone") -> str:
        return f"arn:aws:sagemaker:eu-west-1:123456789012:pipeline/{pipeline}/execution/{name}"

    return arn


@pytest.fixture
def running(arn_of):
    """Return the handle of an execution that was started."""

    def make(name: str = "x1", *, pipeline: str = "Abalone", **others: Any) -> PipelineHandle:
        content = {
            "pipeline": pipeline,
            "token": "remora-" + "0" * 64,
            "region": "eu-west-1",
            "execution_arn": arn_of(name, pipeline.lower()),
        }
        return PipelineHandle.model_validate(content | others)

    return make


@pytest.fixture
def refusal():
    """Return an error as botocore raises it for an answer of AWS."""

    def make(code: str, message: str = "", *, operation: str = "DescribePipelineExecution", **metadata: Any) -> Any:
        response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400} | metadata}
        return ClientError(response, operation)

    return make
