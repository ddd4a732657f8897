"""SageMaker's wire protocol, AWS JSON 1.1: which operation is meant, is the request sound, is the answer.

Requests and answers are held against botocore's own service model, so what the simulator accepts and says is what
the model says, nothing from memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import structlog

from remora_sagemaker.simulator.model import SAGEMAKER
from remora_sagemaker.simulator.shapes import Check, JsonObject, ShapeChecks, Violation

CONTENT_TYPE = "application/x-amz-json-1.1"

log = structlog.get_logger(__name__)

Handler = Callable[[JsonObject], JsonObject]
"""Carries out one operation: a sound request to an answer, or an :class:`ApiError`. Never waits."""


class ApiError(Exception):
    """An answer that is an error, as AWS gives it."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        """Take the code that clients look at, a message for people, and the HTTP status."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status

    def body(self) -> bytes:
        """Return the error as it goes over the wire."""
        return json.dumps({"__type": self.code, "message": self.message}).encode()


def validation_error(message: str) -> ApiError:
    """Return the error for a request that is well-formed and cannot work."""
    return ApiError("ValidationException", message)


def not_found(message: str) -> ApiError:
    """Return the error for something that does not exist."""
    return ApiError("ResourceNotFound", message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One operation that is simulated."""

    name: str
    handler: Handler
    request_check: Check
    answer_check: Check | None
    """None: the answer has no members."""


class Protocol:
    """The operations that are simulated, behind the checks of the model."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """Take a handler for each simulated operation, by its name in the model."""
        self._handlers = handlers
        self._operations: dict[str, Operation] = {}
        self._request_checks = ShapeChecks(closed=False)
        self._answer_checks = ShapeChecks(closed=True)

    @property
    def operations(self) -> frozenset[str]:
        """Names of the operations that are simulated."""
        return frozenset(self._handlers)

    def operation(self, target: str) -> Operation:
        """Find what the header ``X-Amz-Target`` names.

        Raises:
            ApiError: the header names nothing that SageMaker has, or nothing that is simulated.
        """
        prefix, _, name = target.partition(".")
        found = self._operations.get(name) if prefix == "SageMaker" else None
        if found is None:
            found = self._operations[name] = self._compile(target)
        return found

    def _compile(self, target: str) -> Operation:
        prefix, _, name = target.partition(".")
        if prefix != SAGEMAKER.metadata.get("targetPrefix") or name not in SAGEMAKER.operation_names:
            raise ApiError(
                "UnknownOperationException",
                f"SageMaker has no operation '{target}'. The header X-Amz-Target must be SageMaker.<operation>.",
            )
        if name not in self._handlers:
            raise ApiError("UnsupportedOperationException", f"This simulator does not simulate the operation {name}.")
        shapes = SAGEMAKER.operation_model(name)
        return Operation(
            name=name,
            handler=self._handlers[name],
            request_check=self._request_checks.of(shapes.input_shape) if shapes.input_shape else _anything,
            answer_check=self._answer_checks.of(shapes.output_shape) if shapes.output_shape else None,
        )

    def decode(self, operation: Operation, body: bytes) -> JsonObject:
        """Read a request and hold it against the model.

        Raises:
            ApiError: SerializationException or ValidationException.
        """
        try:
            request = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise ApiError("SerializationException", f"The request is not JSON: {error}") from None
        found: list[Violation] = []
        operation.request_check(request, "", found)
        if found:
            raise _refusal(found)
        # null is how JSON clients leave a member out.
        return {name: value for name, value in cast("JsonObject", request).items() if value is not None}

    def encode(self, operation: Operation, answer: JsonObject) -> bytes:
        """Hold an answer against the model and write it.

        Raises:
            ApiError: InternalFailure; the answer breaks the model, which is a defect of the simulator.
        """
        found: list[Violation] = []
        if operation.answer_check is not None:
            operation.answer_check(answer, "", found)
        elif answer:
            found.append(Violation("", answer, "Member must be empty"))
        if found:
            problems = [str(violation) for violation in found]
            log.error("the answer breaks the model", operation=operation.name, problems=problems)
            raise ApiError("InternalFailure", f"The simulator's answer breaks the model: {problems}", status=500)
        return json.dumps(answer).encode()


def _anything(_value: object, _path: str, _found: list[Violation]) -> None:
    """Check nothing: an operation without input."""


def _refusal(found: list[Violation]) -> ApiError:
    for violation in found:
        if violation.is_type:
            return ApiError("SerializationException", str(violation))
    count = "1 validation error" if len(found) == 1 else f"{len(found)} validation errors"
    return validation_error(f"{count} detected: {'; '.join(map(str, found))}")
