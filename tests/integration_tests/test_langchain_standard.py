"""LangChain's own standard tests, on the embedded model."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from semgrad_guard import ChatSemGrad
from semgrad_guard.demo import embedded_model


@cache
def parameters():
    model, tokenizer = embedded_model()
    return {"model": model, "tokenizer": tokenizer, "generation": {"max_new_tokens": 48, "do_sample": False}}


class OnTheEmbeddedModel:
    """What both suites are told about the chat model."""

    @property
    def chat_model_class(self):
        return ChatSemGrad

    @property
    def chat_model_params(self):
        return parameters()

    @property
    def supports_model_override(self):
        return False  # a model is its weights


class TestUnit(OnTheEmbeddedModel, ChatModelUnitTests):
    pass


class TestIntegration(OnTheEmbeddedModel, ChatModelIntegrationTests):
    @property
    def supports_json_mode(self):
        return False  # structured output goes by tool calls

    @pytest.mark.xfail(reason="the embedded model knows no Chinese or Japanese, so it cannot copy the customer's name")
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)


def test_the_readme_s_counts_are_these(outcomes):
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    stated = re.search(r"standard tests for chat models .*?: (\d+) passed, (\d+) xfailed, (\d+) skipped", readme)
    found = Counter(outcomes.values())
    assert stated is not None
    assert [int(number) for number in stated.groups()] == [found["passed"], found["xfailed"], found["skipped"]]
    assert len(outcomes) == found["passed"] + found["xfailed"] + found["skipped"]
