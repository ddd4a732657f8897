"""Pages of a list, as SageMaker gives them: sorted, with an opaque token that stays good while the list grows."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from remora_sagemaker.simulator.protocol import validation_error

T = TypeVar("T")

DEFAULT_SIZE = 10
"""Items on a page when MaxResults is absent. The model says 1 to 100 and no default; most SageMaker lists say 10."""


def page(
    items: Iterable[T],
    request: Mapping[str, Any],
    *,
    scope: str,
    key: Callable[[T], tuple[Any, ...]],
    default_order: str = "Descending",
) -> tuple[list[T], dict[str, str]]:
    """Return the items of the page that the request asks for, and its NextToken if another page follows.

    Args:
        items: All items.
        request: With MaxResults, NextToken and SortOrder.
        scope: What the token is good for; a token from another list is refused.
        key: Sorts the items, and is different for each of them.
        default_order: ``Ascending`` or ``Descending``.

    Raises:
        ApiError: the token is not one of ours.
    """
    descending = request.get("SortOrder", default_order) == "Descending"
    ordered = sorted(items, key=key, reverse=descending)
    if "NextToken" in request:
        last = _read_token(request["NextToken"], scope)
        try:
            ordered = [item for item in ordered if (key(item) < last if descending else key(item) > last)]
        except TypeError:
            raise _bad_token() from None
    size = request.get("MaxResults", DEFAULT_SIZE)
    chosen = ordered[:size]
    if len(ordered) <= size:
        return chosen, {}
    token = json.dumps([scope, *key(chosen[-1])]).encode()
    return chosen, {"NextToken": base64.urlsafe_b64encode(token).decode()}


def created_between(created: float, request: Mapping[str, Any]) -> bool:
    """Whether a time is after CreatedAfter and before CreatedBefore."""
    after: float = request.get("CreatedAfter", float("-inf"))
    before: float = request.get("CreatedBefore", float("inf"))
    return after < created < before


def _read_token(token: str, scope: str) -> tuple[Any, ...]:
    try:
        content = json.loads(base64.urlsafe_b64decode(token.encode()))
    except ValueError:
        raise _bad_token() from None
    match content:
        case [str(found), *last] if found == scope:
            return tuple(last)
        case _:
            raise _bad_token()


def _bad_token() -> Exception:
    return validation_error("The NextToken is not valid for this request.")
