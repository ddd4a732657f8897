"""kill -9 at every step of a task: exactly one execution each time, and its end is reported."""

from __future__ import annotations

import json
import random

import pytest
from remora.v1 import task_pb2, workflow_service_pb2

RUNNING = task_pb2.TASK_STATE_RUNNING
SUCCEEDED = task_pb2.TASK_STATE_SUCCEEDED
CANCELLED = task_pb2.TASK_STATE_CANCELLED
FAILED = task_pb2.TASK_STATE_FAILED
LONG = 10_000.0
"""Simulated seconds after which every execution has ended."""

DAG = """
workflow:
  name: killed
tasks:
  - {name: first, task_type: SageMaker, params: {sagemaker_request_json: {PipelineName: Train}}}
  - {name: left, task_type: SageMaker, deps: [first], params: {sagemaker_request_json: {PipelineName: Train}}}
  - {name: right, task_type: SageMaker, deps: [first], params: {sagemaker_request_json: {PipelineName: Train}}}
  - {name: last, task_type: SageMaker, deps: [left, right], params: {sagemaker_request_json: {PipelineName: Train}}}
"""


def test_a_worker_killed_right_after_it_accepted_starts_the_execution_once(world):
    simulator = world.simulator()
    worker = world.worker(simulator)
    worker.dispatch("t")
    worker.kill()
    worker = world.again(worker)
    worker.until("t", RUNNING)
    simulator.advance(LONG)
    worker.until("t", SUCCEEDED)
    assert len(simulator.executions()) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_killed_while_its_start_is_under_way_finds_the_same_execution(world, when):
    simulator = world.simulator()
    worker = world.worker(simulator)
    simulator.hold("StartPipelineExecution", when)
    worker.dispatch("t")
    simulator.until_held()
    worker.kill()
    # The call of the dead worker takes effect late, as a slow network would have it.
    simulator.release()
    worker = world.again(worker)
    worker.until("t", RUNNING)
    simulator.advance(LONG)
    task = worker.until("t", SUCCEEDED)
    assert [execution["arn"] for execution in simulator.executions()] == [_arn(task)]


def test_a_start_whose_connection_broke_is_repeated_and_starts_one_execution(world):
    simulator = world.simulator()
    simulator.control("faults", [{"operation": "StartPipelineExecution", "reset": True, "when": "after", "times": 2}])
    worker = world.worker(simulator)
    worker.dispatch("t")
    worker.until("t", RUNNING)
    assert len(simulator.executions()) == 1


def test_a_worker_killed_while_the_execution_runs_goes_on_following_it(world):
    simulator = world.simulator()
    worker = world.worker(simulator)
    worker.dispatch("t")
    worker.until("t", RUNNING)
    worker.kill()
    simulator.advance(LONG)
    worker = world.again(worker)
    worker.until("t", SUCCEEDED)
    assert len(simulator.executions()) == 1
    assert "the worker was started again and goes on" in worker.task_log("t")


def test_a_worker_killed_before_it_reported_the_end_reports_it_later(world):
    simulator = world.simulator()
    scheduler = world.scheduler(lease=5)
    worker = world.worker(simulator, scheduler=scheduler)
    scheduler.submit(DAG.replace("deps: [first], ", "").replace("deps: [left, right], ", ""), "run")
    started = _until_tasks(world, scheduler, "run", workflow_service_pb2.WORKFLOW_TASK_STATE_RUNNING, 4)
    scheduler.pause()
    simulator.advance(LONG)
    for task in started:
        worker.until(task.task.key.task_id, SUCCEEDED)
    worker.kill()
    scheduler.resume()
    world.again(worker)
    run = _until_ended(world, scheduler, "run")
    assert run.state == workflow_service_pb2.WORKFLOW_RUN_STATE_SUCCEEDED
    assert len(simulator.executions()) == 4


def test_a_cancel_survives_a_kill_while_the_start_is_under_way(world):
    simulator = world.simulator()
    worker = world.worker(simulator)
    simulator.hold("StartPipelineExecution", "after")
    worker.dispatch("t")
    simulator.until_held()
    worker.cancel("t")
    worker.kill()
    simulator.release()
    worker = world.again(worker)
    _until_stopped(world, simulator, 1)
    simulator.advance(LONG)
    worker.until("t", CANCELLED)
    assert [execution["status"] for execution in simulator.executions()] == ["Stopped"]


def test_a_cancel_survives_a_kill_while_the_stop_is_under_way(world):
    simulator = world.simulator()
    worker = world.worker(simulator)
    worker.dispatch("t", PipelineParameters=[{"Name": "SimStopSeconds", "Value": "0"}])
    worker.until("t", RUNNING)
    simulator.control("faults", [{"operation": "StopPipelineExecution", "hold": "gate", "when": "before", "times": 1}])
    worker.cancel("t")
    simulator.until_held()
    worker.kill()
    worker = world.again(worker)
    worker.until("t", CANCELLED)
    simulator.release()
    assert [execution["status"] for execution in simulator.executions()] == ["Stopped"]


def test_a_task_that_is_cancelled_before_it_started_never_starts(world):
    simulator = world.simulator()
    worker = world.worker(simulator)
    assert worker.cancel("t").state == CANCELLED
    worker.kill()
    worker = world.again(worker)
    assert worker.dispatch("t").state == CANCELLED
    assert simulator.executions() == []


