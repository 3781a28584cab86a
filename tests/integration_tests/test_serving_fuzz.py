"""Whatever the OpenAPI document allows, and much that it does not: no 5xx, and every answer is as documented."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from serving import served

from semgrad_guard.observability.metrics import Metrics
from semgrad_guard.serving.app import application
from semgrad_guard.serving.server import Setup
from semgrad_guard.serving.work import Limits
from semgrad_guard.web.keys import ApiKeys

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

KEY = "0123456789abcdef-first"

schema = schemathesis.openapi.from_dict(application(None, metrics=Metrics()).openapi())  # the document needs no engine
schema.config.checks.negative_data_rejection.expected_statuses += ["413"]  # some of it is large as well


@pytest.fixture(scope="module")
def url():
    with served(Setup(limits=Limits(response_tokens=16)), keys=ApiKeys([KEY])) as (_, found):
        yield found


def agree(path, body):
    """Mend what no schema can say: the name of the model, time enough, and fields that need or exclude each other."""
    body["model"] = "demo"
    (body.get("semgrad") or {}).pop("timeout", None)
    if path == "/v1/score":
        for names in (["prompt_token_ids", "messages", "prompt"], ["response_token_ids", "response"]):
            first = next((name for name in names if body.get(name)), names[0])
            for name in names:
                body[name] = (body.get(name) or [5] * 9) if name == first else None
    else:
        body["messages"] = [*body["messages"][:200], {"role": "user", "content": "What is the capital of France?"}]
        if not body.get("tools"):
            body["tool_choice"] = body["parallel_tool_calls"] = None
        if isinstance(body.get("tool_choice"), dict):
            body["tool_choice"] = "auto"
        if body.get("top_logprobs") is not None:
            body["logprobs"] = True
        if not body.get("stream"):
            body["stream_options"] = None
        body["max_completion_tokens"] = body["max_tokens"] = 8


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_it(case, url):
    if case.meta.generation.mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
        agree(case.path, case.body)
    headers = {"Authorization": f"Bearer {KEY}"}
    case.call_and_validate(base_url=url, headers=headers, excluded_checks=[positive_data_acceptance], timeout=60)
