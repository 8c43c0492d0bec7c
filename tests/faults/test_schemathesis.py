"""The published OpenAPI document against the service: its requests and answers are as documented."""

import asyncio
import contextlib
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.faults.clients import start_frontend
from tests.helpers import TIMEOUT_S
from tests.processes import Processes

EXAMPLES = 25  # of each kind, for each operation: about 30 s in all
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
    unsupported_method,
]
KINDS = {GenerationMode.POSITIVE: positive_data_acceptance, GenerationMode.NEGATIVE: negative_data_rejection}


def check_operations(url: str, mode: GenerationMode) -> int:
    """Send generated requests to every operation, check each answer, and return the number of requests."""
    sent = 0
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()  # type: ignore[union-attr]  # an Err raises
            assert operation is not None

            @seed(20240611)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def check(case: Case[Any]) -> None:
                nonlocal sent
                sent += 1
                case.call_and_validate(session=session, checks=[*CHECKS, KINDS[mode]], timeout=TIMEOUT_S)

            with contextlib.suppress(Unsatisfiable):  # no request of this operation can be invalid
                check()
    return sent


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", KINDS, ids=lambda mode: str(mode.value))
async def test_the_service_matches_its_document(processes: Processes, mode: Any) -> None:
    """Generated valid and invalid requests get answers as /openapi.json describes them."""
    url, frontend = await start_frontend(processes)
    await processes.worker("echo_request")
    assert await asyncio.to_thread(check_operations, url, mode) > EXAMPLES
    assert "Traceback" not in frontend.output, frontend.output
