"""SageMaker on this machine: a simulator of its API for demos and tests.

As a process, ``python -m remora_sagemaker.simulator --help``; point any AWS client at its URL with
``endpoint_url``. In a test::

    from remora_sagemaker.simulator import Fault, SimulatedClock, Simulator

    simulator = Simulator(clock=SimulatedClock(frozen=True))
    simulator.create_pipeline("TrainPipeline", {"Version": "2020-12-01", "Parameters": [], "Steps": [...]})
    async with simulator.serve() as url:                  # boto3.client("sagemaker", endpoint_url=url, ...)
        simulator.faults.add(Fault(operation="StartPipelineExecution", reset=True, when="after"))
        simulator.clock.advance(30)                       # seconds
        started = list(simulator.executions)              # .arn .token .replays .status(now) ...
        simulator.calls["StartPipelineExecution"]         # requests that came
        simulator.executions.quota = 10                   # at once; None: any number

Use it from the event loop that serves; clients may be in threads or other processes.

**Time.** How an execution stands is a pure function of what was asked for and of the clock, so advancing the clock is
all it takes to see its end. Steps take ``SimStepSeconds`` (10 by default).

**Scenario.** Pipeline parameters of StartPipelineExecution, accepted by every pipeline: see
:class:`~remora_sagemaker.simulator.scenario.Scenario`. ``SimStepSeconds``, ``SimFailStep`` (with ``SimFailReason`` and
``SimFailTimes``), ``SimStopSeconds``, ``SimStatus``, ``SimCondition``.

**Control** over HTTP, JSON:

======  ==================  ==========================================================================================
GET     /_sim/health        is it there
GET     /_sim/clock         now, speed, frozen
POST    /_sim/clock         ``{"advance": 30}``, ``{"speed": 60}``, ``{"frozen": true}``, or several of them
POST    /_sim/faults        a :class:`Fault` or a list of them, to be added; GET shows what is left; DELETE clears
POST    /_sim/release       ``{"hold": name}`` lets the requests go that a fault holds
GET     /_sim/holds/NAME    answers when a request is held under the name, or 408 after ``?timeout=10`` real seconds
POST    /_sim/limits        ``{"StartPipelineExecution": 2}`` requests a simulated second, null for no limit
POST    /_sim/quota         ``{"executions": 10}`` at once, null for no limit
GET     /_sim/executions    every execution with token, pipeline and status
GET     /_sim/calls         requests, faults served and throttled requests by operation; requests that are held
POST    /_sim/reset         back to the start
======  ==================  ==========================================================================================

A held request takes effect when it is released, even if its client is gone by then: that is what a slow network does.

Not simulated: signatures and permissions, S3, aliases of pipeline versions, eventual consistency.
"""

from remora_sagemaker.simulator.clock import SimulatedClock
from remora_sagemaker.simulator.faults import Fault
from remora_sagemaker.simulator.naming import Account
from remora_sagemaker.simulator.protocol import ApiError
from remora_sagemaker.simulator.server import Simulator

__all__ = ["Account", "ApiError", "Fault", "SimulatedClock", "Simulator"]
