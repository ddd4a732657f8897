"""The properties file and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, model_validator
from remora.config import DEFAULT_PATH, Names, Pairs, Properties, WorkerSettings
from remora.errors import ConfigurationError


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True)

    region: str = Field("nowhere", validation_alias=AliasChoices("plugin.test.region", "resource.aws.region"))
    secret: SecretStr | None = Field(None, validation_alias="plugin.test.secret", min_length=8)
    count: Annotated[int, Field(ge=1)] = Field(1, validation_alias="plugin.test.count")
    names: Names = Field((), validation_alias="plugin.test.names")
    pairs: Pairs = Field(default_factory=dict, validation_alias="plugin.test.pairs")


class Demanding(BaseModel):
    user: str = Field(validation_alias="plugin.test.user")
    password: SecretStr | None = Field(None, validation_alias="plugin.test.password")
    port: int = Field(1, validation_alias="plugin.test.port")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.password is None:
            msg = "plugin.test.user is set without plugin.test.password"
            raise ValueError(msg)
        return self


@pytest.fixture
def properties(tmp_path):
    """Return the properties of a file with a text, overlaid by an environment."""

    def properties(text="", **environment):
        path = tmp_path / "common.properties"
        path.write_text(text, encoding="utf-8")
        return Properties.load(path, environment)

    return properties


def problems_of(call, *arguments):
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.partition("common.properties")[2] or problem for problem in caught.value.problems]


class TestLoad:
    def test_the_grammar_is_that_of_java(self, properties):
        text = "# a comment\n! another\n plugin.test.region : eu-\\\n    west-1\nplugin.test.names=a\\u00e4, b\\\\c\n"
        settings = properties(text).settings(Settings)

        assert settings.region == "eu-west-1"
        assert settings.names == ("aä", "b\\c")

    def test_a_mark_in_front_of_the_text_is_no_part_of_the_first_key(self, properties):
        assert properties("\ufeffplugin.test.region=here").settings(Settings).region == "here"

    def test_the_default_file_may_be_absent(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert not DEFAULT_PATH.exists()

        assert Properties.load(None, {}).settings(Settings) == Settings()

    def test_the_default_file_is_read_where_it_is(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        DEFAULT_PATH.parent.mkdir()
        DEFAULT_PATH.write_text("plugin.test.region = here")

        assert Properties.load(None, {}).settings(Settings).region == "here"

    def test_a_file_that_was_named_must_be_there(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"missing\.properties: there is no such file\. Name another"):
            Properties.load(tmp_path / "missing.properties", {})

    def test_a_directory_is_no_file(self, tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
            Properties.load(tmp_path, {})

    def test_a_file_that_is_not_utf8_is_named_with_the_line(self, tmp_path):
        path = tmp_path / "common.properties"
        path.write_bytes("worker.id=a\nworker.labels=a=Zürich\n".encode("latin-1"))

        assert problems_of(Properties.load, path, {}) == [", line 2: is not UTF-8. Save the file as UTF-8."]

    def test_a_broken_escape_is_named_with_the_line(self, tmp_path):
        path = tmp_path / "common.properties"
        path.write_text("worker.id=a\nworker.data.dir=C:\\users\\remora\n")

        [problem] = problems_of(Properties.load, path, {})
        assert problem.startswith(", line 2: \\users is not an escape")


class TestSettings:
    def test_nothing_gives_the_defaults(self, properties):
        assert properties().settings(Settings) == Settings()

    def test_the_best_of_several_keys_wins_wherever_it_stands(self, properties):
        text = "resource.aws.region=common\nplugin.test.region=own\n"

        assert properties(text).settings(Settings).region == "own"
        assert properties("resource.aws.region=common").settings(Settings).region == "common"

    def test_the_environment_overlays_the_file_key_by_key(self, properties):
        text = "plugin.test.region=file\nplugin.test.count=2"
        settings = properties(text, REMORA_PLUGIN_TEST_REGION="environment").settings(Settings)

        assert (settings.region, settings.count) == ("environment", 2)

    def test_the_environment_of_a_lesser_key_does_not_overlay_a_better_one(self, properties):
        settings = properties("plugin.test.region=own", REMORA_RESOURCE_AWS_REGION="common").settings(Settings)

        assert settings.region == "own"

    @pytest.mark.parametrize("empty", ["", "   "])
    def test_empty_is_absent(self, properties, empty):
        text = f"plugin.test.region={empty}\nresource.aws.region=common\nplugin.test.count={empty}"
        settings = properties(text, REMORA_RESOURCE_AWS_REGION=empty).settings(Settings)

        assert (settings.region, settings.count) == ("common", 1)

    def test_spaces_around_a_value_do_not_count(self, properties):
        assert properties("plugin.test.region=  here \t").settings(Settings).region == "here"

    def test_lists_and_mappings(self, properties):
        settings = properties("plugin.test.names=a, b ,,c\nplugin.test.pairs=x=1, y = 2=3,").settings(Settings)

        assert settings.names == ("a", "b", "c")
        assert settings.pairs == {"x": "1", "y": "2=3"}

    @pytest.mark.parametrize("placeholder", ["<YOUR REGION>", "<>", " <your-region> "])
    def test_a_placeholder_is_named_with_its_key(self, properties, placeholder):
        [problem] = problems_of(properties(f"resource.aws.region={placeholder}").settings, Settings)

        assert problem == (
            f": resource.aws.region is still the placeholder {placeholder.strip()}. Put in your value, or remove it."
        )

    def test_a_placeholder_in_the_environment_is_named_with_the_variable(self, properties):
        [problem] = problems_of(properties(REMORA_PLUGIN_TEST_SECRET="<YOUR SECRET>").settings, Settings)

        assert problem.startswith("environment variable REMORA_PLUGIN_TEST_SECRET: plugin.test.secret is still")

    def test_angles_inside_a_value_are_no_placeholder(self, properties):
        assert properties("plugin.test.region=a<b>c").settings(Settings).region == "a<b>c"

    def test_every_problem_is_told_at_once_with_key_and_origin(self, properties):
        text = "plugin.test.count=0\nplugin.test.pairs=novalue\nresource.aws.region=<REGION>"
        problems = problems_of(properties(text, REMORA_PLUGIN_TEST_SECRET="short").settings, Settings)

        assert [problem.split(": ")[:2] for problem in problems] == [
            ["", "resource.aws.region is still the placeholder <REGION>. Put in your value, or remove it."],
            ["environment variable REMORA_PLUGIN_TEST_SECRET", "plugin.test.secret"],
            ["", "plugin.test.count"],
            ["", "plugin.test.pairs"],
        ]

    def test_a_secret_is_in_no_message(self, properties):
        for text in ("plugin.test.secret=hunter2", "plugin.test.secret=hunter2\nplugin.test.count=x"):
            assert "hunter2" not in "".join(problems_of(properties(text).settings, Settings))

    def test_what_does_not_go_together_is_told_of_the_file(self, properties):
        [problem] = problems_of(properties("plugin.test.user=me").settings, Demanding)

        assert problem == ": plugin.test.user is set without plugin.test.password."

    def test_beside_a_placeholder_only_what_is_wrong_by_itself_is_told(self, properties):
        text = "plugin.test.user=me\nplugin.test.password=<YOUR PASSWORD>"
        assert len(problems_of(properties(text).settings, Demanding)) == 1

        text = "plugin.test.user=<YOU>\nplugin.test.port=x"
        assert [problem.split(": ")[1].split()[0] for problem in problems_of(properties(text).settings, Demanding)] == [
            "plugin.test.user",
            "plugin.test.port",
        ]

    def test_a_missing_value_is_told_with_its_key(self, properties):
        [problem] = problems_of(properties().settings, Demanding)

        assert "plugin.test.user" in problem


class TestUnknownKeys:
    def test_one_of_ours_is_an_error_that_names_the_nearest(self, properties):
        [problem] = problems_of(properties("worker.capcity=5").check_unknown, [WorkerSettings])

        assert problem == ": worker.capcity is not a known key. Did you mean worker.capacity?"

    def test_one_like_no_other_says_what_may_be_missing(self, properties):
        [problem] = problems_of(properties("plugin.zzz.qqq=5").check_unknown, [WorkerSettings])

        assert problem.endswith("Remove it, or install the plugin or door that it belongs to.")

    def test_keys_of_others_are_left_alone(self, properties):
        text = "data.basedir.path=/tmp\nresource.storage.type=S3\nalert.rpc.port=50052\nworkers=1"

        properties(text).check_unknown([WorkerSettings])

    def test_a_prefix_of_a_plugin_is_ours_too(self, properties):
        text = "aws.sagemaker.regoin=x\naws.other=y"
        [problem] = problems_of(properties(text).check_unknown, [Settings], ["aws.sagemaker."])

        assert problem.startswith(": aws.sagemaker.regoin is not a known key")

    def test_every_one_is_told(self, properties):
        text = "worker.a=1\nplugin.b=2\ndoor.c=3\nscheduler.d=4"

        assert len(problems_of(properties(text, REMORA_E="5").check_unknown, [WorkerSettings])) == 5

    def test_a_variable_of_ours_is_an_error_that_names_the_nearest(self, properties):
        [problem] = problems_of(properties(REMORA_WORKER_CAPCITY="5").check_unknown, [WorkerSettings])

        assert problem == (
            "environment: REMORA_WORKER_CAPCITY is not a known variable. Did you mean REMORA_WORKER_CAPACITY?"
        )

    def test_known_variables_and_those_of_the_command_line_are_fine(self, properties):
        environment = {"REMORA_WORKER_ID": "a", "REMORA_CONFIG": "b", "REMORA_TOKEN": "c", "HOME": "d"}

        properties(**environment).check_unknown([WorkerSettings])

    def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_fine(self, properties):
        environment = {
            "REMORA_SERVICE_HOST": "10.0.0.1",
            "REMORA_SERVICE_PORT": "50051",
            "REMORA_SERVICE_PORT_GRPC": "50051",
            "REMORA_PORT": "tcp://10.0.0.1:50051",
            "REMORA_WORKER_PORT_50051_TCP": "tcp://10.0.0.1:50051",
            "REMORA_WORKER_PORT_50051_TCP_PROTO": "tcp",
            "REMORA_WORKER_PORT_50051_TCP_ADDR": "10.0.0.1",
        }
        properties(**environment).check_unknown([WorkerSettings])

        assert len(problems_of(properties(REMORA_WORKER_PORT="50051").check_unknown, [WorkerSettings])) == 1


class TestWorkerSettings:
    def test_the_defaults_work(self, properties):
        settings = properties().settings(WorkerSettings)

        assert settings.worker_id
        assert (settings.data_dir, settings.doors, settings.plugins) == (Path("remora-data"), ("grpc",), None)

    def test_every_field_can_be_set(self, properties):
        text = """
            worker.id = w1
            worker.data.dir = /var/lib/remora
            worker.doors = grpc, scheduler
            worker.plugins = sagemaker
            worker.labels = zone=a, team=ml
            worker.capacity = 5
            worker.submit.concurrency = 4
            worker.drain.seconds = 0
            worker.retention.days = 0.5
            worker.capacity.wait.hours = 1
            worker.log.level = debug
            worker.log.format = json
            worker.metrics.address = 127.0.0.1:9090
        """
        properties_of_file = properties(text)
        properties_of_file.check_unknown([WorkerSettings])
        settings = properties_of_file.settings(WorkerSettings)

        assert settings.model_dump() == {
            "worker_id": "w1",
            "data_dir": Path("/var/lib/remora"),
            "doors": ("grpc", "scheduler"),
            "plugins": ("sagemaker",),
            "labels": {"zone": "a", "team": "ml"},
            "capacity": 5,
            "submit_concurrency": 4,
            "drain_seconds": 0.0,
            "retention_days": 0.5,
            "capacity_wait_hours": 1.0,
            "log_level": "debug",
            "log_format": "json",
            "metrics_address": "127.0.0.1:9090",
        }

    @pytest.mark.parametrize(
        "line",
        [
            "worker.capacity=0",
            "worker.capacity=many",
            "worker.submit.concurrency=257",
            "worker.drain.seconds=-1",
            "worker.drain.seconds=nan",
            "worker.retention.days=0",
            "worker.log.level=loud",
            "worker.log.format=xml",
            "worker.labels=novalue",
            f"worker.id={'x' * 257}",
        ],
    )
    def test_a_wrong_value_is_named_by_its_key(self, properties, line):
        [problem] = problems_of(properties(line).settings, WorkerSettings)

        assert problem.startswith(f": {line.partition('=')[0]}: ")
