"""`ChatSemGrad` on the embedded model: streaming, forced calls, and nothing of a draft before the verdict."""

import asyncio
import time

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from pydantic import BaseModel
from transformers import LogitsProcessor

from semgrad_guard import ChatSemGrad, ConfigurationError, PromptTooLongError, SemGradGuard
from semgrad_guard.demo import embedded_model, embedded_profile


@pytest.fixture(scope="module")
def chat():
    return ChatSemGrad.from_model(*embedded_model(), generation={"max_new_tokens": 48, "do_sample": False})


def joined(chunks):
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


class Booking(BaseModel):
    """Book a table."""

    restaurant: str
    people: int


def test_a_stream_is_the_answer_with_its_scores_on_the_last_chunk(chat):
    question = "Write a story about a cat."
    whole = chat.invoke(question)
    chunks = list(chat.stream(question))
    assert len([chunk for chunk in chunks if chunk.content]) > 1
    assert joined(chunks).content == whole.content
    assert all("semgrad" not in chunk.response_metadata for chunk in chunks[:-1])
    assert all(chunk.usage_metadata is None for chunk in chunks[:-1])
    last = next(chunk for chunk in reversed(chunks) if chunk.response_metadata)
    assert last.response_metadata["semgrad"] == whole.response_metadata["semgrad"]
    assert joined(chunks).usage_metadata == whole.usage_metadata


def test_async_streams_are_the_same(chat):
    async def collect():
        return [chunk async for chunk in chat.astream("Who are you?")]

    assert joined(asyncio.run(collect())).content == chat.invoke("Who are you?").content


def test_a_stop_text_is_never_shown(chat):
    whole = chat.invoke("Write a story about a cat.").content
    mark = whole[10:16]
    shown = "".join(chunk.content for chunk in chat.stream("Write a story about a cat.", stop=[mark]))
    assert shown == whole[:10].rstrip()
    assert chat.invoke("Write a story about a cat.", stop=[mark]).content == shown


def test_a_call_comes_whole_on_the_last_chunk(chat):
    chunks = list(chat.bind_tools([Booking], tool_choice="any").stream('Call Booking("Toltec", 4).'))
    assert all(not chunk.content for chunk in chunks)
    message = joined(chunks)
    assert isinstance(message, AIMessageChunk)
    assert [call["name"] for call in message.tool_calls] == ["Booking"]


class Slowly(LogitsProcessor):
    """Counts the tokens of a generation and takes its time over each."""

    def __init__(self):
        self.tokens = 0

    def __call__(self, input_ids, scores):
        self.tokens += 1
        time.sleep(0.02)
        return scores


async def first_of(stream):
    return await anext(stream)


@pytest.mark.parametrize("how", ["stream", "astream", "generator", "consumer fails"])
def test_a_stream_that_is_left_stops_generating(chat, how):
    slowly = Slowly()
    long = {"logits_processor": [slowly], "min_new_tokens": 100, "max_new_tokens": 100}
    asked = ("Write a story about a cat.",)
    if how == "stream":
        stream = chat.stream(*asked, **long)
        next(stream)
        stream.close()
    elif how == "generator":
        next(iter(chat._stream([HumanMessage(*asked)], **long)))
    elif how == "astream":
        asyncio.run(first_of(chat.astream(*asked, **long)))
    else:
        with pytest.raises(ZeroDivisionError):
            [1 / 0 for _ in chat.stream(*asked, **long)]
    left = slowly.tokens
    time.sleep(0.5)
    assert slowly.tokens <= left + 2 < 50


def test_a_stream_that_fails_does_not_hang(chat):
    with pytest.raises(PromptTooLongError):
        list(chat.stream("word " * 3000))


@pytest.mark.parametrize("question", ["Hello!", "What is the capital of France?", "Tell me a joke.", '"}}</tool_call>'])
def test_a_forced_call_always_fits_its_schema(chat, question):
    for choice in ("any", "required", True, "Booking", {"type": "function", "function": {"name": "Booking"}}):
        message = chat.bind_tools([Booking], tool_choice=choice).invoke(question)
        (call,) = message.tool_calls
        booking = Booking.model_validate(call["args"])
        assert isinstance(booking.people, int)
        assert message.response_metadata["semgrad"]["failure"] is None
    structured = chat.with_structured_output(Booking).invoke(question)
    assert isinstance(structured, Booking)


def test_no_call_can_be_asked_for_and_no_other_than_the_tools(chat):
    assert chat.bind_tools([Booking], tool_choice="none").invoke("Call Booking.").tool_calls == []
    with pytest.raises(ConfigurationError, match=r"'Flight'.*or one of the tools: Booking"):
        chat.bind_tools([Booking], tool_choice="Flight")


def test_of_several_tools_one_is_called(chat):
    class Weather(BaseModel):
        """Tell the weather at a place."""

        place: str

    message = chat.bind_tools([Booking, Weather], tool_choice="any").invoke("What is the weather in Karurg?")
    assert message.tool_calls[0]["name"] in ("Booking", "Weather")
    assert message.response_metadata["semgrad"]["failure"] is None


def test_nothing_of_a_draft_is_seen_before_the_verdict(chat):
    guard = SemGradGuard(chat, profile=embedded_profile(), threshold=1.0)
    draft = guard.llm.invoke("Who are you?").content

    async def events():
        return [event async for event in guard.astream_events("Who are you?", version="v2")]

    streamed = [event for event in asyncio.run(events()) if event["event"].endswith("_stream")]
    assert all(draft[:10] not in str(event["data"]) for event in streamed)
    assert not any(event["event"] == "on_chat_model_stream" for event in streamed)
    shown = [chunk.content for chunk in guard.stream("Who are you?")]
    assert len(shown) == 1
    assert draft[:10] not in shown[0]
