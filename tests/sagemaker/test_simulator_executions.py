"""Pipelines and their executions, through the simulator's checks but without HTTP."""

from __future__ import annotations

import itertools
import json

import pytest
from botocore.validate import ParamValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from remora_sagemaker.simulator import ApiError, SimulatedClock, Simulator
from remora_sagemaker.simulator.definition import STEP_TYPES
from remora_sagemaker.simulator.model import SAGEMAKER

DEFINITION = {
    "Version": "2020-12-01",
    "Parameters": [{"Name": "Kind", "Type": "String", "DefaultValue": "tree"}],
    "Steps": [
        {"Name": "Prepare", "Type": "Processing", "Arguments": {}},
        {
            "Name": "Train",
            "Type": "Training",
            "Arguments": {
                "HyperParameters": {"kind": {"Get": "Parameters.Kind"}},
                "OutputDataConfig": {"S3OutputPath": "s3://bucket/models/"},
                "ResourceConfig": {"InstanceCount": "not a number"},
            },
            "DependsOn": ["Prepare"],
        },
        {
            "Name": "Evaluate",
            "Type": "Processing",
            "Arguments": {
                "ProcessingInputs": [
                    {
                        "InputName": "model",
                        "S3Input": {
                            "S3Uri": {"Get": "Steps.Train.ModelArtifacts.S3ModelArtifacts"},
                            "S3DataType": "S3Prefix",
                        },
                    }
                ]
            },
        },
    ],
}
ROLE = "arn:aws:iam::123456789012:role/Tester"
_tokens = itertools.count()


def token():
    return f"token-{next(_tokens):026d}"


@pytest.fixture
def clock():
    return SimulatedClock(frozen=True, start=1_700_000_000.0)


@pytest.fixture
def simulator(clock):
    simulator = Simulator(clock=clock)
    simulator.create_pipeline("Train", DEFINITION)
    return simulator


def pipeline(simulator, name, *steps, parameters=()):
    definition = {"Version": "2020-12-01", "Parameters": list(parameters), "Steps": list(steps)}
    simulator.create_pipeline(name, definition)


def start(simulator, name="Train", *, client_token=None, request=None, **parameters):
    return simulator.invoke(
        "StartPipelineExecution",
        {
            "PipelineName": name,
            "ClientRequestToken": client_token or token(),
            "PipelineParameters": [{"Name": key, "Value": value} for key, value in parameters.items()],
            **(request or {}),
        },
    )["PipelineExecutionArn"]


def describe(simulator, arn):
    return simulator.invoke("DescribePipelineExecution", {"PipelineExecutionArn": arn})


def status(simulator, arn):
    return describe(simulator, arn)["PipelineExecutionStatus"]


def steps(simulator, arn, **request):
    answer = simulator.invoke("ListPipelineExecutionSteps", {"PipelineExecutionArn": arn, "MaxResults": 100, **request})
    return {step["StepName"]: step for step in answer["PipelineExecutionSteps"]}


def stop(simulator, arn, client_token=None):
    request = {"PipelineExecutionArn": arn, "ClientRequestToken": client_token or token()}
    return simulator.invoke("StopPipelineExecution", request)["PipelineExecutionArn"]


def retry(simulator, arn, client_token=None):
    request = {"PipelineExecutionArn": arn, "ClientRequestToken": client_token or token()}
    return simulator.invoke("RetryPipelineExecution", request)["PipelineExecutionArn"]


def refused(code, message=""):
    return pytest.raises(ApiError, match=f"(?s)^{code}: .*{message}")


# -- start


def test_an_execution_goes_from_executing_to_succeeded_as_the_clock_advances(simulator, clock):
    arn = start(simulator)
    assert status(simulator, arn) == "Executing"
    clock.advance(29)
    assert status(simulator, arn) == "Executing"
    clock.advance(1)
    answer = describe(simulator, arn)
    assert answer["PipelineExecutionStatus"] == "Succeeded"
    assert answer["LastModifiedTime"] - answer["CreationTime"] == 30
    assert "FailureReason" not in answer


def test_a_start_with_the_same_token_is_the_same_execution_and_is_counted(simulator):
    first = start(simulator, client_token="t" * 32, Kind="a")
    again = start(simulator, client_token="t" * 32, Kind="a")
    by_arn = start(simulator, simulator.pipelines.find("Train").arn, client_token="t" * 32, Kind="a")
    assert first == again == by_arn
    (execution,) = simulator.executions
    assert execution.replays == 2


def test_a_token_that_comes_again_with_another_request_is_a_conflict(simulator):
    start(simulator, client_token="t" * 32, Kind="a")
    with refused("ConflictException", "t" * 32):
        start(simulator, client_token="t" * 32, Kind="b")


