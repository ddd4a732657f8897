"""The plugin's tables held to botocore's model: a new SDK that knows more makes these fail."""

from __future__ import annotations

import pytest
from remora.plugin import JobState
from remora_sagemaker.children import CHILD_KINDS
from remora_sagemaker.status import EXECUTION_STATES, STEP_STATES, CompletedWithFailures, execution_state, is_final
from remora_sagemaker.steps import parse_step


def member_at(shape, path):
    for part in path.split("."):
        while shape.type_name == "list":
            shape = shape.member
        assert part in shape.members, f"{shape.name} has no {part}"
        shape = shape.members[part]
    return shape


def test_every_status_of_an_execution_is_classified(model):
    assert set(model.shape_for("PipelineExecutionStatus").enum) == set(EXECUTION_STATES)


def test_every_status_of_a_step_is_classified(model):
    assert set(model.shape_for("StepStatus").enum) == set(STEP_STATES)


def test_only_what_moves_is_not_final():
    assert {status for status in EXECUTION_STATES if not is_final(status)} == {"Executing", "Stopping"}
    assert not is_final("SomethingNew")


@pytest.mark.parametrize("policy", CompletedWithFailures)
def test_stopped_and_failed_are_never_success(policy):
    assert execution_state("Stopped", policy) is JobState.STOPPED
    assert execution_state("Failed", policy) is JobState.FAILED
    assert execution_state("SomethingNew", policy) is None


@pytest.mark.parametrize("resource", list(CHILD_KINDS))
def test_the_fields_read_of_each_kind_of_job_exist(model, resource):
    kind = CHILD_KINDS[resource]
    operation = model.operation_model(kind.operation)

    assert kind.name in operation.input_shape.required_members
    for path in (*kind.reasons, *kind.artifacts.values()):
        assert member_at(operation.output_shape, path).type_name == "string"


def test_every_job_that_a_step_can_name_by_arn_is_known_or_has_nothing_to_say(model):
    metadata = model.shape_for("PipelineExecutionStepMetadata")
    silent = {
        # No jobs, or jobs of other services.
        "BedrockCustomModel",
        "BedrockCustomModelDeployment",
        "BedrockModelImport",
        "BedrockProvisionedModelThroughput",
        "Job",
        "Lambda",
        "EndpointConfig",
        "Model",
        "RegisterModel",
    }
    with_arn = {name for name, shape in metadata.members.items() if "Arn" in shape.members}

    assert with_arn - silent == {
        "AutoMLJob",
        "Endpoint",
        "InferenceComponent",
        "ProcessingJob",
        "TrainingJob",
        "TransformJob",
        "TuningJob",
    }
    assert len(CHILD_KINDS) == len(with_arn - silent)


def test_every_kind_of_step_can_be_put_into_words(model):
    metadata = model.shape_for("PipelineExecutionStepMetadata")
    for kind, shape in metadata.members.items():
        made = {name: f"value-of-{name}" for name, member in shape.members.items() if member.type_name == "string"}
        step = parse_step({"StepName": "S", "StepStatus": "Executing", "Metadata": {kind: made}})
        assert step.kind == kind
        assert str(step).startswith("step S: Executing")
