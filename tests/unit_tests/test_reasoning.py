"""Thinking models: reasoning is kept apart, the answer is what is shown and scored."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from models import CHATML, tiny_model, tiny_tokenizer

from semgrad_guard import Abstain, ChatSemGrad, SemGradGuard
from semgrad_guard.calibration import answers
from semgrad_guard.calibration.examples import Example
from semgrad_guard.langchain.messages import to_template
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.forcing import ForcedBeginning
from semgrad_guard.model.responses import apart, placed_call

THINKING = CHATML + "{# reasoning ends with </think> #}"
OPENED = THINKING.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
WEATHER = {
    "type": "function",
    "function": {"name": "w", "parameters": {"type": "object", "properties": {"p": {"type": "string"}}}},
}
LISTING = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"


def thinker(text, template=THINKING, *, tokenizer=None, **generation):
    """Build a chat model that says `text` whatever it is asked; the question must be "q?"."""
    tokenizer = tokenizer or tiny_tokenizer(template)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    tools = [WEATHER] if LISTING in template else []
    prompt = encode_chat(tokenizer, [{"role": "user", "content": "q?"}], tools=tools)
    settings = {"max_new_tokens": len(ids), "logits_processor": [ForcedBeginning(ids, len(prompt))], **generation}
    return ChatSemGrad.from_model(tiny_model(), tokenizer, generation=settings)


def semgrad(message):
    return message.response_metadata["semgrad"]


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nOslo", False, ("Hm.\n", 20)),
        ("Hm.</think>Oslo", True, ("Hm.", 11)),
        ("<think>Hm.", False, ("Hm.", None)),
        ("Hm.", True, ("Hm.", None)),
        ("Oslo <think>", False, ("", 0)),
        ("Hm.</think>Oslo", False, ("", 0)),
        ("", False, ("", 0)),
    ],
)
def test_a_response_is_taken_apart(text, inside, expected):
    assert apart(text, inside=inside) == expected


@pytest.mark.parametrize(
    ("template", "text"),
    [(THINKING, "<think>\nWell, well.\n</think>\n\nOslo."), (OPENED, "Well, well.\n</think>\n\nOslo.")],
)
def test_the_answer_is_shown_and_scored_and_the_reasoning_kept_apart(template, text):
    chat = thinker(text, template)
    message = chat.invoke("q?", logprobs=True)
    assert message.content == "Oslo."
    assert message.additional_kwargs["reasoning_content"] == "Well, well."
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    thought = text.index("Oslo")  # one token a character
    assert message.usage_metadata["output_token_details"] == {"reasoning": thought}
    prompt = encode_chat(chat.tokenizer, [{"role": "user", "content": "q?"}])
    (generation,) = chat.scorer.generate([prompt], **chat.generation)
    ((expected,),) = chat.scorer.score([generation], spans=[[(thought, len(text) + 1)]])
    assert semgrad(message)["scores"] == expected.model_dump(mode="json")
    assert semgrad(message)["failure"] is None
    tokens = [entry["token"] for entry in message.response_metadata["logprobs"]["content"]]
    assert "".join(tokens) == "Oslo.<|im_end|>"


def test_reasoning_comes_first_in_a_stream_and_is_no_content():
    thought = "Well, well, it is a town in the north."
    text = f"<think>{thought}</think>\nOslo it is."
    chat = thinker(text)
    chunks = list(chat.stream("q?"))
    reasoning = [chunk.additional_kwargs.get("reasoning_content", "") for chunk in chunks]
    answer = [chunk.content for chunk in chunks]
    assert ("".join(reasoning), "".join(answer)) == (thought, "Oslo it is.")
    assert sum(map(bool, reasoning)) > 1
    assert sum(map(bool, answer)) > 1
    whole = sum(chunks[1:], chunks[0])
    assert whole.additional_kwargs == chat.invoke("q?").additional_kwargs
    assert semgrad(whole) == semgrad(chat.invoke("q?"))


@pytest.mark.parametrize("text", ["<think>Well, well, well", "<think>Well</think>", "<think>Well</think>\n "])
def test_without_an_answer_nothing_is_to_be_trusted(text):
    message = thinker(text, max_new_tokens=len(text)).invoke("q?")
    assert message.content == ""
    assert message.additional_kwargs["reasoning_content"].startswith("Well")
    assert semgrad(message)["scores"] is None
    assert semgrad(message)["failure"] is not None
    chunks = list(thinker(text, max_new_tokens=len(text)).stream("q?"))
    assert "".join(chunk.content for chunk in chunks) == ""
    guard = SemGradGuard(thinker(text, max_new_tokens=len(text)), score_threshold=1e9, routes=[Abstain("no")])
    assert guard.invoke("q?").content == "no"


def test_a_stop_text_within_the_reasoning_leaves_no_answer():
    message = thinker("<think>Well, well.</think>Oslo").invoke("q?", stop=["well"])
    assert "inside its reasoning" in semgrad(message)["failure"]["text"]


def test_a_call_that_is_only_thought_of_is_none():
    call = '<tool_call>{"name": "w", "arguments": {"p": "%s"}}</tool_call>'
    chat = thinker(f"<think>{call % 'Rome'}</think>{call % 'Oslo'}", THINKING + LISTING, max_new_tokens=200)
    message = chat.bind_tools([WEATHER]).invoke("q?")
    (found,) = message.tool_calls
    assert found["args"] == {"p": "Oslo"}
    assert semgrad(message)["tool_calls"][found["id"]]["scores"]["length"] == len("wOslo")
    assert semgrad(message)["failure"] is None


def test_where_nothing_marks_reasoning_a_mark_is_text():
    message = thinker("<think>Hm.</think>Oslo", CHATML).invoke("q?")
    assert message.content == "<think>Hm.</think>Oslo"
    assert message.additional_kwargs == {}


def test_the_template_gets_earlier_reasoning_to_do_with_as_it_likes():
    earlier = AIMessage("Oslo", additional_kwargs={"reasoning_content": "Hm."})
    assert to_template([HumanMessage("q"), earlier])[1]["reasoning_content"] == "Hm."


# As tokenizers carry it: reasoning in brackets, calls as @name{JSON}.
TEMPLATE = {
    "start_anchor": "assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": "[INST]", "close": "[/INST]", "content": "text"},
        "tool_calls": {
            "open_pattern": r"@(?P<name>\w+)",
            "close": "@",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}


def templated(text, **generation):
    tokenizer = tiny_tokenizer(CHATML + LISTING)
    tokenizer.response_template = TEMPLATE
    return thinker(text, CHATML + LISTING, tokenizer=tokenizer, **generation)


def test_a_response_template_of_the_tokenizer_is_followed():
    chat = templated("[INST]Hm, hm.[/INST] Oslo.").bind_tools([WEATHER])
    message = chat.invoke("q?")
    assert message.content == "Oslo."
    assert message.additional_kwargs["reasoning_content"] == "Hm, hm."
    assert semgrad(message)["scores"]["length"] == len("Oslo.") + 1
    assert semgrad(message)["failure"] is None
    (last,) = [chunk for chunk in chat.stream("q?") if chunk.content]
    assert last.content == "Oslo."


def test_calls_in_another_syntax_are_placed_on_their_tokens():
    message = templated('[INST]To Oslo, w[/INST]@w{"p": "Oslo"}@').bind_tools([WEATHER]).invoke("q?")
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("w", {"p": "Oslo"})
    assert semgrad(message)["tool_calls"][call["id"]]["scores"]["length"] == len("wOslo")
    assert semgrad(message)["failure"] is None
    text = '@w{"p": "Oslo"}@'
    parsed = placed_call(text, 0, "w", {"p": "Oslo"})
    assert [text[slice(*parsed.name_at)], text[slice(*parsed.values_at["p"])]] == ["w", "Oslo"]


@pytest.mark.parametrize("text", ["[INST]Hm, hm.", "[INST]Hm.[/INST]", "@w{]@", " "])
def test_a_template_that_finds_no_answer_leaves_nothing_to_be_trusted(text):
    message = templated(text).bind_tools([WEATHER]).invoke("q?")
    assert semgrad(message)["failure"] is not None
    assert message.tool_calls == []


@pytest.mark.parametrize(("name", "arguments"), [("x", {}), ("w", {"p": "Rome"}), ("w", []), (None, {}), ("", {})])
def test_a_call_that_does_not_stand_in_the_response_cannot_be_placed(name, arguments):
    with pytest.raises(ValueError, match=r"does not stand|needs a name"):
        placed_call('@w{"p": "Oslo"}@', 0, name, arguments)


def test_what_is_calibrated_is_the_answer_after_the_reasoning(monkeypatch):
    """As the guard shows and scores it: text, tokens, and what it is cut before; also when it is scored again."""
    monkeypatch.setattr(answers, "unlikely", lambda score: None)  # a random model would say none of this
    chat = thinker("<think>\nWell.\n</think>\n\nOslo.; more")
    chat.stop = [";"]
    message = chat.invoke("q?")
    found = answers.answered(
        chat.scorer, [Example(query="q?", answers=("Oslo.",))], lambda *_: True, chat.generation, stop=chat.stop
    )
    (item,) = found.scored
    assert item.text == message.content == "Oslo."
    assert item.start == semgrad(message)["answer_from"] > 0
    assert item.response_ids == tuple(semgrad(message)["tokens"])
    expected = pytest.approx(semgrad(message)["scores"]["semgrad"], rel=1e-5)
    assert item.score.semgrad == expected
    assert answers.rescored(chat.scorer, [item])[0].score.semgrad == expected
    silent = thinker("<think>\nWell, well.")
    nothing = answers.answered(silent.scorer, [Example(query="q?")], lambda *_: True, silent.generation)
    assert (nothing.counts.empty, nothing.counts.scored) == (1, 0)