def test_a_token_stays_good_after_the_execution_was_renamed(simulator):
    arn = start(simulator, client_token="t" * 32)
    simulator.invoke(
        "UpdatePipelineExecution", {"PipelineExecutionArn": arn, "PipelineExecutionDisplayName": "renamed"}
    )
    assert describe(simulator, arn)["PipelineExecutionDisplayName"] == "renamed"
    assert start(simulator, client_token="t" * 32) == arn


def test_the_same_token_at_another_pipeline_is_another_execution(simulator):
    simulator.create_pipeline("Other", DEFINITION)
    assert start(simulator, client_token="t" * 32) != start(simulator, "Other", client_token="t" * 32)


@pytest.mark.parametrize("name", ["Nobody", "arn:aws:sagemaker:us-east-1:123456789012:pipeline/Nobody"])
def test_a_pipeline_that_does_not_exist_is_not_found(simulator, name):
    with refused("ResourceNotFound", name):
        start(simulator, name)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"Color": "red"}, "Unknown pipeline parameters: .Color."),
        ({"SimFailStep": "Dance"}, "has no step 'Dance'; it has Evaluate, Prepare, Train"),
        ({"SimStepSeconds": "soon"}, "SimStepSeconds"),
    ],
)
def test_wrong_parameters_are_a_validation_error(simulator, parameters, message):
    with refused("ValidationException", message):
        start(simulator, **parameters)
    assert list(simulator.executions) == []


def test_the_quota_of_running_executions_is_a_limit_and_frees_up(simulator, clock):
    simulator.executions.quota = 1
    first = start(simulator, SimFailStep="Prepare")
    with refused("ResourceLimitExceeded", "is 1 Executions"):
        start(simulator)
    clock.advance(10)
    start(simulator)
    with refused("ResourceLimitExceeded"):
        retry(simulator, first)


def test_selected_steps_run_alone(simulator, clock):
    arn = start(simulator, request={"SelectiveExecutionConfig": {"SelectedSteps": [{"StepName": "Evaluate"}]}})
    clock.advance(10)
    assert status(simulator, arn) == "Succeeded"
    assert list(steps(simulator, arn)) == ["Evaluate"]


def test_selecting_a_step_or_a_source_that_does_not_exist_is_refused(simulator):
    with refused("ValidationException", "no step 'Nothing'"):
        start(simulator, request={"SelectiveExecutionConfig": {"SelectedSteps": [{"StepName": "Nothing"}]}})
    source = f"{simulator.pipelines.find('Train').arn}/execution/000000000000"
    selection = {"SourcePipelineExecutionArn": source, "SelectedSteps": [{"StepName": "Train"}]}
    with refused("ResourceNotFound"):
        start(simulator, request={"SelectiveExecutionConfig": selection})


def test_parallelism_of_the_request_limits_the_steps(simulator, clock):
    pipeline(simulator, "Wide", *({"Name": name, "Type": "Processing"} for name in "abc"))
    arn = start(simulator, "Wide", request={"ParallelismConfiguration": {"MaxParallelExecutionSteps": 1}})
    assert list(steps(simulator, arn)) == ["a"]
    clock.advance(29)
    assert status(simulator, arn) == "Executing"


# -- steps and their jobs


def test_steps_come_newest_first_and_name_their_jobs_once_these_exist(simulator, clock):
    arn = start(simulator)
    assert "Metadata" not in steps(simulator, arn)["Prepare"]
    clock.advance(15)
    found = steps(simulator, arn)
    assert list(found) == ["Train", "Prepare"]
    assert list(steps(simulator, arn, SortOrder="Ascending")) == ["Prepare", "Train"]
    job = found["Train"]["Metadata"]["TrainingJob"]["Arn"]
    assert job.startswith("arn:aws:sagemaker:us-east-1:123456789012:training-job/pipelines-")
    assert found["Prepare"]["EndTime"] == found["Train"]["StartTime"]
    assert "EndTime" not in found["Train"]


def training_job(simulator, arn):
    name = steps(simulator, arn)["Train"]["Metadata"]["TrainingJob"]["Arn"].rpartition("/")[2]
    return simulator.invoke("DescribeTrainingJob", {"TrainingJobName": name})


def test_a_training_job_shows_its_phases_its_arguments_and_its_artifacts(simulator, clock):
    arn = start(simulator)
    clock.advance(11)
    phases = []
    for _ in range(4):
        phases.append(training_job(simulator, arn)["SecondaryStatus"])
        clock.advance(3 if len(phases) > 1 else 0.5)
    assert phases == ["Starting", "Downloading", "Training", "Training"]
    clock.advance(5)
    job = training_job(simulator, arn)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Completed", "Completed")
    assert job["HyperParameters"] == {"kind": "tree"}
    assert "ResourceConfig" not in job, "arguments that the model would refuse are left out"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == (
        f"s3://bucket/models/{job['TrainingJobName']}/output/model.tar.gz"
    )
    evaluation = steps(simulator, arn)["Evaluate"]["Metadata"]["ProcessingJob"]["Arn"].rpartition("/")[2]
    inputs = simulator.invoke("DescribeProcessingJob", {"ProcessingJobName": evaluation})["ProcessingInputs"]
    assert inputs[0]["S3Input"]["S3Uri"] == job["ModelArtifacts"]["S3ModelArtifacts"]


