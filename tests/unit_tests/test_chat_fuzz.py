"""Whatever messages come: a named error or an answer, and never a usable answer whose score failed."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from models import tiny_model, tiny_tokenizer

from semgrad_guard import Abstain, ChatSemGrad, ConfigurationError, SemGradError, SemGradGuard, SemGradScorer

CHAT = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(), generation={"max_new_tokens": 4, "do_sample": False})
GUARD = SemGradGuard(CHAT, score_threshold=1e9, routes=[Abstain("no")])
REFUSING = "{{ raise_exception('roles must alternate') }}"

texts = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(), max_size=5),  # half surrogates too
    st.sampled_from(
        ["", " ", "\n", "\0", "<|im_end|>", "<think>", "<tool_call>{", "\U0001f469\u200d\U0001f680", "e\u0301"]
    ),
    st.integers(100, 20_000).map(lambda length: "x" * length),
)
parts = st.one_of(
    texts,
    texts.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(
        [
            {"type": "image", "url": "x"},
            {"type": "image_url", "image_url": {"url": "x"}},
            {"type": "audio"},
            {"type": "text"},
            {"type": "text", "text": None},
            {"type": "tool_use", "id": "1", "name": "f", "input": {}},
            {"type": "reasoning", "reasoning": "Hm."},
            {},
        ]
    ),
)
contents = texts | st.lists(parts, max_size=3)
calls = st.lists(
    st.builds(lambda name, args: {"name": name, "args": args, "id": "1"}, st.text(max_size=3), st.just({"a": 1})),
    max_size=2,
)
messages = st.one_of(
    st.builds(HumanMessage, contents),
    st.builds(SystemMessage, contents),
    st.builds(lambda content, calls: AIMessage(content, tool_calls=calls), contents, calls),
    st.builds(lambda content: ToolMessage(content, tool_call_id="1"), contents),
    st.builds(lambda content: ChatMessage(content, role="critic"), contents),
)
histories = st.lists(messages, max_size=4)


def usable(message):
    """Tell whether an answer may be used; such a one has scores, all of them finite."""
    record = message.response_metadata["semgrad"]
    if record["failure"]:
        return False
    assert record["scores"] is not None
    assert all(math.isfinite(record["scores"][name]) for name in ("semgrad", "paragrad", "nll", "mean_entropy"))
    return True


def asked(ask, history):
    try:
        return ask(history)
    except SemGradError:
        return None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_any_history_is_answered_or_refused_by_name(history):
    message = asked(CHAT.invoke, history)
    if message is not None:
        usable(message)
    chunks = asked(lambda history: list(CHAT.stream(history)), history)
    assert (chunks is None) == (message is None)
    if chunks is not None:
        whole = sum(chunks[1:], chunks[0])
        assert whole.content == message.content
        assert usable(whole) == usable(message)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(histories, min_size=2, max_size=4))
def test_any_rows_are_answered_or_refused_one_by_one(rows):
    for outcome, row in zip(CHAT.batch(rows, return_exceptions=True), rows, strict=True):
        alone = asked(CHAT.invoke, row)
        assert isinstance(outcome, SemGradError if alone is None else AIMessage)
        if alone is not None:
            assert outcome.content == alone.content
            assert usable(outcome) == usable(alone)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories, st.sampled_from([RuntimeError("no"), MemoryError(), math.nan, math.inf]))
def test_nothing_passes_whose_score_failed(history, trouble):
    score = SemGradScorer.score

    def failing(self, generations, **spans):
        if isinstance(trouble, Exception):
            raise trouble
        return [
            [one.model_copy(update={"semgrad": trouble}) for one in found]
            for found in score(self, generations, **spans)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemGradScorer, "score", failing)
        message = asked(CHAT.invoke, history)
        assert message is None or message.response_metadata["semgrad"]["failure"] is not None
        guarded = asked(GUARD.invoke, history)
        assert guarded is None or guarded.content == "no"


@pytest.mark.parametrize(
    ("history", "error"),
    [
        ([HumanMessage([{"type": "image", "url": "x"}])], "part of type 'image' that is no text"),
        ([HumanMessage([{"type": "text"}])], "part of type 'text' that is no text"),
        ([ChatMessage("x", role="critic")], "Messages of type 'chat' are not supported"),
        ([HumanMessage("\ud83d")], "half of a surrogate pair"),
        ([], "No messages were given"),
    ],
)
def test_errors_say_what_is_wrong(history, error):
    with pytest.raises(ConfigurationError, match=error):
        CHAT.invoke(history)


def test_what_the_template_refuses_is_said_in_its_words():
    tokenizer = tiny_tokenizer()
    chat = ChatSemGrad.from_model(tiny_model(), tokenizer)
    tokenizer.chat_template = REFUSING
    with pytest.raises(ConfigurationError, match="does not take these messages: roles must alternate"):
        chat.invoke("q?")
