"""Pipelines and their versions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remora_sagemaker.simulator.definition import Definition, DefinitionError, parse_definition
from remora_sagemaker.simulator.paging import created_between, page
from remora_sagemaker.simulator.protocol import ApiError, Handler, not_found, validation_error
from remora_sagemaker.simulator.shapes import JsonObject

if TYPE_CHECKING:
    from remora_sagemaker.simulator.clock import SimulatedClock
    from remora_sagemaker.simulator.execution import Execution
    from remora_sagemaker.simulator.naming import Account


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One version of a pipeline's definition."""

    number: int
    text: str
    definition: Definition


@dataclass(kw_only=True, slots=True, eq=False)
class Pipeline:
    """A pipeline as it is now."""

    name: str
    arn: str
    sequence: int
    created_at: float
    modified_at: float
    request: JsonObject
    """What it was created with."""
    versions: list[Version]
    tags: dict[str, str]
    updates: JsonObject = field(default_factory=dict[str, Any])
    """What UpdatePipeline changed."""
    executions: list[Execution] = field(default_factory=list["Execution"])
    """In order of their start."""
    by_token: dict[str, Execution] = field(default_factory=dict[str, "Execution"])
    latest: dict[str, tuple[int, Execution]] = field(default_factory=dict[str, "tuple[int, Execution]"])
    """How often it was started and the latest execution, by the parameters as text."""

    @property
    def shown(self) -> JsonObject:
        """The request with what was changed since."""
        return {**self.request, **self.updates}

    def version(self, number: int | None) -> Version:
        """Return a version, the latest for None, or raise ApiError."""
        if number is None:
            return self.versions[-1]
        if number > len(self.versions):
            raise not_found(f"Pipeline '{self.name}' has no version {number}.")
        return self.versions[number - 1]