@pytest.mark.parametrize(
    "path", ["nowhere", "s3://", "s3://b/\n", 7, {"Get": "Steps.Prepare.Unknown"}, "s3://" + "b" * 2000]
)
def test_artifacts_have_a_place_though_the_output_path_is_nonsense(simulator, clock, path):
    train = {"Name": "Train", "Type": "Training", "Arguments": {"OutputDataConfig": {"S3OutputPath": path}}}
    pipeline(simulator, "Odd", {"Name": "Prepare", "Type": "Processing"}, train)
    arn = start(simulator, "Odd")
    clock.advance(20)
    artifacts = training_job(simulator, arn)["ModelArtifacts"]["S3ModelArtifacts"]
    assert artifacts.startswith("s3://sagemaker-us-east-1/")


@pytest.mark.parametrize("name", ["mine", "pipelines-000000000000-Train-0000000000"])
def test_a_job_that_does_not_exist_is_a_validation_error_as_in_the_service(simulator, name):
    with refused("ValidationException", "Requested resource not found"):
        simulator.invoke("DescribeTrainingJob", {"TrainingJobName": name})
    with refused("ValidationException", "Could not find"):
        simulator.invoke("DescribeProcessingJob", {"ProcessingJobName": name})


def test_steps_of_every_type_carry_their_metadata(simulator, clock):
    kinds = ["AutoML", "ClarifyCheck", "EMR", "Lambda", "Model", "Processing", "QualityCheck", "RegisterModel"]
    kinds += ["Training", "Transform", "Tuning"]
    pipeline(simulator, "All", *({"Name": kind, "Type": kind, "FunctionArn": "arn:f"} for kind in kinds))
    arn = start(simulator, "All")
    clock.advance(10)
    found = steps(simulator, arn)
    assert found.keys() == set(kinds)
    assert all(len(step["Metadata"]) == 1 for step in found.values())
    assert found["RegisterModel"]["Metadata"] == {
        "RegisterModel": {"Arn": "arn:aws:sagemaker:us-east-1:123456789012:model-package/All/1"}
    }


def test_model_packages_count_up_in_their_group(simulator, clock):
    arguments = {"ModelPackageGroupName": {"Get": "Parameters.Group"}}
    pipeline(
        simulator,
        "Register",
        {"Name": "Register", "Type": "RegisterModel", "Arguments": arguments},
        parameters=[{"Name": "Group", "Type": "String"}],
    )
    started = [start(simulator, "Register", Group=group) for group in ("a", "b", "a")]
    clock.advance(10)
    packages = [steps(simulator, arn)["Register"]["Metadata"]["RegisterModel"]["Arn"] for arn in (*started, started[0])]
    assert [arn.rpartition("model-package/")[2] for arn in packages] == ["a/1", "b/1", "a/2", "a/1"]


def branching(left):
    comparison = {"Type": "GreaterThan", "LeftValue": left, "RightValue": 0.5}
    message = {"Std:Join": {"On": " ", "Values": ["only", {"Get": "Parameters.Accuracy"}]}}
    return {
        "Name": "Good",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [comparison],
            "IfSteps": [{"Name": "Register", "Type": "RegisterModel"}],
            "ElseSteps": [{"Name": "Bad", "Type": "Fail", "Arguments": {"ErrorMessage": message}}],
        },
    }


ACCURACY = {"Name": "Accuracy", "Type": "Float", "DefaultValue": 0.7}


def test_a_condition_decides_by_its_parameters_which_branch_runs(simulator, clock):
    pipeline(simulator, "Branch", branching({"Get": "Parameters.Accuracy"}), parameters=[ACCURACY])
    good, bad = start(simulator, "Branch"), start(simulator, "Branch", Accuracy="0.2")
    clock.advance(10)
    assert steps(simulator, good).keys() == {"Good", "Register"}
    assert steps(simulator, good)["Good"]["Metadata"] == {"Condition": {"Outcome": "True"}}
    found = steps(simulator, bad)
    assert found.keys() == {"Good", "Bad"}
    assert found["Bad"]["FailureReason"] == "only 0.2"
    assert found["Bad"]["Metadata"] == {"Fail": {"ErrorMessage": "only 0.2"}}
    assert status(simulator, bad) == "Failed"