def test_a_scheduler_killed_in_the_middle_of_a_run_goes_on_with_it(world):
    simulator = world.simulator(speed=20)
    scheduler = world.scheduler()
    world.worker(simulator, scheduler=scheduler)
    scheduler.submit(DAG, "run")
    _until_tasks(world, scheduler, "run", workflow_service_pb2.WORKFLOW_TASK_STATE_SUCCEEDED, 1)
    scheduler.kill()
    scheduler = world.scheduler(port=int(scheduler.address.rpartition(":")[2]))
    run = _until_ended(world, scheduler, "run")
    assert run.state == workflow_service_pb2.WORKFLOW_RUN_STATE_SUCCEEDED
    assert len(simulator.executions()) == 4


def test_a_task_of_a_lost_worker_is_adopted_by_another_one(world):
    simulator = world.simulator()
    scheduler = world.scheduler(lease=1)
    first = world.worker(simulator, name="first", scheduler=scheduler)
    scheduler.submit(DAG, "run")
    (task,) = _until_tasks(world, scheduler, "run", workflow_service_pb2.WORKFLOW_TASK_STATE_RUNNING, 1)
    assert task.worker_id == "first"
    first.kill()
    simulator.control("clock", {"speed": 50})
    world.worker(simulator, name="second", scheduler=scheduler)
    run = _until_ended(world, scheduler, "run")
    assert run.state == workflow_service_pb2.WORKFLOW_RUN_STATE_SUCCEEDED
    assert {task.worker_id for task in run.tasks} == {"second"}
    assert len(simulator.executions()) == 4
    # The first one comes back late: what it held belongs to the second now.
    again = world.again(first)
    again.until(run.tasks[0].task.key.task_id, task_pb2.TASK_STATE_RELEASED)
    assert len(simulator.executions()) == 4


def test_a_worker_that_was_paused_beyond_its_lease_lets_go(world):
    simulator = world.simulator()
    scheduler = world.scheduler(lease=1)
    first = world.worker(simulator, name="first", scheduler=scheduler)
    scheduler.submit(DAG, "run")
    (task,) = _until_tasks(world, scheduler, "run", workflow_service_pb2.WORKFLOW_TASK_STATE_RUNNING, 1)
    first.pause()
    world.worker(simulator, name="second", scheduler=scheduler)
    world.eventually(lambda: scheduler.run("run").tasks[0].worker_id == "second", "the second worker to take over")
    first.resume()
    first.until(task.task.key.task_id, task_pb2.TASK_STATE_RELEASED)
    simulator.control("clock", {"speed": 50})
    run = _until_ended(world, scheduler, "run")
    assert run.state == workflow_service_pb2.WORKFLOW_RUN_STATE_SUCCEEDED
    assert run.tasks[0].worker_id == "second"
    assert len(simulator.executions()) == 4


def test_the_same_task_at_two_workers_is_one_execution(world):
    simulator = world.simulator()
    workers = [world.worker(simulator, name=name) for name in ("first", "second")]
    for worker in workers:
        worker.dispatch("t")
    for worker in workers:
        worker.until("t", RUNNING)
    simulator.advance(LONG)
    ends = [worker.until("t", SUCCEEDED) for worker in workers]
    assert {_arn(task) for task in ends} == {execution["arn"] for execution in simulator.executions()}
    assert len(simulator.executions()) == 1


@pytest.mark.parametrize("seed", range(2))
def test_random_kills_of_workers_and_scheduler_start_each_execution_once(world, seed):
    chance = random.Random(seed)
    simulator = world.simulator(speed=20)
    scheduler = world.scheduler(lease=1)
    workers = [world.worker(simulator, name=f"w{number}", scheduler=scheduler) for number in range(2)]
    scheduler.submit(DAG, "run")
    for _ in range(5):
        for _ in range(chance.randrange(20)):
            scheduler.run("run")
        victim = chance.randrange(3)
        if victim == 2:
            scheduler.kill()
            scheduler = world.scheduler(port=int(scheduler.address.rpartition(":")[2]), lease=1)
        else:
            workers[victim].kill()
            workers[victim] = world.again(workers[victim])
    run = _until_ended(world, scheduler, "run")
    assert run.state == workflow_service_pb2.WORKFLOW_RUN_STATE_SUCCEEDED
    assert len(simulator.executions()) == 4


def _arn(task):
    return json.loads(task.outputs_json)["pipelineExecutionArn"]


def _until_ended(world, scheduler, run_id):
    def look():
        run = scheduler.run(run_id)
        return run if run.state != workflow_service_pb2.WORKFLOW_RUN_STATE_RUNNING else None

    return world.eventually(look, f"{run_id} to end")


def _until_tasks(world, scheduler, run_id, state, count):
    def look():
        tasks = [task for task in scheduler.run(run_id).tasks if task.state == state]
        return tasks if len(tasks) >= count else None

    return world.eventually(look, f"{count} tasks of {run_id}")


def _until_stopped(world, simulator, count):
    def look():
        return sum(execution["status"] in ("Stopping", "Stopped") for execution in simulator.executions()) >= count

    world.eventually(look, "executions to stop")
