"""The composition root: configuration in, a running worker out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import urllib.request
from importlib.metadata import EntryPoint, entry_points

import pytest
from remora import app, registry
from remora.app import configure, open_worker, run_worker, stop_signals
from remora.config import Properties, WorkerSettings
from remora.door import Assignment, Door, TaskDefinition, TaskKey, TaskState
from remora.errors import ConfigurationError
from remora_example import ExamplePlugin, ExampleSettings
from structlog.testing import capture_logs


@pytest.fixture
def configured(tmp_path):
    """Return the configuration of a worker that runs the example plugin and has no doors."""

    def configured(**changes):
        values = {
            "worker.data.dir": f"{tmp_path}/data",
            "plugin.example.directory": f"{tmp_path}/jobs",
            "plugin.example.poll.seconds": "0.01",
        }
        properties = Properties(values | changes, {}, "test.properties")
        return app.Configuration(
            worker=properties.settings(WorkerSettings),
            plugins={"example": (ExamplePlugin(), properties.settings(ExampleSettings))},
            doors={},
        )

    return configured


@pytest.fixture
def install(monkeypatch):
    """Install one more plugin than there is."""

    def install(name, value):
        def found(group):
            more = [EntryPoint(name, value, group)] if group == "remora.plugins" else []
            return [*entry_points(group=group), *more]

        monkeypatch.setattr(registry, "entry_points", found)

    return install


def assignment(task_id="task", **parameters):
    definition = TaskDefinition(
        key=TaskKey(task_id=task_id, attempt=1), task_type="EXAMPLE", parameters=json.dumps(parameters)
    )
    return Assignment(definition=definition, door="test")


class Gate(Door):
    """A door that says when it opens and closes."""

    name = "gate"
    settings = ExampleSettings

    def __init__(self, said, *, error=None):
        self._said, self._error = said, error

    @contextlib.asynccontextmanager
    async def open(self, settings, tasks, worker, clock):
        if self._error:
            raise self._error
        self._said.append(("open", worker.worker_id, [each.name for each in worker.task_types]))
        yield
        self._said.append(("close", tasks.draining))


class TestConfigure:
    def test_takes_what_is_chosen_with_its_settings(self):
        values = {"worker.plugins": "example", "worker.doors": "grpc", "plugin.example.poll.seconds": "2.5"}
        configuration = configure(Properties(values, {}, "test.properties"))

        assert configuration.plugins["example"][1].poll_seconds == 2.5
        assert set(configuration.plugins) == {"example"}
        assert set(configuration.doors) == {"grpc"}

    def test_every_problem_of_everything_is_told_at_once(self):
        values = {
            "worker.capacity": "0",
            "worker.capcity": "5",
            "worker.plugins": "example",
            "plugin.example.poll.seconds": "-1",
            "door.grpc.address": "nowhere",
            "resource.aws.region": "eu-west-1",
            "foreign.key": "x",
        }
        with pytest.raises(ConfigurationError) as caught:
            configure(Properties(values, {"REMORA_WORKER_DOORS": "grpc"}, "test.properties"))

        keys = [problem.split(": ")[1].split()[0] for problem in caught.value.problems]
        assert sorted(keys) == [
            "door.grpc.address",
            "plugin.example.poll.seconds",
            "worker.capacity",
            "worker.capcity",
        ]

    def test_what_is_not_installed_is_told_beside_the_rest(self):
        values = {"worker.plugins": "nothing", "worker.doors": "none", "worker.capcity": "5"}
        with pytest.raises(ConfigurationError) as caught:
            configure(Properties(values, {}, "test.properties"))

        assert [problem.split(" ")[0] for problem in caught.value.problems] == [
            "worker.plugins:",
            "worker.doors:",
            "test.properties:",
        ]

    def test_keys_of_what_is_installed_and_does_not_run_are_known(self):
        values = {"worker.plugins": "example", "plugin.sagemaker.region": "eu-west-1", "scheduler.address": "[::1]:1"}

        configure(Properties(values, {}, "test.properties"))

    def test_a_plugin_that_is_broken_is_a_problem(self, install):
        install("broken", "no_such_module:X")
        with pytest.raises(ConfigurationError) as caught:
            configure(Properties({"plugin.example.poll.seconds": "2"}, {}, "test.properties"))

        [problem] = caught.value.problems
        assert "broken" in problem

    def test_a_plugin_that_is_broken_can_be_left_out(self, install):
        install("broken", "no_such_module:X")
        values = {"worker.plugins": "example", "plugin.example.poll.seconds": "2", "plugin.broken.key": "x"}
        with capture_logs() as logged:
            configuration = configure(Properties(values, {}, "test.properties"))

        assert set(configuration.plugins) == {"example"}
        assert [entry["event"] for entry in logged] == ["unknown_keys_not_checked"]


class TestOpenWorker:
    async def test_a_task_runs_to_its_end_and_is_there_after_a_restart(self, configured, until):
        async def ended():
            record = await engine.get(key)
            return record if record.state.final else None

        async with open_worker(configured()) as engine:
            key = (await engine.accept(assignment(message="hello"))).key
            record = await until(ended)
            assert (record.state, record.outputs) == (TaskState.SUCCEEDED, '{"message":"hello"}')
            text = (await engine.read_log(key, offset=0, limit=10_000)).text
            assert "job: hello" in text
        async with open_worker(configured()) as engine:
            assert await engine.get(key) == record
            assert (await engine.read_log(key, offset=0, limit=10_000)).text == text

    async def test_a_task_that_runs_goes_on_after_a_restart(self, configured, until, tmp_path):
        async def running():
            return (await engine.get(key)).state is TaskState.RUNNING

        async with open_worker(configured()) as engine:
            key = (await engine.accept(assignment(seconds=3600))).key
            await until(running)
        async with open_worker(configured()) as engine:
            await engine.cancel(key, door="test", fencing_token=0, reason="enough")

            async def cancelled():
                return (await engine.get(key)).state is TaskState.CANCELLED

            await until(cancelled)
        jobs = await asyncio.to_thread(lambda: [path.name for path in (tmp_path / "jobs").iterdir()])
        assert len([name for name in jobs if "." not in name]) == 1

    async def test_doors_are_open_while_it_runs_and_see_it_drain(self, configured):
        said = []
        configuration = configured(**{"worker.id": "w1"})
        doors = {"gate": (Gate(said), ExampleSettings())}
        with_door = app.Configuration(worker=configuration.worker, plugins=configuration.plugins, doors=doors)
        async with open_worker(with_door) as engine:
            assert said == [("open", "w1", ["EXAMPLE"])]
            assert not engine.draining

        assert said[1:] == [("close", True)]

    async def test_a_door_that_cannot_open_is_told_as_it_is(self, configured):
        said = []
        configuration = configured()
        doors = {
            "first": (Gate(said), ExampleSettings()),
            "second": (Gate(said, error=ConfigurationError("door.second.address: in use")), ExampleSettings()),
        }
        with pytest.raises(ConfigurationError, match=r"^door\.second\.address: in use$"):
            async with open_worker(
                app.Configuration(worker=configuration.worker, plugins=configuration.plugins, doors=doors)
            ):
                pass

    async def test_a_data_directory_in_use_is_told(self, configured):
        async with open_worker(configured()):
            with pytest.raises(ConfigurationError, match="is in use by another process"):
                async with open_worker(configured()):
                    pass

    async def test_a_data_directory_that_cannot_be_made_is_told(self, configured, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ConfigurationError, match="file/data: cannot be written: Not a directory"):
            async with open_worker(configured(**{"worker.data.dir": f"{tmp_path}/file/data"})):
                pass

    async def test_a_plugin_that_cannot_open_is_told_and_gives_the_directory_back(self, configured, tmp_path):
        (tmp_path / "file").write_text("in the way")
        broken = configured(**{"plugin.example.directory": f"{tmp_path}/file/jobs"})
        with pytest.raises(ConfigurationError, match=r"plugin example: .*Not a directory"):
            async with open_worker(broken):
                pass
        async with open_worker(configured()):
            pass


class TestMetrics:
    async def test_are_served_while_the_worker_runs(self, configured):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"

        def scrape():
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                return answer.read().decode()

        async with open_worker(configured(**{"worker.metrics.address": address})) as engine:
            await engine.accept(assignment())
            assert 'remora_tasks_accepted_total{task_type="EXAMPLE"} 1.0' in await asyncio.to_thread(scrape)
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(scrape)

    @pytest.mark.parametrize("address", ["127.0.0.1:grpc", "127.0.0.1:99999", "nowhere.invalid:9090", "{used}"])
    async def test_an_address_that_cannot_be_used_is_told(self, configured, address):
        with socket.create_server(("127.0.0.1", 0)) as used:
            address = address.format(used=f"127.0.0.1:{used.getsockname()[1]}")
            with pytest.raises(ConfigurationError, match=f"^worker.metrics.address: cannot listen on {address}: "):
                async with open_worker(configured(**{"worker.metrics.address": address})):
                    pass


class TestSignals:
    async def test_the_first_sets_the_event_and_the_next_has_its_own_effect(self):
        before = signal.getsignal(signal.SIGTERM)
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), 5)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == before

    async def test_a_worker_runs_until_it_is_told_to_stop(self, configured):
        with capture_logs() as logged:
            running = asyncio.ensure_future(run_worker(configured()))
            async with asyncio.timeout(10):
                while "ready" not in [entry["event"] for entry in logged]:
                    await asyncio.to_thread(int)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.wait_for(running, 10)

        assert [entry["event"] for entry in logged][-3:] == ["signal", "draining", "stopped"]