class Pipelines:
    """The pipelines of the account."""

    def __init__(self, account: Account, clock: SimulatedClock) -> None:
        """Start with none."""
        self._account = account
        self._clock = clock
        self._pipelines: dict[str, Pipeline] = {}
        self._deleted: dict[str, str] = {}
        self._sequence = itertools.count()

    def handlers(self) -> Mapping[str, Handler]:
        """Return the operations."""
        return {
            "CreatePipeline": self.create,
            "DescribePipeline": self.describe,
            "UpdatePipeline": self.update,
            "DeletePipeline": self.delete,
            "ListPipelines": self.list,
            "ListTags": self.list_tags,
            "AddTags": self.add_tags,
        }

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(self._pipelines.values())

    def has(self, pipeline: Pipeline) -> bool:
        """Whether this very pipeline still exists."""
        return self._pipelines.get(pipeline.name) is pipeline

    def clear(self) -> None:
        """Forget all of them and their executions."""
        self._pipelines.clear()
        self._deleted.clear()

    def find(self, name_or_arn: str) -> Pipeline:
        """Return a pipeline, or raise ApiError."""
        name = name_or_arn.removeprefix(self._account.arn("pipeline/"))
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            raise not_found(f"Pipeline '{name_or_arn}' does not exist.")
        return pipeline

    def create(self, request: JsonObject) -> JsonObject:
        """CreatePipeline."""
        name = request["PipelineName"]
        existing = self._pipelines.get(name)
        if existing is not None:
            if existing.request == request:
                return {"PipelineArn": existing.arn}
            raise validation_error(
                "Pipeline names must be unique within an AWS account and region. "
                f"Pipeline with name ({name}) already exists."
            )
        text = _definition_text(request)
        if text is None:
            raise validation_error("Either PipelineDefinition or PipelineDefinitionS3Location must be given.")
        now = self._clock.now()
        pipeline = Pipeline(
            name=name,
            arn=self._account.arn(f"pipeline/{name}"),
            sequence=next(self._sequence),
            created_at=now,
            modified_at=now,
            request=request,
            versions=[Version(number=1, text=text, definition=_parse(text))],
            tags={tag["Key"]: tag["Value"] for tag in request.get("Tags", ())},
        )
        self._pipelines[name] = pipeline
        return {"PipelineArn": pipeline.arn}

    def describe(self, request: JsonObject) -> JsonObject:
        """DescribePipeline."""
        refuse_alias(request)
        pipeline = self.find(request["PipelineName"])
        version = pipeline.version(request.get("PipelineVersionId"))
        shown = pipeline.shown
        answer: JsonObject = {
            "PipelineArn": pipeline.arn,
            "PipelineName": pipeline.name,
            "PipelineDisplayName": shown.get("PipelineDisplayName", pipeline.name),
            "PipelineDefinition": version.text,
            "RoleArn": shown["RoleArn"],
            "PipelineStatus": "Active",
            "CreationTime": pipeline.created_at,
            "LastModifiedTime": pipeline.modified_at,
            "CreatedBy": {},
            "LastModifiedBy": {},
        }
        for member in ("PipelineDescription", "ParallelismConfiguration"):
            if member in shown:
                answer[member] = shown[member]
        if pipeline.executions:
            answer["LastRunTime"] = pipeline.executions[-1].created_at
        return answer

    def update(self, request: JsonObject) -> JsonObject:
        """UpdatePipeline. Executions go on with the definition that they were started with."""
        pipeline = self.find(request["PipelineName"])
        text = _definition_text(request)
        if text is not None:
            version = Version(number=len(pipeline.versions) + 1, text=text, definition=_parse(text))
            pipeline.versions.append(version)
        pipeline.updates = {**pipeline.updates, **request}
        pipeline.modified_at = self._clock.now()
        return {"PipelineArn": pipeline.arn, "PipelineVersionId": pipeline.versions[-1].number}

    def delete(self, request: JsonObject) -> JsonObject:
        """DeletePipeline. Its executions go with it; while one is running it is refused."""
        repeated = self._deleted.get(request["ClientRequestToken"])
        if repeated is not None:
            return {"PipelineArn": repeated}
        pipeline = self.find(request["PipelineName"])
        now = self._clock.now()
        if any(not execution.timeline.is_over(now) for execution in pipeline.executions):
            raise ApiError("ConflictException", f"Pipeline '{pipeline.name}' has running executions.")
        del self._pipelines[pipeline.name]
        self._deleted[request["ClientRequestToken"]] = pipeline.arn
        return {"PipelineArn": pipeline.arn}

    def list(self, request: JsonObject) -> JsonObject:
        """ListPipelines."""
        prefix = request.get("PipelineNamePrefix", "")
        mine = request.get("ManagedBy", "CUSTOMER") == "CUSTOMER"
        created = created_between([*self._pipelines.values()], request, created=lambda each: each.created_at)
        found = [pipeline for pipeline in created if mine and pipeline.name.startswith(prefix)]
        scope = f"ListPipelines/{request.get('SortBy')}"
        if request.get("SortBy") == "Name":
            found.sort(key=lambda each: each.name)
            chosen, more = page(found, request, scope=scope, key=lambda each: (each.name,))
        else:
            chosen, more = page(found, request, scope=scope, key=lambda each: (each.sequence,))
        return {"PipelineSummaries": [_summary(pipeline) for pipeline in chosen], **more}

    def list_tags(self, request: JsonObject) -> JsonObject:
        """ListTags, of a pipeline."""
        tags = self.find(request["ResourceArn"]).tags
        chosen, more = page(sorted(tags), request, scope="ListTags", key=lambda key: (key,), default_order="Ascending")
        return {"Tags": [{"Key": key, "Value": tags[key]} for key in chosen], **more}

    def add_tags(self, request: JsonObject) -> JsonObject:
        """AddTags, to a pipeline."""
        tags = self.find(request["ResourceArn"]).tags
        tags.update({tag["Key"]: tag["Value"] for tag in request["Tags"]})
        return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def refuse_alias(request: Mapping[str, Any]) -> None:
    """Raise ApiError for a request that names a version by an alias: no pipeline has aliases here."""
    if "PipelineVersionAlias" in request:
        raise not_found(f"No version of the pipeline has the alias '{request['PipelineVersionAlias']}'.")


def _definition_text(request: Mapping[str, Any]) -> str | None:
    if "PipelineDefinitionS3Location" in request:
        raise validation_error("The simulator has no S3; give PipelineDefinition instead of its location.")
    return request.get("PipelineDefinition")


def _parse(text: str) -> Definition:
    try:
        return parse_definition(text)
    except DefinitionError as error:
        raise validation_error(f"Unable to parse pipeline definition. {error}") from None


def _summary(pipeline: Pipeline) -> JsonObject:
    shown = pipeline.shown
    summary: JsonObject = {
        "PipelineArn": pipeline.arn,
        "PipelineName": pipeline.name,
        "PipelineDisplayName": shown.get("PipelineDisplayName", pipeline.name),
        "RoleArn": shown["RoleArn"],
        "CreationTime": pipeline.created_at,
        "LastModifiedTime": pipeline.modified_at,
    }
    if "PipelineDescription" in shown:
        summary["PipelineDescription"] = shown["PipelineDescription"]
    if pipeline.executions:
        summary["LastExecutionTime"] = pipeline.executions[-1].created_at
    return summary
