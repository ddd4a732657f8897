"""Settings of the SageMaker plugin."""

from __future__ import annotations

import pytest
from pydantic import AliasChoices, ValidationError
from remora_sagemaker.settings import CredentialsProvider, SageMakerSettings
from remora_sagemaker.status import CompletedWithFailures


def parse(**properties):
    return SageMakerSettings.model_validate(properties)


def complaint(properties):
    with pytest.raises(ValidationError) as caught:
        SageMakerSettings.model_validate(properties)
    return str(caught.value)


def test_without_properties_the_default_chain_decides():
    settings = parse()

    assert settings.access_key_id is None
    assert settings.region is None
    assert (settings.poll_initial, settings.poll_maximum, settings.threads, settings.rate) == (5, 60, 16, 10)
    assert settings.completed_with_failures is CompletedWithFailures.FAIL


def test_the_plugins_own_keys_win_over_dolphinschedulers():
    settings = SageMakerSettings.model_validate(
        {
            "resource.aws.region": "us-east-1",
            "aws.sagemaker.region": "eu-central-1",
            "plugin.sagemaker.region": "eu-west-1",
            "resource.aws.access.key.id": "common",
            "resource.aws.secret.access.key": "common-secret",
            "aws.sagemaker.access.key.id": "yaml",
            "aws.sagemaker.access.key.secret": "yaml-secret",
        }
    )

    assert settings.region == "eu-west-1"
    assert settings.access_key_id is not None
    assert settings.access_key_id.get_secret_value() == "yaml"
    assert settings.access_key_secret is not None
    assert settings.access_key_secret.get_secret_value() == "yaml-secret"


@pytest.mark.parametrize(
    "key", ["resource.aws.access.key.id", "resource.aws.region", "aws.sagemaker.endpoint", "plugin.sagemaker.role.arn"]
)
def test_a_placeholder_is_refused_by_the_name_of_its_key(key):
    text = complaint({key: "<YOUR AWS VALUE>"})

    assert key in text
    assert "placeholder" in text


def test_a_placeholder_is_refused_where_fields_go_by_their_names():
    with pytest.raises(ValidationError, match=r"resource\.aws\.region: still a placeholder"):
        SageMakerSettings.model_validate({"region": "<YOUR REGION>"}, by_name=True, by_alias=False)


def test_half_a_pair_of_keys_is_refused_by_name():
    assert "plugin.sagemaker.access.key.secret" in complaint({"resource.aws.access.key.id": "AKIA"})
    assert "plugin.sagemaker.access.key.id" in complaint({"resource.aws.secret.access.key": "secret"})
    assert "plugin.sagemaker.session.token needs" in complaint({"plugin.sagemaker.session.token": "token"})


def test_the_static_provider_without_keys_says_what_to_set_or_remove():
    text = complaint({"aws.sagemaker.credentials.provider.type": "AWSStaticCredentialsProvider"})

    assert "aws.sagemaker.access.key.id" in text
    assert "default chain" in text


def test_an_unknown_provider_is_answered_with_the_known_ones():
    text = complaint({"aws.sagemaker.credentials.provider.type": "Static"})

    for provider in CredentialsProvider:
        assert provider in text


def test_rates_are_given_by_operation():
    settings = SageMakerSettings.model_validate(
        {"plugin.sagemaker.rate.operations": "ListPipelineExecutions=2, DescribePipelineExecution = 20.5"}
    )

    assert settings.rates == {"ListPipelineExecutions": 2.0, "DescribePipelineExecution": 20.5}
    assert "must look like" in complaint({"plugin.sagemaker.rate.operations": "ListPipelineExecutions"})
    assert "greater than 0" in complaint({"plugin.sagemaker.rate.operations": "ListPipelineExecutions=0"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plugin.sagemaker.threads", "0"),
        ("plugin.sagemaker.threads", "many"),
        ("plugin.sagemaker.rate.default", "inf"),
        ("plugin.sagemaker.poll.initial.seconds", "0"),
        ("plugin.sagemaker.region", "Frankfurt am Main"),
        ("plugin.sagemaker.endpoint", "localhost:9000"),
        ("plugin.sagemaker.endpoint", "http://user:password@host"),
        ("plugin.sagemaker.role.arn", "MyRole"),
        ("plugin.sagemaker.completed.with.failures", "maybe"),
    ],
)
def test_a_wrong_value_is_refused_under_its_key(key, value):
    assert key in complaint({key: value})


def test_polling_may_not_get_faster_with_age():
    assert "poll.maximum.seconds is below" in complaint({"plugin.sagemaker.poll.maximum.seconds": "1"})


def test_no_secret_appears_in_the_settings_text_or_in_an_error():
    properties = {
        "plugin.sagemaker.access.key.id": "AKIASECRETID",
        "plugin.sagemaker.access.key.secret": "very-secret-key",
        "plugin.sagemaker.session.token": "very-secret-token",
        "plugin.sagemaker.role.external.id": "very-secret-id",
    }
    settings = SageMakerSettings.model_validate(properties)
    text = repr(settings) + settings.model_dump_json() + complaint({**properties, "plugin.sagemaker.threads": "x"})

    assert "very-secret" not in text
    assert "AKIASECRETID" not in text


def test_every_property_is_under_a_prefix_that_can_be_told_from_foreign_ones():
    for field in SageMakerSettings.model_fields.values():
        assert isinstance(field.validation_alias, AliasChoices)
        for choice in field.validation_alias.choices:
            assert str(choice).startswith(("plugin.sagemaker.", "aws.sagemaker.", "resource.aws."))