def test_the_scenario_decides_conditions_that_depend_on_a_result(simulator):
    unknown = {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.Measure.PropertyFiles.R"}, "Path": "accuracy"}}
    pipeline(simulator, "Branch", {"Name": "Measure", "Type": "Processing"}, branching(unknown), parameters=[ACCURACY])
    outcomes = []
    for parameters in ({}, {"SimCondition": "True"}, {"SimCondition": "False"}):
        arn = start(simulator, "Branch", **parameters)
        simulator.clock.advance(10)
        outcomes.append(steps(simulator, arn)["Good"]["Metadata"]["Condition"]["Outcome"])
    assert outcomes == ["True", "True", "False"]


def test_a_condition_that_compares_the_incomparable_is_refused(simulator):
    pipeline(simulator, "Branch", branching("text"), parameters=[ACCURACY])
    with refused("ValidationException", "condition of step 'Good'"):
        start(simulator, "Branch")


def test_a_cached_step_uses_the_result_of_an_equal_execution(simulator, clock):
    pipeline(simulator, "Cached", {"Name": "Prepare", "Type": "Processing", "CacheConfig": {"Enabled": True}})
    first = start(simulator, "Cached")
    clock.advance(10)
    second = start(simulator, "Cached")
    assert status(simulator, second) == "Succeeded"
    assert steps(simulator, second)["Prepare"]["CacheHitResult"] == {"SourcePipelineExecutionArn": first}
    assert "CacheHitResult" not in steps(simulator, first)["Prepare"]


# -- failures


def test_a_failing_step_fails_the_execution_and_says_why_at_each_level(simulator, clock):
    arn = start(simulator, SimFailStep="Train", SimFailReason="AlgorithmError: out of memory")
    clock.advance(100)
    answer = describe(simulator, arn)
    assert answer["PipelineExecutionStatus"] == "Failed"
    assert answer["FailureReason"] == "Step failure: One or multiple steps failed."
    found = steps(simulator, arn)
    assert found.keys() == {"Prepare", "Train"}
    assert found["Train"]["StepStatus"] == "Failed"
    assert found["Train"]["FailureReason"] == "ClientError: AlgorithmError: out of memory"
    job = training_job(simulator, arn)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert job["FailureReason"] == "AlgorithmError: out of memory"


def test_the_default_reason_looks_like_that_of_a_training_script(simulator, clock):
    arn = start(simulator, SimFailStep="Prepare")
    clock.advance(10)
    assert steps(simulator, arn)["Prepare"]["FailureReason"].startswith("ClientError: AlgorithmError: ")


def test_an_execution_may_fail_only_the_first_times(simulator, clock):
    started = [start(simulator, SimFailStep="Prepare", SimFailTimes="2") for _ in range(3)]
    other = start(simulator, SimFailStep="Prepare", SimFailTimes="2", Kind="other")
    clock.advance(100)
    assert [status(simulator, arn) for arn in started] == ["Failed", "Failed", "Succeeded"]
    assert status(simulator, other) == "Failed", "other parameters are counted apart"


@pytest.mark.parametrize("forced", ["CompletedWithFailures", "Hibernating"])
def test_the_final_status_may_be_forced_even_to_one_that_the_model_does_not_have(simulator, clock, forced):
    arn = start(simulator, SimStatus=forced)
    assert status(simulator, arn) == "Executing"
    clock.advance(30)
    assert status(simulator, arn) == forced
    listed = simulator.invoke("ListPipelineExecutions", {"PipelineName": "Train"})["PipelineExecutionSummaries"]
    assert listed[0]["PipelineExecutionStatus"] == forced


# -- stop and retry


def test_a_stopped_execution_is_stopping_and_then_stopped(simulator, clock):
    arn = start(simulator, SimStopSeconds="5")
    clock.advance(12)
    assert stop(simulator, arn) == arn
    assert status(simulator, arn) == "Stopping"
    assert steps(simulator, arn)["Train"]["StepStatus"] == "Stopping"
    assert training_job(simulator, arn)["TrainingJobStatus"] == "Stopping"
    clock.advance(5)
    assert status(simulator, arn) == "Stopped"
    assert {name: step["StepStatus"] for name, step in steps(simulator, arn).items()} == {
        "Prepare": "Succeeded",
        "Train": "Stopped",
    }
    assert training_job(simulator, arn)["TrainingJobStatus"] == "Stopped"


def test_a_stop_may_be_repeated_while_stopping_and_with_its_token_for_ever(simulator, clock):
    arn = start(simulator, SimStopSeconds="5")
    stop(simulator, arn, "s" * 32)
    clock.advance(4)
    stop(simulator, arn)
    clock.advance(1)
    assert status(simulator, arn) == "Stopped", "the second stop did not begin anew"
    assert stop(simulator, arn, "s" * 32) == arn
    with refused("ValidationException", "status Stopped"):
        stop(simulator, arn)


@pytest.mark.parametrize("parameters", [{}, {"SimFailStep": "Prepare"}, {"SimStatus": "CompletedWithFailures"}])
def test_what_has_ended_cannot_be_stopped(simulator, clock, parameters):
    arn = start(simulator, **parameters)
    clock.advance(30)
    with refused("ValidationException", "Only pipelines with 'Executing' status can be stopped"):
        stop(simulator, arn)


def test_a_retry_goes_on_from_the_failed_step_with_a_new_job(simulator, clock):
    arn = start(simulator, SimFailStep="Train", SimFailTimes="1")
    clock.advance(20)
    failed_job = training_job(simulator, arn)
    assert retry(simulator, arn, "r" * 32) == arn
    assert retry(simulator, arn, "r" * 32) == arn
    assert status(simulator, arn) == "Executing"
    assert "FailureReason" not in describe(simulator, arn)
    clock.advance(20)
    found = steps(simulator, arn)
    assert status(simulator, arn) == "Succeeded"
    assert {name: step["AttemptCount"] for name, step in found.items()} == {"Prepare": 1, "Train": 2, "Evaluate": 1}
    assert training_job(simulator, arn)["TrainingJobName"] != failed_job["TrainingJobName"]
    earlier = simulator.invoke("DescribeTrainingJob", {"TrainingJobName": failed_job["TrainingJobName"]})
    assert earlier == failed_job


def test_a_stopped_execution_can_be_retried(simulator, clock):
    arn = start(simulator)
    clock.advance(12)
    stop(simulator, arn)
    clock.advance(10)
    retry(simulator, arn)
    clock.advance(20)
    assert status(simulator, arn) == "Succeeded"


@pytest.mark.parametrize("seconds", [5, 30])
def test_only_what_failed_or_was_stopped_can_be_retried(simulator, clock, seconds):
    arn = start(simulator)
    clock.advance(seconds)
    with refused("ValidationException", "Only pipelines with 'Failed' or 'Stopped' status can be retried"):
        retry(simulator, arn)


def test_a_token_of_a_stop_is_not_a_token_of_a_retry(simulator, clock):
    arn = start(simulator)
    stop(simulator, arn, "s" * 32)
    clock.advance(10)
    with refused("ConflictException"):
        retry(simulator, arn, "s" * 32)


def test_a_new_parallelism_counts_from_the_next_retry_and_never_changes_the_past(simulator, clock):
    pipeline(simulator, "Wide", *({"Name": name, "Type": "Processing"} for name in "abc"))
    one = {"ParallelismConfiguration": {"MaxParallelExecutionSteps": 1}}
    arn = start(simulator, "Wide", request=one, SimFailStep="a", SimFailTimes="1")
    clock.advance(5)
    before = steps(simulator, arn)
    three = {"ParallelismConfiguration": {"MaxParallelExecutionSteps": 3}}
    simulator.invoke("UpdatePipelineExecution", {"PipelineExecutionArn": arn, **three})
    assert steps(simulator, arn) == before
    clock.advance(5)
    retry(simulator, arn)
    assert steps(simulator, arn).keys() == {"a", "b", "c"}
    assert describe(simulator, arn)["ParallelismConfiguration"] == {"MaxParallelExecutionSteps": 3}


# -- callbacks


@pytest.fixture
def waiting(simulator):
    ask = {"Name": "Ask", "Type": "Callback", "SqsQueueUrl": "https://queue", "OutputParameters": []}
    pipeline(simulator, "Callback", ask, {"Name": "Then", "Type": "Processing", "DependsOn": ["Ask"]})
    return start(simulator, "Callback")


def callback_token(simulator, arn):
    return steps(simulator, arn)["Ask"]["Metadata"]["Callback"]["CallbackToken"]


def test_a_callback_step_waits_for_its_answer(simulator, clock, waiting):
    clock.advance(1_000_000)
    assert steps(simulator, waiting)["Ask"]["StepStatus"] == "Executing"
    outputs = [{"Name": "answer", "Value": "42"}]
    request = {"CallbackToken": callback_token(simulator, waiting), "OutputParameters": outputs}
    assert simulator.invoke("SendPipelineExecutionStepSuccess", request) == {"PipelineExecutionArn": waiting}
    assert simulator.invoke("SendPipelineExecutionStepSuccess", request) == {"PipelineExecutionArn": waiting}
    assert steps(simulator, waiting)["Ask"]["Metadata"]["Callback"]["OutputParameters"] == outputs
    clock.advance(10)
    assert status(simulator, waiting) == "Succeeded"
    with refused("ConflictException"):
        simulator.invoke("SendPipelineExecutionStepFailure", {"CallbackToken": request["CallbackToken"]})


def test_a_callback_step_may_be_failed(simulator, waiting):
    request = {"CallbackToken": callback_token(simulator, waiting), "FailureReason": "refused by Ann"}
    simulator.invoke("SendPipelineExecutionStepFailure", request)
    assert steps(simulator, waiting)["Ask"]["FailureReason"] == "refused by Ann"
    assert status(simulator, waiting) == "Failed"


def test_an_unknown_callback_token_is_not_found(simulator):
    with refused("ResourceNotFound"):
        simulator.invoke("SendPipelineExecutionStepSuccess", {"CallbackToken": "abcdefghij"})


# -- pipelines


def create(simulator, name, **more):
    request = {
        "PipelineName": name,
        "PipelineDefinition": json.dumps(DEFINITION),
        "RoleArn": ROLE,
        "ClientRequestToken": token(),
        **more,
    }
    return simulator.invoke("CreatePipeline", request)["PipelineArn"]


def test_a_pipeline_is_created_once_per_token_and_once_per_name(simulator):
    arn = create(simulator, "New", ClientRequestToken="c" * 32)
    assert create(simulator, "New", ClientRequestToken="c" * 32) == arn
    with refused("ValidationException", "already exists"):
        create(simulator, "New")


def test_a_pipeline_with_a_bad_definition_is_refused(simulator):
    with refused("ValidationException", "Unable to parse pipeline definition"):
        create(simulator, "New", PipelineDefinition="{}")


def test_a_definition_in_s3_is_refused_because_there_is_no_s3(simulator):
    location = {"Bucket": "bucket", "ObjectKey": "key"}
    with refused("ValidationException", "no S3"):
        create(simulator, "New", PipelineDefinitionS3Location=location)


def test_an_update_makes_a_new_version_and_executions_keep_theirs(simulator):
    arn = start(simulator)
    changed = json.dumps({**DEFINITION, "Steps": DEFINITION["Steps"][:1]})
    request = {"PipelineName": "Train", "PipelineDefinition": changed, "PipelineDescription": "short"}
    assert simulator.invoke("UpdatePipeline", request)["PipelineVersionId"] == 2
    described = simulator.invoke("DescribePipeline", {"PipelineName": "Train"})
    assert (described["PipelineDefinition"], described["PipelineDescription"]) == (changed, "short")
    first = simulator.invoke("DescribePipeline", {"PipelineName": "Train", "PipelineVersionId": 1})
    assert json.loads(first["PipelineDefinition"]) == DEFINITION
    of_execution = simulator.invoke("DescribePipelineDefinitionForExecution", {"PipelineExecutionArn": arn})
    assert json.loads(of_execution["PipelineDefinition"]) == DEFINITION
    versions = [describe(simulator, start(simulator, request=which))["PipelineVersionId"] for which in ({}, OLD)]
    assert versions == [2, 1]
    with refused("ResourceNotFound", "no version 3"):
        start(simulator, request={"PipelineVersionId": 3})
    with refused("ResourceNotFound", "alias 'prod'"):
        start(simulator, request={"PipelineVersionAlias": "prod"})


OLD = {"PipelineVersionId": 1}


def test_a_pipeline_is_deleted_with_its_executions_once_none_is_running(simulator, clock):
    arn = start(simulator)
    request = {"PipelineName": "Train", "ClientRequestToken": token()}
    with refused("ConflictException", "running"):
        simulator.invoke("DeletePipeline", request)
    clock.advance(30)
    deleted = simulator.invoke("DeletePipeline", request)
    assert simulator.invoke("DeletePipeline", request) == deleted, "the same token again"
    with refused("ResourceNotFound"):
        describe(simulator, arn)
    with refused("ResourceNotFound"):
        simulator.invoke("DescribePipeline", {"PipelineName": "Train"})


def test_tags_are_kept_and_added(simulator):
    arn = create(simulator, "New", Tags=[{"Key": "a", "Value": "1"}])
    simulator.invoke("AddTags", {"ResourceArn": arn, "Tags": [{"Key": "b", "Value": "2"}]})
    assert simulator.invoke("ListTags", {"ResourceArn": arn}) == {
        "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    }


def test_a_reset_goes_back_to_the_initial_pipelines(simulator):
    create(simulator, "New")
    start(simulator)
    simulator.reset()
    assert [pipeline.name for pipeline in simulator.pipelines] == ["Train"]
    assert list(simulator.executions) == []


# -- lists


def pages(simulator, operation, member, **request):
    more = {}
    while True:
        answer = simulator.invoke(operation, {**request, **more})
        yield answer[member]
        if "NextToken" not in answer:
            return
        more = {"NextToken": answer["NextToken"]}


def test_executions_come_in_pages_the_newest_first_and_new_ones_do_not_shift_them(simulator, clock):
    started = []
    for _ in range(5):
        started.append(start(simulator))
        clock.advance(1)
    listing = pages(
        simulator, "ListPipelineExecutions", "PipelineExecutionSummaries", PipelineName="Train", MaxResults=2
    )
    first = next(listing)
    start(simulator)
    found = [summary["PipelineExecutionArn"] for page in (first, *listing) for summary in page]
    assert found == started[::-1]


def test_executions_started_at_the_same_moment_are_all_listed(simulator):
    started = [start(simulator) for _ in range(7)]
    listing = pages(
        simulator, "ListPipelineExecutions", "PipelineExecutionSummaries", PipelineName="Train", MaxResults=3
    )
    assert [summary["PipelineExecutionArn"] for page in listing for summary in page] == started[::-1]


def test_executions_can_be_sorted_and_filtered(simulator, clock):
    started, times = [], []
    for _ in range(4):
        times.append(clock.now())
        started.append(start(simulator))
        clock.advance(10)

    def found(**request):
        answer = simulator.invoke("ListPipelineExecutions", {"PipelineName": "Train", **request})
        return [summary["PipelineExecutionArn"] for summary in answer["PipelineExecutionSummaries"]]

    assert found(SortOrder="Ascending") == started
    assert found(SortBy="PipelineExecutionArn") == sorted(started, reverse=True)
    assert found(CreatedAfter=times[1]) == [started[3], started[2]]
    assert found(CreatedBefore=times[1]) == [started[0]]
    assert found(CreatedAfter=times[0], CreatedBefore=times[3], SortOrder="Ascending") == started[1:3]


def test_ten_items_are_a_page_unless_the_request_says_otherwise(simulator):
    for _ in range(11):
        start(simulator)
    sizes = [
        len(page)
        for page in pages(simulator, "ListPipelineExecutions", "PipelineExecutionSummaries", PipelineName="Train")
    ]
    assert sizes == [10, 1]


@pytest.mark.parametrize("bad", ["nonsense", "bm9uc2Vuc2U=", "WyJMaXN0VGFncyIsIDFd", "W10="])
def test_a_token_that_is_not_of_this_list_is_refused(simulator, bad):
    with refused("ValidationException", "NextToken"):
        simulator.invoke("ListPipelineExecutions", {"PipelineName": "Train", "NextToken": bad})


def test_pipelines_can_be_listed_by_prefix_time_and_name(simulator, clock):
    clock.advance(10)
    for name in ("Zeta", "Alpha", "Alpine"):
        create(simulator, name)
        clock.advance(10)

    def found(**request):
        listing = pages(simulator, "ListPipelines", "PipelineSummaries", MaxResults=2, **request)
        return [summary["PipelineName"] for page in listing for summary in page]

    assert found() == ["Alpine", "Alpha", "Zeta", "Train"]
    assert found(PipelineNamePrefix="Al", SortOrder="Ascending") == ["Alpha", "Alpine"]
    assert found(SortBy="Name", SortOrder="Ascending") == ["Alpha", "Alpine", "Train", "Zeta"]
    assert found(CreatedAfter=1_700_000_025.0) == ["Alpine"]
    assert found(ManagedBy="AWS") == []


def test_parameters_of_an_execution_are_those_given_and_the_defaults(simulator):
    arn = start(simulator, SimStepSeconds="3")
    listing = pages(
        simulator, "ListPipelineParametersForExecution", "PipelineParameters", PipelineExecutionArn=arn, MaxResults=1
    )
    assert [parameter for page in listing for parameter in page] == [
        {"Name": "Kind", "Value": "tree"},
        {"Name": "SimStepSeconds", "Value": "3"},
    ]


# -- conformance


def test_every_answer_of_every_operation_conforms_to_the_model(simulator, clock):
    """Holds the answers against botocore's own validator, which knows nothing of the simulator's checks."""
    answered = set()

    def call(operation, request):
        answer = simulator.invoke(operation, request)
        shape = SAGEMAKER.operation_model(operation).output_shape
        if shape is None:
            assert answer == {}
        else:
            report = ParamValidator().validate(answer, shape)
            assert not report.has_errors(), report.generate_report()
            assert answer.keys() <= shape.members.keys()
        answered.add(operation)
        return answer

    ask = {"Name": "Ask", "Type": "Callback"}
    definition = json.dumps(
        {**DEFINITION, "Steps": [*DEFINITION["Steps"], ask, branching({"Get": "Parameters.Accuracy"})]}
    )
    definition = definition.replace('"Parameters": [', f'"Parameters": [{json.dumps(ACCURACY)}, ')
    arn = call(
        "CreatePipeline",
        {
            "PipelineName": "Whole",
            "PipelineDefinition": definition,
            "PipelineDescription": "all of it",
            "PipelineDisplayName": "whole",
            "ParallelismConfiguration": {"MaxParallelExecutionSteps": 9},
            "RoleArn": ROLE,
            "ClientRequestToken": token(),
        },
    )["PipelineArn"]
    call("UpdatePipeline", {"PipelineName": "Whole", "PipelineDescription": "still all of it"})
    call("AddTags", {"ResourceArn": arn, "Tags": [{"Key": "k", "Value": "v"}]})
    call("ListTags", {"ResourceArn": arn})
    parameters = [{"Name": "SimFailStep", "Value": "Train"}, {"Name": "SimFailTimes", "Value": "1"}]
    execution = call(
        "StartPipelineExecution",
        {
            "PipelineName": arn,
            "PipelineExecutionDisplayName": "first",
            "PipelineExecutionDescription": "the first",
            "PipelineParameters": parameters,
            "ParallelismConfiguration": {"MaxParallelExecutionSteps": 8},
            "ClientRequestToken": token(),
        },
    )
    call("UpdatePipelineExecution", {**execution, "PipelineExecutionDescription": "the very first"})
    call("DescribePipelineDefinitionForExecution", execution)
    call("ListPipelineParametersForExecution", execution)

    def look():
        call("DescribePipeline", {"PipelineName": "Whole"})
        call("ListPipelines", {"MaxResults": 1})
        call("ListPipelineExecutions", {"PipelineName": "Whole"})
        call("DescribePipelineExecution", execution)
        for step in call("ListPipelineExecutionSteps", {**execution, "MaxResults": 100})["PipelineExecutionSteps"]:
            for kind in ("TrainingJob", "ProcessingJob"):
                if kind in step.get("Metadata", {}):
                    name = step["Metadata"][kind]["Arn"].rpartition("/")[2]
                    call(f"Describe{kind}", {f"{kind}Name": name})

    look()
    callback = callback_token(simulator, execution["PipelineExecutionArn"])
    call("SendPipelineExecutionStepSuccess", {"CallbackToken": callback})
    for _ in range(4):
        clock.advance(6)
        look()
    call("RetryPipelineExecution", {**execution, "ClientRequestToken": token()})
    look()
    call("StopPipelineExecution", {**execution, "ClientRequestToken": token()})
    look()
    clock.advance(10)
    look()
    another = start(simulator, "Whole")
    call("SendPipelineExecutionStepFailure", {"CallbackToken": callback_token(simulator, another)})
    clock.advance(10)
    call("DeletePipeline", {"PipelineName": "Whole", "ClientRequestToken": token()})
    assert answered == simulator.operations


EXPRESSIONS = st.sampled_from([
    {"Get": "Parameters.Kind"},
    {"Get": "Steps.Train.ModelArtifacts.S3ModelArtifacts"},
    {"Get": "Steps.Train.OutputDataConfig"},
    {"Get": "Execution.PipelineExecutionId"},
    {"Std:Join": {"On": "/", "Values": ["s3://bucket", {"Get": "Parameters.Kind"}]}},
    {"Std:Join": 7},
    {"Std:JsonGet": {}},
])  # fmt: skip
NAMES = st.sampled_from(["OutputDataConfig", "S3OutputPath", "HyperParameters", "RoleArn", "ErrorMessage", "X"])
NAMES = NAMES | st.sampled_from(["ModelPackageGroupName", "ProcessingInputs", "AppSpecification", "StoppingCondition"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=400) | EXPRESSIONS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    arguments=st.dictionaries(NAMES, VALUES, max_size=5) | EXPRESSIONS,
    kind=st.sampled_from(sorted(STEP_TYPES - {"Condition", "Callback"})),
    function=VALUES,
)
def test_whatever_a_definition_contains_it_is_refused_or_the_answers_conform(arguments, kind, function):
    simulator = Simulator(clock=SimulatedClock(frozen=True))
    try:
        pipeline(
            simulator,
            "Odd",
            {"Name": "Train", "Type": "Training"},
            {"Name": "Odd", "Type": kind, "Arguments": arguments, "FunctionArn": function, "DependsOn": ["Train"]},
            parameters=DEFINITION["Parameters"],
        )
    except ApiError as error:
        if error.code == "ValidationException":
            return
        raise
    arn = start(simulator, "Odd")
    simulator.clock.advance(20)
    assert status(simulator, arn) == ("Failed" if kind == "Fail" else "Succeeded")
    metadata = steps(simulator, arn)["Odd"]["Metadata"]
    for job in metadata.keys() & {"TrainingJob", "ProcessingJob"}:
        simulator.invoke(f"Describe{job}", {f"{job}Name": metadata[job]["Arn"].rpartition("/")[2]})
