"""What is installed, and the handlers that are open."""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import EntryPoint

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator
from remora import registry
from remora.errors import ConfigurationError, UnknownTaskType
from remora.plugin import FailureKind, InvalidTask
from remora.registry import Registry, classify, installed_doors, installed_plugins, parse
from remora_example import ExampleHandler, ExamplePlugin, ExampleSettings
from structlog.testing import capture_logs


@pytest.fixture
def install(monkeypatch):
    """Install entry points, by name and what they point to, in place of the real ones."""

    def install(group="remora.plugins", **points):
        made = [EntryPoint(name, value, group) for name, value in points.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in made if point.group == group])

    return install


class TestInstalled:
    def test_the_example_plugin_is_found_by_its_entry_point(self):
        assert isinstance(installed_plugins()["example"], ExamplePlugin)
        assert list(installed_plugins(["example"])) == ["example"]

    def test_the_worker_brings_its_own_doors(self):
        assert {"grpc", "scheduler"} <= set(installed_doors())

    def test_they_come_as_they_were_named_or_by_name(self, install):
        install(b="remora_example:ExamplePlugin", a="remora_example:ExamplePlugin")

        assert list(installed_plugins()) == ["a", "b"]
        assert list(installed_plugins(["b", "a"])) == ["b", "a"]
        assert list(installed_plugins([])) == []

    def test_one_that_is_not_installed_is_named_with_those_that_are(self, install):
        install(example="remora_example:ExamplePlugin")
        with pytest.raises(ConfigurationError, match=r"worker\.plugins: a, b is not installed; there is: example\."):
            installed_plugins(["a", "example", "b"])

    def test_without_any_it_says_so(self, install):
        install()
        with pytest.raises(ConfigurationError, match="there is: none"):
            installed_plugins(["a"])

    @pytest.mark.parametrize("value", ["no_such_module:X", "remora_example:NoSuchName", "remora.errors:TaskConflict.x"])
    def test_one_that_is_broken_is_named_with_the_reason(self, install, value):
        install(broken=value)
        with pytest.raises(ConfigurationError, match=r"remora\.plugins broken of .* cannot be loaded: \w+Error\("):
            installed_plugins()

    def test_one_that_is_broken_does_not_hinder_the_others(self, install):
        install(broken="no_such_module:X", example="remora_example:ExamplePlugin")

        assert list(installed_plugins(["example"])) == ["example"]

    def test_one_that_is_no_plugin_is_refused(self, install):
        install(strange="pathlib:Path")
        with pytest.raises(ConfigurationError, match=r"\(pathlib:Path\) is no Plugin\."):
            installed_plugins()

    def test_a_plugin_is_no_door(self, install):
        install("remora.doors", strange="remora_example:ExamplePlugin")
        with pytest.raises(ConfigurationError, match="is no Door"):
            installed_doors()


class Recording:
    """A plugin that writes down when it is opened and closed."""

    def __init__(self, name, said, *, error=None, handlers=()):
        self.name, self._said, self._error, self._handlers = name, said, error, handlers

    @contextlib.asynccontextmanager
    async def open(self, settings, clock):
        if self._error:
            raise self._error
        self._said.append(f"open {self.name}")
        yield self._handlers
        self._said.append(f"close {self.name}")


class TestOpen:
    async def test_plugins_are_open_while_the_block_runs_and_closed_in_reverse(self, clock):
        said = []
        plugins = {name: (Recording(name, said), ExampleSettings()) for name in ("a", "b")}
        async with Registry.open(plugins, clock):
            said.append("block")

        assert said == ["open a", "open b", "block", "close b", "close a"]

    @pytest.mark.parametrize("error", [ValueError("region: nowhere"), PermissionError(13, "Permission denied", "jobs")])
    async def test_one_that_cannot_work_with_its_settings_is_named_and_the_others_are_closed(self, clock, error):
        said = []
        plugins = {
            "a": (Recording("a", said), ExampleSettings()),
            "b": (Recording("b", said, error=error), ExampleSettings()),
        }
        with pytest.raises(ConfigurationError, match=r"plugin b: .*(nowhere|Permission denied)"):
            async with Registry.open(plugins, clock):
                said.append("never")
        assert said == ["open a"]  # its block ended with an error

    async def test_an_error_of_the_block_is_no_error_of_a_plugin(self, clock):
        with pytest.raises(ValueError, match="of the block"):
            async with Registry.open({"a": (Recording("a", []), ExampleSettings())}, clock):
                raise ValueError("of the block")

    async def test_two_that_claim_one_task_type_are_named(self, clock, handler):
        settings = ExampleSettings()
        example = ExampleHandler(settings, clock)
        other = type("Other", (ExampleHandler,), {"__module__": "another_module"})(settings, clock)
        plugins = {
            "a": (Recording("a", [], handlers=[handler, example]), settings),
            "b": (Recording("b", [], handlers=[other]), settings),
        }
        with pytest.raises(ConfigurationError) as caught:
            async with Registry.open(plugins, clock):
                pass
        assert str(caught.value) == (
            "the task type EXAMPLE is claimed by remora_example and by another_module. Choose one with worker.plugins."
        )


