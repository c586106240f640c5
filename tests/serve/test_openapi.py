"""Cases that schemathesis makes of the OpenAPI: each is answered as that says, and no answer is a 500."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from served import running

pytestmark = pytest.mark.long
CASES = int(os.environ.get("DMPT_CASES", "130"))
"""Of all operations together; 2,000 by hand."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_the_openapi_is_kept(gallery: Path) -> None:
    with running("--gallery", gallery) as server:
        schema = schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 14
        counts: dict[int, int] = {}
        for operation in operations:
            positive, negative = (operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)

            @given(case=st.one_of(positive, negative))
            @settings(
                max_examples=-(-CASES // len(operations)),
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: Any) -> None:
                answer = case.call(base_url=server.url)
                counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
                case.validate_response(answer, checks=CHECKS)
                if answer.status_code >= 400:
                    assert 0 < len(answer.json()["error"]) <= 500

            ask()
        print(dict(sorted(counts.items())), sum(counts.values()))
        assert server.client.get("/ready").status_code == 200
        assert 200 in counts
        code, err = server.ended(signal.SIGTERM)
    assert (code, err) == (0, "note: stopped; what was acknowledged is kept\n")
