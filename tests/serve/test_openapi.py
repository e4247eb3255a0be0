"""The description of the interface is true: what is made of it is answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from moonlet.serve.app import create_app
from moonlet.serve.limits import Limits
from tests.serve.conftest import Make, on_socket

TRUE = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def described(served: Make) -> Iterator[Any]:
    limits = Limits(max_tokens=16)
    with on_socket(create_app([served(limits=limits)], limits, page=())) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_operation_answers_as_described(described: Any) -> None:
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) >= 7
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            case.validate_response(case.call(timeout=10), checks=TRUE)

        check()


def test_the_limits_stand_in_it(described: Any) -> None:
    assert described.raw_schema["x-limits"]["max_tokens"] == 16
    assert set(described.raw_schema["paths"]) >= {"/v1/completions", "/v1/chat/completions", "/moonlet/microscope"}