class TestRegistry:
    def test_finds_a_handler_by_its_task_type(self, handler, talking):
        assert Registry([handler, talking]).handler("TALKING") is talking

    def test_an_unknown_task_type_is_told_with_those_that_there_are(self, handler, talking):
        with pytest.raises(UnknownTaskType, match="type 'OTHER'; this worker has: SCRIPTED, TALKING"):
            Registry([handler, talking]).handler("OTHER")
        with pytest.raises(UnknownTaskType, match="has: none"):
            Registry([]).handler("OTHER")

    def test_task_types_are_told_with_schema_and_permissions(self, handler, talking):
        infos = Registry([talking, handler]).task_types()

        assert [info.name for info in infos] == ["SCRIPTED", "TALKING"]
        assert infos[0].title == "Does as it is told"
        assert infos[0].permissions == ("scripted:CreateJob",)
        assert json.loads(infos[0].schema)["properties"].keys() == {"refuse", "defect", "steps"}


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image_name: str = Field(alias="ImageName")
    counts: list[int] = []


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str
    request: str = Field("", validation_alias=AliasChoices("requestJson", "RequestJson"))
    inner: Inner | None = None
    inners: list[Inner] = []
    even: int = 0

    @field_validator("even")
    @classmethod
    def _is_even(cls, value):
        if value % 2:
            msg = f"{value} is odd"
            raise ValueError(msg)
        if value == 42:
            raise InvalidTask({"even": "is the answer", "title": "is the question"})
        return value


class TestParse:
    @pytest.fixture
    def parsed(self, handler):
        handler.parameters = Outer
        return lambda text: parse(handler, text)

    def violations(self, parsed, text):
        with pytest.raises(InvalidTask) as caught:
            parsed(text)
        return caught.value.violations

    def test_what_fits_is_the_model(self, parsed):
        assert parsed('{"title": "t", "even": 2}') == Outer(title="t", even=2)

    @pytest.mark.parametrize(
        ("content", "path", "message"),
        [
            ({}, "title", "Field required"),
            ({"title": 5}, "title", "Input should be a valid string"),
            ({"title": "t", "titel": "x"}, "titel", "is not a known field; did you mean title?"),
            ({"title": "t", "requstJson": "x"}, "requstJson", "is not a known field; did you mean requestJson?"),
            ({"title": "t", "zzz": "x"}, "zzz", "is not a known field"),
            ({"title": "t", "even": 3}, "even", "3 is odd"),
            ({"title": "t", "inner": {}}, "inner.ImageName", "Field required"),
            ({"title": "t", "inner": {"ImageName": "i", "counts": [1, "x"]}}, "inner.counts[1]", "valid integer"),
            ({"title": "t", "inners": [{"ImageName": "i"}, {"ImageName": 1}]}, "inners[1].ImageName", "valid string"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_path(self, parsed, content, path, message):
        violations = self.violations(parsed, json.dumps(content))

        assert list(violations) == [path]
        assert message in violations[path]

    def test_the_name_that_is_suggested_is_known_at_its_place(self, parsed):
        violations = self.violations(parsed, '{"title": "t", "inner": {"ImageName": "i", "titel": ""}}')

        assert violations == {"inner.titel": "is not a known field"}

    def test_everything_that_is_wrong_is_told(self, parsed):
        assert set(self.violations(parsed, '{"even": 1, "inners": 5, "x": 1}')) == {"title", "even", "inners", "x"}

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "5", "[" * 100_000, '{"title": "\\ud800"}'])
    def test_what_is_no_object_is_told_of_the_whole(self, parsed, text):
        assert list(self.violations(parsed, text)) == ["parameters"]

    def test_a_validator_may_name_several_paths(self, parsed):
        assert self.violations(parsed, '{"title": "t", "even": 42}') == {
            "even": "is the answer",
            "title": "is the question",
        }


class TestClassify:
    def test_the_handler_knows_its_own(self, handler, service_error):
        assert classify(handler, service_error(FailureKind.DENIED)).kind is FailureKind.DENIED

    def test_an_invalid_task_names_the_paths(self, handler):
        failure = classify(handler, InvalidTask({"a.b": "is wrong", "c": "is missing"}))

        assert (failure.kind, failure.code) == (FailureKind.INVALID, "InvalidParameters")
        assert failure.message == "a.b: is wrong; c: is missing"
        assert failure.details == {"a.b": "is wrong", "c": "is missing"}

    def test_what_nobody_knows_is_a_defect_whose_text_stays_in_the_workers_log(self, handler):
        with capture_logs() as logged:
            failure = classify(handler, KeyError("hunter2"))

        assert (failure.kind, failure.code) == (FailureKind.INTERNAL, "KeyError")
        assert failure.message == "KeyError in the SCRIPTED plugin; the traceback is in the worker's log"
        assert [entry["event"] for entry in logged] == ["plugin_defect"]

    def test_a_handler_that_fails_at_it_is_a_defect_too(self, handler, monkeypatch):
        def classify_badly(error):
            raise ZeroDivisionError

        monkeypatch.setattr(handler, "classify", classify_badly)
        with capture_logs() as logged:
            failure = classify(handler, KeyError("x"))

        assert (failure.kind, failure.code) == (FailureKind.INTERNAL, "KeyError")
        assert [entry["event"] for entry in logged] == ["classify_failed", "plugin_defect"]
