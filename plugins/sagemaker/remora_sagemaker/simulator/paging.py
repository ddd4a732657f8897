"""Pages of a list, as SageMaker gives them: sorted, with an opaque token that stays good while the list grows."""

from __future__ import annotations

import base64
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from remora_sagemaker.simulator.protocol import ApiError, validation_error

T = TypeVar("T")

DEFAULT_SIZE = 10
"""Items on a page when MaxResults is absent. The model says 1 to 100 and no default; most SageMaker lists say 10."""


def page(
    items: Sequence[T],
    request: Mapping[str, Any],
    *,
    scope: str,
    key: Callable[[T], tuple[Any, ...]],
    default_order: str = "Descending",
) -> tuple[Sequence[T], dict[str, str]]:
    """Return the items of the page that the request asks for, and its NextToken if another page follows.

    Args:
        items: All items, sorted by the key. With 10,000 of them it matters that no page sorts them again.
        request: With MaxResults, NextToken and SortOrder.
        scope: What the token is good for; a token from another list is refused.
        key: Different for each item.
        default_order: ``Ascending`` or ``Descending``.

    Raises:
        ApiError: the token is not one of ours.
    """
    descending = request.get("SortOrder", default_order) == "Descending"
    begin, end = 0, len(items)
    if "NextToken" in request:
        last = _read_token(request["NextToken"], scope)
        try:
            if descending:
                end = bisect_left(items, last, key=key)
            else:
                begin = bisect_right(items, last, key=key)
        except TypeError:
            raise _bad_token() from None
    size: int = request.get("MaxResults", DEFAULT_SIZE)
    chosen = items[max(begin, end - size) : end][::-1] if descending else items[begin : begin + size]
    if end - begin <= size:
        return chosen, {}
    token = json.dumps([scope, *key(chosen[-1])]).encode()
    return chosen, {"NextToken": base64.urlsafe_b64encode(token).decode()}


def created_between(items: Sequence[T], request: Mapping[str, Any], *, created: Callable[[T], float]) -> Sequence[T]:
    """Return the items, which are sorted by the time of their creation, after CreatedAfter and before CreatedBefore."""
    begin = bisect_right(items, request["CreatedAfter"], key=created) if "CreatedAfter" in request else 0
    end = bisect_left(items, request["CreatedBefore"], key=created) if "CreatedBefore" in request else len(items)
    return items if (begin, end) == (0, len(items)) else items[begin:end]


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


def _bad_token() -> ApiError:
    return validation_error("The NextToken is not valid for this request.")
