"""Tool calls: read from a response, placed on its tokens, scored by themselves, and held when one is doubtful."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from models import tiny_model, tiny_tokenizer
from scripted import failure_of, profile, score_of, scripted
from scripted import record as record_of

from semgrad_guard import (
    Abstain,
    ChatSemGrad,
    ConfigurationError,
    HumanReview,
    ReviewAnswer,
    SemGradGuard,
    SemGradScorer,
)
from semgrad_guard.langchain.messages import to_template
from semgrad_guard.langchain.scored_messages import scored_messages
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.responses import parse_tool_calls
from semgrad_guard.model.text_spans import token_spans
from semgrad_guard.records import Generation

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}


def rendered(name="weather", **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=4), st.sampled_from([None, 1]))
def test_any_call_is_read_back_and_its_values_are_found(name, arguments, indent):
    body = json.dumps({"name": name, "arguments": arguments}, indent=indent)
    text = f"Well, <tool_call>\n{body}\n</tool_call>"
    if "</tool_call>" in body:
        return
    parsed = parse_tool_calls(text)
    (call,) = parsed.calls
    assert (parsed.content, parsed.broken) == ("Well,", ())
    assert (call.name, call.arguments) == (name, arguments)
    assert list(call.values_at) == list(arguments)
    for key, (start, stop) in call.values_at.items():
        found, value = text[start:stop], arguments[key]
        assert json.loads(f'"{found}"' if isinstance(value, str) and value else found) == value
    assert json.loads(f'"{text[slice(*call.name_at)]}"') == name


def test_several_calls_and_the_text_around_them():
    parsed = parse_tool_calls(f"I will look. {rendered(place='A')}\n{rendered('other')} Done.")
    assert [call.name for call in parsed.calls] == ["weather", "other"]
    assert parsed.content == "I will look. Done."


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"name": "weather", "argu', "Unterminated string"),
        ("", "Expecting value"),
        ("[]", "one JSON object"),
        ('{"name": "weather"} and more', "one JSON object"),
        ('{"name": "weather"}', "'arguments' is not so"),
        ('{"arguments": {}}', "'name' is not so"),
        ('{"name": 3, "arguments": {}}', "'name' is not so"),
        ('{"name": "", "arguments": {}}', "empty"),
        ('{"name": "weather", "arguments": "place"}', "'arguments' is not so"),
        ('{"name": "weather", "arguments": {"days": NaN}}', "NaN is no finite number"),
        ('{"name": "weather", "arguments": {"days": -Infinity}}', "-Infinity is no finite number"),
        ('{"name": "weather", "arguments": {"days": 1e999}}', "1e999 is no finite number"),
        (f'{{"name": "weather", "arguments": {{"days": {"9" * 5000}}}}}', "Exceeds the limit"),
        ('{"name": "weather", "arguments": ' + '{"a": ' * 100_000, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_reported(body, reason):
    parsed = parse_tool_calls(f"<tool_call>{body}</tool_call>")
    assert parsed.calls == ()
    (broken,) = parsed.broken
    assert broken.text == body
    assert reason in broken.reason


def test_a_call_cut_off_is_broken():
    assert len(parse_tool_calls('<tool_call>{"name": "weather", "arguments": {"place": "A"}').broken) == 1


def test_places_in_the_text_are_placed_on_tokens():
    tokenizer = tiny_tokenizer()
    text = rendered(place="Oslo", days=31)
    (call,) = parse_tool_calls(text).calls
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = [call.name_at, *call.values_at.values()]
    spans = token_spans(tokenizer, ids, text, places)
    assert [tokenizer.decode(ids[start:stop]) for start, stop in spans] == ["weather", "Oslo", "31"]


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(tiny_model(), tiny_tokenizer())


def generation(scorer, text, finish="stop"):
    prompt = encode_chat(scorer.tokenizer, [{"role": "user", "content": "weather?"}])
    ids = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Generation(tuple(prompt), tuple(ids), text, finish)


def semgrad(message):
    return message.response_metadata["semgrad"]


def test_a_call_is_scored_over_its_name_and_values(scorer):
    text = f"Hm. {rendered(place='Oslo', days=3)}"
    given = generation(scorer, text)
    (message,) = scored_messages(scorer, [given], (), [WEATHER])
    assert message.content == "Hm."
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"place": "Oslo", "days": 3})
    found = semgrad(message)["tool_calls"][call["id"]]
    pieces = [(text.index(part), text.index(part) + len(part)) for part in ("weather", "Oslo")]
    pieces.append((text.index("3}"), text.index("3}") + 1))  # one token a character
    ((whole, place, days),) = scorer.score([given], spans=[[pieces, pieces[1], pieces[2]]])
    assert found["scores"] == whole.model_dump(mode="json")
    assert found["arguments"] == {"place": place.model_dump(mode="json"), "days": days.model_dump(mode="json")}
    assert whole.length == len("weatherOslo3")
    assert semgrad(message)["failure"] is None


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (rendered("launch"), "it calls 'launch', which is not among the tools: weather"),
        (rendered(days=3), "the call of 'weather' lacks ['place']"),
        (rendered(place="A", when="now"), "the call of 'weather' has ['when'], which it does not take"),
        ('<tool_call>{"name": ', "a tool call cannot be read"),
        (" ", "the response is empty"),
    ],
)
def test_a_call_that_cannot_be_run_is_not_to_be_trusted(scorer, text, failure):
    (message,) = scored_messages(scorer, [generation(scorer, text)], (), [WEATHER])
    assert semgrad(message)["failure"]["text"].startswith(failure)


def test_one_that_cannot_be_scored_does_not_take_the_others_with_it(scorer):
    good, bad = generation(scorer, "Oslo"), generation(scorer, "Rome")
    bad = Generation(bad.prompt_ids[-1:], bad.response_ids, bad.text, "stop")  # t* lies before its start
    messages = scored_messages(scorer, [good, bad, good], (), ())
    failures = [(semgrad(message)["failure"] or {}).get("text") for message in messages]
    assert [bool(failure) for failure in failures] == [False, True, False]
    assert "TokenPositionError" in failures[1]
    assert semgrad(messages[0])["scores"] == semgrad(messages[2])["scores"]
    assert semgrad(messages[0])["scores"] is not None


def test_without_tools_a_call_is_text(scorer):
    (message,) = scored_messages(scorer, [generation(scorer, rendered())], (), ())
    assert message.tool_calls == []
    assert message.content == rendered()


def calling(*confidences, failure="", content=""):
    """Script a message with a call of each confidence, whose argument is twice as doubtful."""
    calls = {
        f"id{index}": {
            "name": f"tool{index}",
            "scores": score_of(confidence).model_dump(mode="json"),
            "arguments": {"x": score_of(confidence / 2).model_dump(mode="json")},
        }
        for index, confidence in enumerate(confidences)
    }
    return AIMessage(
        content,
        tool_calls=[{"name": call["name"], "args": {"x": 1}, "id": id_} for id_, call in calls.items()],
        response_metadata={
            "semgrad": {
                "scores": score_of(0.9).model_dump(mode="json"),
                "failure": failure_of(failure),
                "tool_calls": calls,
            }
        },
    )


def guarded(message, *, sections=True, routes=None):
    fitted = profile(0.8)
    if sections:
        fitted = fitted.model_copy(update={"tool_call": fitted.answer, "argument": fitted.answer})
    return SemGradGuard(scripted(message), profile=fitted, routes=routes or [Abstain("no")]).invoke("q?")


def test_a_sure_call_goes_out_with_its_confidence():
    message = guarded(calling(0.9))
    assert record_of(message)["decision"] == "pass"
    assert [call["name"] for call in message.tool_calls] == ["tool0"]
    found = record_of(message)["tool_calls"]["id0"]
    assert found["name"] == "tool0"
    assert found["confidence"] == pytest.approx(0.9)
    assert found["arguments"] == {"x": pytest.approx(0.45)}


def test_the_least_sure_call_speaks_for_all():
    message = guarded(calling(0.95, 0.3, 0.9))
    assert record_of(message)["decision"] == "abstain"
    assert record_of(message)["confidence"] == pytest.approx(0.3)
    assert record_of(message)["reason"].startswith("tool1: confidence 0.300 is below")
    assert (message.content, message.tool_calls) == ("no", [])


def test_text_beside_a_call_is_judged_too():
    doubtful = calling(0.9, content="Perhaps.")
    doubtful.response_metadata["semgrad"]["scores"] = score_of(0.1).model_dump(mode="json")
    assert record_of(guarded(doubtful))["decision"] == "abstain"


def test_a_call_that_failed_never_goes_out():
    message = guarded(calling(0.9, failure="it calls 'x', which is not among the tools: y"))
    assert record_of(message)["decision"] == "abstain"
    assert record_of(message)["tool_calls"]["id0"]["confidence"] == 0.0
    assert message.tool_calls == []


def test_without_a_section_for_calls_none_goes_out():
    message = guarded(calling(0.9), sections=False)
    assert record_of(message)["decision"] == "abstain"
    assert record_of(message)["tool_calls"]["id0"]["confidence"] is None
    assert "no section for answers of the kind 'tool_call'" in record_of(message)["reason"]


@pytest.mark.parametrize(("decision", "kept"), [("approve", 1), ("reject", 0), ("respond", 0)])
def test_a_human_lets_a_call_out_or_not(decision, kept):
    seen = []

    def reviewer(request):
        seen.append(request.draft)
        return ReviewAnswer(decision=decision, text="by hand")

    message = guarded(calling(0.1), routes=[HumanReview(reviewer)])
    assert seen == ["tool0(x=1)"]
    assert len(message.tool_calls) == kept
    assert record_of(message)["decision"] == "review"


def test_a_score_that_is_not_finite_holds_the_call():
    broken = calling(0.9)
    call = broken.response_metadata["semgrad"]["tool_calls"]["id0"]
    call["scores"] = call["scores"] | {"semgrad": math.inf}
    message = guarded(broken)
    assert (record_of(message)["decision"], record_of(message)["confidence"]) == ("abstain", 0.0)


def test_histories_with_tools_reach_the_template():
    call = {"name": "weather", "args": {"place": "Oslo"}, "id": "1"}
    parts = [{"type": "text", "text": "Look:"}, {"type": "tool_use", "id": "1", "name": "weather", "input": {}}]
    plain = to_template([HumanMessage("q"), AIMessage(parts, tool_calls=[call]), ToolMessage("rain", tool_call_id="1")])
    assert plain[1]["content"] == "Look:"
    assert plain[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"place": "Oslo"}}
    assert (plain[2]["role"], plain[2]["content"], plain[2]["tool_call_id"]) == ("tool", "rain", "1")


def test_a_template_without_a_place_for_tools_is_refused():
    @tool
    def weather(place: str) -> str:
        """Tell the weather."""
        return place

    with pytest.raises(ConfigurationError, match="does not show the tools"):
        ChatSemGrad.from_model(tiny_model(), tiny_tokenizer()).bind_tools([weather]).invoke("q")
