"""Recorded exchanges with real engines, and ways to compare answers with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDINGS = Path(__file__).parent.parent / "recordings"


@pytest.fixture(scope="session")
def recorded() -> Callable[..., str]:
    """`recorded(engine, path, **fields)`: body of the first good answer to such a request.

    `fields` are what the request's body holds; None stands for a field that it lacks.
    """

    def find(engine: str, path: str, **fields: Any) -> str:
        exchanges = json.loads((RECORDINGS / f"{engine}.json").read_text())["exchanges"]
        for exchange in exchanges:
            request, response = exchange["request"], exchange["response"]
            body = request["body"]
            if request["path"] != path or response["status"] != 200 or not isinstance(body, dict):
                continue
            if all(body.get(name) == value for name, value in fields.items()):
                return str(response["body"])
        raise LookupError(f"{engine}: no {path} with {fields}")

    return find


@pytest.fixture(scope="session")
def shape() -> Callable[[Any], Any]:
    """`shape(value)`: keys in their order and types of values, without the values."""

    def shape_of(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, shape_of(item)) for key, item in value.items()]
        if isinstance(value, list):
            return [shape_of(value[0])] if value else []
        return type(value).__name__

    return shape_of
