"""The guard among other Runnables: settings at run time, fallbacks, branches, batches, drawings."""

import asyncio

import pytest
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableBranch, RunnableLambda, RunnableParallel
from scripted import Scripted, profile, score_of, scripted

from semgrad_guard import Abstain, ConfigurationError, LowConfidenceError, Raise, SemGradGuard, get_confidence


def guard(*answers, **settings):
    return SemGradGuard(scripted(*answers), **{"profile": profile(0.8), "routes": [Abstain("no")]} | settings)


def decision(message):
    return message.response_metadata["semgrad_decision"]["decision"]


class ByQuestion(Scripted):
    """As sure as the question says."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        asked = messages[-1].content
        self.script = [(f"answer {asked}", score_of(float(asked)), "")]
        return super()._generate(messages, stop, run_manager, **kwargs)


def by_question(**settings):
    return guard(**settings).model_copy(update={"llm": ByQuestion(**dict(scripted()))})


def test_the_threshold_can_be_configured_at_run_time():
    runnable = guard(0.7).configurable_fields(threshold=ConfigurableField(id="threshold", name="Threshold"))
    for runner in (runnable.invoke, lambda *given: asyncio.run(runnable.ainvoke(*given))):
        assert decision(runner("q?")) == "abstain"
        assert decision(runner("q?", {"configurable": {"threshold": 0.6}})) == "pass"
    assert decision(runnable.with_config(configurable={"threshold": 0.6}).invoke("q?")) == "pass"
    assert [decision(m) for m in runnable.stream("q?", {"configurable": {"threshold": 0.6}})] == ["pass"]
    chain = ChatPromptTemplate.from_template("{q}") | runnable
    assert decision(chain.invoke({"q": "?"}, {"configurable": {"threshold": 0.6}})) == "pass"


def test_other_settings_stay_where_the_threshold_is_configured():
    runnable = guard(0.7, stream_drafts=True, record_drafts=True, passages="in_prompt")
    configured = runnable.configurable_fields(threshold=ConfigurableField(id="t"))
    prepared, _ = configured.prepare({"configurable": {"t": 0.6}})
    assert prepared.threshold == 0.6
    names = ("llm", "profile", "routes", "stream_drafts", "record_drafts", "passages", "watch")
    assert all(getattr(prepared, name) == getattr(runnable, name) for name in names)


def test_a_threshold_out_of_range_is_refused_at_run_time():
    runnable = guard(0.7).configurable_fields(threshold=ConfigurableField(id="threshold"))
    with pytest.raises(ConfigurationError, match=r"threshold=2.0: expected a confidence"):
        runnable.invoke("q?", {"configurable": {"threshold": 2}})


def test_guards_can_be_alternatives():
    other = guard(0.95)
    runnable = guard(0.7).configurable_alternatives(ConfigurableField(id="guard"), other=other)
    assert get_confidence(runnable.invoke("q?", {"configurable": {"guard": "other"}})) == pytest.approx(0.95)


def test_fallbacks_take_over_where_the_guard_raises_and_learn_why():
    seen = []
    chain = ChatPromptTemplate.from_template("{q}") | guard(0.3, routes=[Raise()])
    other = RunnableLambda(lambda given: seen.append(given["error"]) or AIMessage("other"))
    runnable = chain.with_fallbacks([other], exceptions_to_handle=(LowConfidenceError,), exception_key="error")
    assert runnable.invoke({"q": "?"}).content == "other"
    assert asyncio.run(runnable.ainvoke({"q": "?"})).content == "other"
    assert [message.content for message in runnable.stream({"q": "?"})] == ["other"]
    assert [message.content for message in runnable.batch([{"q": "1"}, {"q": "2"}])] == ["other", "other"]
    assert all(isinstance(error, LowConfidenceError) and error.decision.confidence < 0.8 for error in seen)


def test_fallbacks_do_not_hide_mistakes():
    runnable = guard(0.3).with_fallbacks([guard(0.9)], exceptions_to_handle=(LowConfidenceError,))
    with pytest.raises(ConfigurationError):
        runnable.invoke([])


def test_branches_go_by_the_decision():
    branch = RunnableBranch(
        (lambda message: decision(message) == "abstain", lambda message: f"unsure: {message.content}"),
        lambda message: f"sure: {message.content}",
    )
    assert (guard(0.9) | branch).invoke("q?") == "sure: draft"
    assert asyncio.run((guard(0.3) | branch).ainvoke("q?")) == "unsure: no"
    assert list((guard(0.3) | branch).stream("q?")) == ["unsure: no"]


def test_guards_run_beside_each_other():
    both = RunnableParallel(strict=guard(0.7, threshold=0.8), lenient=guard(0.7, threshold=0.6))
    found = both.invoke("q?")
    assert (decision(found["strict"]), decision(found["lenient"])) == ("abstain", "pass")
    streamed = list(both.stream("q?"))
    assert sorted(name for chunk in streamed for name in chunk) == ["lenient", "strict"]


def test_batches_keep_order_and_isolate_failures():
    asked = ["0.9", "0.3", "0.95", [], "0.1"]
    for found in (
        by_question(routes=[Raise(below=0.2), Abstain("no")]).batch(
            asked, {"max_concurrency": 1}, return_exceptions=True
        ),
        asyncio.run(
            by_question(routes=[Raise(below=0.2), Abstain("no")]).abatch(
                asked, {"max_concurrency": 1}, return_exceptions=True
            )
        ),
    ):
        assert [message.content for message in found[:3]] == ["answer 0.9", "no", "answer 0.95"]
        assert [decision(message) for message in found[:3]] == ["pass", "abstain", "pass"]
        assert isinstance(found[3], ConfigurationError)
        assert isinstance(found[4], LowConfidenceError)


def test_without_return_exceptions_a_batch_raises():
    with pytest.raises(LowConfidenceError):
        by_question(routes=[Raise()]).batch(["0.9", "0.3"], {"max_concurrency": 1})


def test_batches_as_completed_say_whose_they_are():
    found = dict(by_question().batch_as_completed(["0.9", "0.3"], {"max_concurrency": 1}))
    assert {index: decision(message) for index, message in found.items()} == {0: "pass", 1: "abstain"}


def test_it_can_be_drawn():
    chain = ChatPromptTemplate.from_template("{q}") | guard(0.9) | StrOutputParser()
    drawn = chain.get_graph().draw_mermaid()
    assert "SemGradGuard" in drawn
    names = [node.name for node in chain.get_graph().nodes.values()]
    assert names == ["PromptInput", "ChatPromptTemplate", "SemGradGuard", "StrOutputParser", "StrOutputParserOutput"]
    assert guard(0.9).get_graph().draw_mermaid()
    configured = guard(0.9).configurable_fields(threshold=ConfigurableField(id="threshold"))
    assert "SemGradGuard" in (configured | StrOutputParser()).get_graph().draw_mermaid()


def test_its_schemas_are_those_of_a_chat_model():
    assert guard(0.9).get_output_schema() is not None
    assert "AIMessage" in str(guard(0.9).get_output_jsonschema())
    assert guard(0.9).get_input_jsonschema()
