"""`ChatSemGrad` beside the answer: caches, configuration at run time, serialisation, log-probabilities, metadata."""

import asyncio
import itertools
import json
import logging
import time
from collections import Counter
from functools import cache

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd, dumps, loads
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from models import CHATML, tiny_model, tiny_tokenizer
from transformers import GenerationConfig, StoppingCriteria, pipeline

from semgrad_guard import (
    Budget,
    ChatSemGrad,
    ConfigurationError,
    PromptTooLongError,
    SemGradError,
    SemGradGuard,
    SemGradScorer,
    UnsupportedModelError,
)
from semgrad_guard.langchain.chat_model import chat_model
from semgrad_guard.langchain.scored_messages import as_openai
from semgrad_guard.langchain.source import layer, over
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import TokenLogProb

GREEDY = {"max_new_tokens": 6, "do_sample": False}


def chat_of(*, seed=0, template=CHATML, generation=GREEDY, seed_of_answers=None, **settings):
    if seed_of_answers is not None:
        settings["seed"] = seed_of_answers
    return ChatSemGrad.from_model(tiny_model(seed=seed), tiny_tokenizer(template), generation=generation, **settings)


def stated(logits_of):
    """Change a model's own generation configuration."""
    chat = chat_of()
    chat.model.generation_config.update(**logits_of)
    return chat


# Chat models that may answer, or score, otherwise than `chat_of()`.
OTHERS = {
    "weights": lambda: chat_of(seed=1),
    "template": lambda: chat_of(template=CHATML.replace("\n", " ")),
    "precision": lambda: ChatSemGrad.from_model(tiny_model().double(), tiny_tokenizer(), generation=GREEDY),
    "generation": lambda: chat_of(generation=GREEDY | {"max_new_tokens": 7}),
    "own generation": lambda: stated({"repetition_penalty": 2.0}),
    "stop": lambda: chat_of(stop=["a"]),
    "layers": lambda: chat_of(layers="all"),
    "token": lambda: chat_of(token_position=2),
    "reduction": lambda: chat_of(reduction="mean"),
    "norm": lambda: chat_of(norm="l2"),
    "tau": lambda: chat_of(tau=2.0),
    "beta": lambda: chat_of(beta=0.5),
    "unweighted": lambda: chat_of(unweighted=True),
    "later": lambda: chat_of(later=True),
    "budget": lambda: chat_of(budget=Budget(tokens=1)),
    "temperature": lambda: chat_of(generation={"max_new_tokens": 6}, temperature=0.5),
    "other temperature": lambda: chat_of(generation={"max_new_tokens": 6}, temperature=0.6),
    "top_p": lambda: chat_of(generation={"max_new_tokens": 6}, top_p=0.5),
    "top_k": lambda: chat_of(generation={"max_new_tokens": 6}, top_k=5),
    "seed": lambda: chat_of(seed_of_answers=5),
    "timeout": lambda: chat_of(timeout=60.0),
}
CALLS = [{}, {"stop": ["b"]}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}, {"max_new_tokens": 3}]


def test_no_two_of_them_share_an_entry_of_a_cache():
    chats = [chat_of(), *(build() for build in OTHERS.values())]
    keys = [chat._get_llm_string(**{"stop": None, **call}) for chat, call in itertools.product(chats, CALLS)]
    assert {key: count for key, count in Counter(keys).items() if count > 1} == {}
    assert chat_of()._get_llm_string(stop=None) == chats[0]._get_llm_string(stop=None)


@pytest.fixture
def passes(monkeypatch):
    """Count how many rows each call of the model has."""
    seen, generate = [], SemGradScorer.generate

    def counting(self, prompts, **settings):
        seen.append(len(prompts))
        return generate(self, prompts, **settings)

    monkeypatch.setattr(SemGradScorer, "generate", counting)
    return seen


@pytest.mark.parametrize("how", ["invoke", "batch"])
def test_a_cached_message_keeps_its_scores_and_is_not_generated_again(how, passes):
    cache = InMemoryCache()
    first, other = (chat_of(seed=seed) for seed in (0, 1))
    first.cache = other.cache = cache

    def ask(chat):
        return chat.invoke("q?") if how == "invoke" else chat.batch(["q?", "r?"])[0]

    fresh, cached, another = ask(first), ask(first), ask(other)
    assert passes == ([1, 1] if how == "invoke" else [2, 2])
    assert cached.response_metadata == fresh.response_metadata
    assert cached.response_metadata["semgrad"]["scores"] is not None
    assert another.response_metadata["semgrad"] != fresh.response_metadata["semgrad"]


def test_of_a_batch_only_what_is_not_cached_is_generated(passes):
    chat = chat_of()
    chat.cache = InMemoryCache()
    chat.invoke("b?")
    passes.clear()
    assert len(chat.batch(["a?", "b?", "c?"])) == 3
    assert passes == [2]


def test_settings_are_configured_at_run_time():
    chat = chat_of().configurable_fields(generation=ConfigurableField(id="generation"))
    longer = {"configurable": {"generation": GREEDY | {"max_new_tokens": 9}}}
    used = [
        message.usage_metadata["output_tokens"]
        for message in (
            chat.invoke("q?"),
            chat.invoke("q?", longer),
            chat.with_config(longer).invoke("q?"),
            chat.bind(max_new_tokens=4).invoke("q?"),
            *chat.batch(["q?", "q?"], [longer, {}]),
            *chat.with_config(longer).batch(["q?", "q?"]),
        )
    ]
    assert used == [6, 9, 9, 4, 9, 6, 9, 9]


def test_one_model_stands_in_for_another_at_run_time():
    chat = chat_of().configurable_alternatives(ConfigurableField(id="llm"), default_key="first", other=chat_of(seed=1))
    scores = [
        chat.invoke("q?", {"configurable": {"llm": name}}).response_metadata["semgrad"]["scores"]
        for name in ("first", "other")
    ]
    assert scores[0] == chat_of().invoke("q?").response_metadata["semgrad"]["scores"] != scores[1]


# Reading LangChain's own format back is in beta, which it warns of.
reads_back = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


@reads_back
def test_a_live_model_is_not_serialised_and_says_so():
    chat = chat_of()
    plain = dumpd(chat)
    assert plain["type"] == "not_implemented"
    assert plain["id"][-1] == "ChatSemGrad"
    assert "'max_new_tokens': 6" in plain["repr"]
    assert "Llama" not in plain["repr"]
    with pytest.raises(NotImplementedError, match="doesn't implement serialization"):
        loads(dumps(chat), allowed_objects="core")


@reads_back
def test_messages_come_back_from_json_with_their_scores():
    message = chat_of().invoke("q?", logprobs=True, top_logprobs=1)
    again = loads(dumps(message), allowed_objects="core")
    assert isinstance(again, AIMessage)
    assert again == message
    json.dumps(message.response_metadata, allow_nan=False)


def test_log_probabilities_are_the_unwarped_ones_of_the_scored_tokens():
    chat = chat_of(generation={"max_new_tokens": 6, "do_sample": True, "temperature": 3.0, "top_k": 5})
    message = chat.invoke("q?", logprobs=True, top_logprobs=3)
    content = message.response_metadata["logprobs"]["content"]
    scores = message.response_metadata["semgrad"]["scores"]
    assert len(content) == scores["length"]
    assert sum(entry["logprob"] for entry in content) == pytest.approx(-scores["nll"], abs=1e-4)
    for entry in content:
        assert list(entry) == ["token", "logprob", "bytes", "top_logprobs"]
        assert bytes(entry["bytes"]).decode() == entry["token"]
        likeliest = [other["logprob"] for other in entry["top_logprobs"]]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 3
        assert entry["logprob"] <= likeliest[0] + 1e-6


def test_log_probabilities_come_with_batches_and_at_the_end_of_streams():
    bound = chat_of().bind(logprobs=True, top_logprobs=2)
    alone = bound.invoke("q?").response_metadata["logprobs"]
    chunks = list(bound.stream("q?"))
    assert [bool(chunk.response_metadata.get("logprobs")) for chunk in chunks].count(True) == 1
    whole = sum(chunks[1:], chunks[0])
    assert whole.response_metadata["logprobs"] == alone
    together = bound.batch(["q?", "a longer question?"])[0].response_metadata["logprobs"]
    for ours, theirs in zip(together["content"], alone["content"], strict=True):
        assert ours["token"] == theirs["token"]
        assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-5)
    assert "logprobs" not in chat_of().invoke("q?").response_metadata
    assert "logprobs" not in chat_of().invoke("q?", logprobs=False).response_metadata


def test_a_part_of_a_character_has_no_bytes():
    entry = {"token": "\ufffd", "logprob": -1.0, "bytes": None}

    class Halves:
        def decode(self, ids):
            return "\ufffd"

    assert as_openai(Halves(), [TokenLogProb(5, -1.0, ())]) == {"content": [entry | {"top_logprobs": []}]}


@pytest.mark.parametrize(
    "given", [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": -1}, {"logprobs": True, "top_logprobs": "all"}]
)
def test_what_cannot_be_asked_of_log_probabilities(given):
    with pytest.raises(ConfigurationError, match="expected logprobs=True and a whole number"):
        chat_of().invoke("q?", **given)


def test_beams_have_no_log_probabilities():
    with pytest.raises(ConfigurationError, match="num_beams=2"):
        chat_of().invoke("q?", logprobs=True, num_beams=2)


def test_metadata_name_the_model_and_its_revision():
    model = tiny_model()
    model.config.name_or_path, model.config._commit_hash = "some/model", "abc"
    chat = ChatSemGrad.from_model(model, tiny_tokenizer(CHATML), generation=GREEDY)
    message = chat.invoke("q?")
    metadata = {name: message.response_metadata[name] for name in ("model_name", "revision", "finish_reason")}
    assert metadata == {"model_name": "some/model", "revision": "abc", "finish_reason": "length"}
    prompt = len(encode_chat(chat.tokenizer, [{"role": "user", "content": "q?"}]))
    assert message.usage_metadata["input_tokens"] == prompt
    assert message.usage_metadata["total_tokens"] == prompt + 6
    assert chat._get_ls_params()["ls_max_tokens"] == 6


# The settings of a generation.


PAIR = tiny_model(), tiny_tokenizer()


def plain_chat(**settings):
    """A chat model whose own settings say nothing."""
    return ChatSemGrad.from_model(*PAIR, **settings)


limited_chat = cache(plain_chat)  # building one checks the model's gradients


def tokens(message):
    return message.usage_metadata["output_tokens"]


PLACES = {
    "construction": lambda settings: plain_chat(**settings).invoke("hi"),
    "class": lambda settings: ChatSemGrad(model=PAIR[0], tokenizer=PAIR[1], **settings).invoke("hi"),
    "generation": lambda settings: plain_chat(generation=settings).invoke("hi"),
    "copy": lambda settings: ChatSemGrad.from_llm(limited_chat(max_tokens=9, temperature=0), **settings).invoke("hi"),
    "bind": lambda settings: limited_chat(max_tokens=9).bind(**settings).invoke("hi"),
    "call": lambda settings: limited_chat(max_tokens=9, temperature=0).invoke("hi", **settings),
    "async call": lambda settings: asyncio.run(limited_chat(max_tokens=9).ainvoke("hi", **settings)),
    "batch": lambda settings: limited_chat(max_tokens=9).batch(["hi", "hi"], **settings)[1],
    "stream": lambda settings: sum(
        (chunks := list(limited_chat(max_tokens=9, temperature=0).stream("hi", **settings)))[1:], chunks[0]
    ),
    "guard": lambda settings: SemGradGuard(limited_chat(max_tokens=9), score_threshold=1e9).invoke("hi", **settings),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens", "max_completion_tokens"])
def test_the_length_is_limited_wherever_that_is_said(place, name):
    assert tokens(PLACES[place]({name: 2, "temperature": 0})) == 2


WRONG = {
    "unknown": ({"spam": 1}, "has no setting 'spam'"),
    "misspelt": ({"temprature": 0.5}, "has no setting 'temprature'. Did you mean 'temperature'?"),
    "of transformers, misspelt": ({"repetition_penalti": 1.5}, "Did you mean 'repetition_penalty'?"),
    "cold": ({"temperature": -0.1}, r"\(temperature=-0.1\): it should be greater than or equal to 0"),
    "NaN": ({"temperature": float("nan")}, "temperature=nan"),
    "infinite": ({"temperature": float("inf")}, "temperature=inf"),
    "text": ({"temperature": "hot"}, "temperature='hot'"),
    "truth": ({"temperature": True}, "temperature=True"),
    "no share": ({"top_p": 0.0}, r"\(top_p=0.0\): it should be greater than 0"),
    "large share": ({"top_p": 1.1}, "top_p=1.1"),
    "negative number": ({"top_k": -1}, "top_k=-1"),
    "no tokens": ({"max_tokens": 0}, r"\(max_tokens=0\): it should be greater than or equal to 1"),
    "half tokens": ({"max_tokens": 2.5}, "max_tokens=2.5"),
    "tokens of text": ({"max_tokens": "5"}, "max_tokens='5'"),
    "tokens of truth": ({"max_new_tokens": True}, "max_new_tokens=True"),
    "seed": ({"seed": "x"}, "seed='x'"),
    "half a seed": ({"seed": 1.5}, "seed=1.5"),
    "large seed": ({"seed": 2**64}, "seed="),
    "empty stop": ({"stop": ""}, "expected a text, or a list of texts, none of them empty"),
    "empty stops": ({"stop": ["a", ""]}, "none of them empty"),
    "number to stop at": ({"stop": 3}, "stop=3"),
    "numbers to stop at": ({"stop": [3]}, "none of them empty"),
    "no time": ({"timeout": 0}, "timeout=0"),
    "time of text": ({"timeout": "60"}, "timeout='60'"),
    "two lengths": ({"max_tokens": 3, "max_new_tokens": 4}, "max_tokens=3 and max_new_tokens=4 contradict|max_new"),
    "length of all": ({"max_tokens": 3, "max_length": 40}, "max_tokens=3 and max_length=40 contradict"),
    "greedy and hot": ({"do_sample": False, "temperature": 0.5}, "do_sample=False and temperature=0.5 contradict"),
    "greedy share": ({"do_sample": False, "top_p": 0.5}, "do_sample=False and top_p=0.5 contradict"),
    "sampled and cold": ({"do_sample": True, "temperature": 0.0}, "do_sample=True and temperature=0.0 contradict"),
    "half sampled": ({"do_sample": "no"}, "do_sample='no'"),
    "penalty": ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0"),
    "configuration": ({"generation_config": {"max_new_tokens": 3}}, "should be an instance of GenerationConfig"),
    "several": ({"num_return_sequences": 2, "max_tokens": 3}, "num_return_sequences=2: expected 1"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_wherever_it_is_made(place, name):
    settings, message = WRONG[name]
    with pytest.raises(ConfigurationError, match=message) as raised:
        PLACES[place](settings)
    assert "\n" not in str(raised.value)


def test_a_wrong_setting_of_a_call_is_refused_before_anything_is_done():
    def never(_):
        raise AssertionError("asked")

    guard = SemGradGuard(plain_chat(), score_threshold=1e9, passages="required", routes=[never_settling(never)])
    with pytest.raises(ConfigurationError, match="has no setting 'spam'"):
        guard.invoke("hi", spam=1)


def never_settling(attempt):
    return type("Own", (), {"decision": "x", "attempt": lambda self, situation: attempt(situation)})()


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_implementation": "x"},
        {"num_beams": 2, "early_stopping": "x"},
        {"eos_token_id": "x"},
        {"min_new_tokens": "x"},
        {"logits_processor": 3},
        {"watermarking_config": 3},
        {"no_repeat_ngram_size": "x"},
        {"bad_words_ids": 3},
    ],
)
def test_what_transformers_refuses_is_an_error_of_ours_that_names_the_setting(settings):
    chat = plain_chat(max_tokens=3)
    with pytest.raises(ConfigurationError, match=list(settings)[-1]):
        chat.invoke("hi", **settings)
    with pytest.raises(ConfigurationError, match=list(settings)[-1]):
        chat.scorer.generate([[5, 6, 7]], max_new_tokens=3, **settings)


def test_the_scorer_refuses_unknown_settings_too():
    scorer = plain_chat().scorer
    with pytest.raises(ConfigurationError, match=r"no setting 'max_new_token'\. Did you mean 'max_new_tokens'"):
        scorer.generate([[5, 6, 7]], max_new_token=3)
    with pytest.raises(ConfigurationError, match="max_length=40 counts the prompt"):
        scorer.generate([[5, 6, 7]], max_length=40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation": "x"}, "generation='x'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"budget": 3}, "budget=3"),
        ({"norm": "l3"}, "norm='l3'"),
        ({"token_position": 0}, "token_position=0"),
        ({"tau": -1.0}, "tau=-1"),
        ({"layer": "all"}, "Did you mean 'layers'?"),
        (
            {"max_new_tokens": 2, "max_tokens": 3},
            "max_new_tokens=2 and max_tokens=3 contradict|max_tokens=3 and max_new",
        ),
    ],
)
def test_a_wrong_setting_of_the_chat_model_is_one_line_of_ours(settings, message):
    for build in (plain_chat, lambda **given: ChatSemGrad(model=tiny_model(), tokenizer=tiny_tokenizer(), **given)):
        with pytest.raises(ConfigurationError, match=message) as raised:
            build(**settings)
        assert "\n" not in str(raised.value)


def test_two_settings_of_one_thing_contradict_each_other():
    for name, settings in (
        ("max_tokens", {"generation": {"max_new_tokens": 2}, "max_tokens": 3}),
        ("temperature", {"generation": {"temperature": 0.2}, "temperature": 0.3}),
    ):
        with pytest.raises(ConfigurationError, match=f"{name}=.* contradict"):
            plain_chat(**settings)
        # LangChain builds the class anew for settings configured at run time: there, fields stand over `generation`.
        chat = ChatSemGrad(model=PAIR[0], tokenizer=PAIR[1], **settings)
        assert chat._layer() == {"max_new_tokens" if name == "max_tokens" else name: settings[name]}


def test_a_chat_model_is_built_from_a_model_with_its_tokenizer():
    for build, message in (
        (lambda: ChatSemGrad(tiny_model(), tiny_tokenizer()), r"write ChatSemGrad.from_model\(model, tokenizer\)"),
        (ChatSemGrad, r"ChatSemGrad\(model\): field required"),
        (lambda: ChatSemGrad(model=None, tokenizer=tiny_tokenizer()), "None is no model"),
        (lambda: ChatSemGrad(model=tiny_tokenizer(), tokenizer=tiny_model()), "The tokenizer stands before the model"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            build()


def test_the_same_said_twice_is_no_contradiction():
    assert tokens(plain_chat(max_tokens=2, generation={"max_new_tokens": 2}).invoke("hi")) == 2
    assert tokens(plain_chat().invoke("hi", max_tokens=2, max_new_tokens=2)) == 2


def test_langchain_s_settings_for_models_behind_a_network_are_accepted():
    standard = {"temperature": 0, "max_tokens": 3, "timeout": 60, "stop": [], "max_retries": 2, "api_key": "x"}
    assert tokens(plain_chat(**standard, streaming=True).invoke("hi")) == 3


def different(chat, **settings):
    """Count how many different answers come of six."""
    return len({chat.invoke("hi", **settings).content for _ in range(6)})


@pytest.mark.parametrize("settings", [{"temperature": 1.5}, {"top_p": 0.99}, {"top_k": 100}, {"do_sample": True}])
def test_tokens_are_drawn_where_a_setting_says_so(settings):
    assert different(plain_chat(max_tokens=6, **settings)) > 1
    assert different(plain_chat(max_tokens=6), **settings) > 1
    assert different(chat_of(), **settings) > 1  # though the chat model itself is greedy
    guard = SemGradGuard(chat_of(), score_threshold=1e9)
    drafts = {tuple(guard.llm.invoke("hi", **settings).response_metadata["semgrad"]["tokens"]) for _ in range(6)}
    assert len(drafts) > 1


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1e-30}, {"do_sample": False}])
def test_none_are_drawn_at_a_temperature_of_zero(settings):
    hot = plain_chat(max_tokens=6, temperature=1.5)
    assert different(hot, **settings) == 1
    assert different(plain_chat(max_tokens=6, **settings)) == 1
    assert hot.invoke("hi", **settings).content == chat_of().invoke("hi").content
    assert different(plain_chat(max_tokens=6, temperature=0), top_p=0.9) == 1


def test_a_greedy_call_is_greedy_without_a_warning(caplog):
    chat = chat_of(generation={"max_new_tokens": 3})
    chat.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        for settings in ({"temperature": 0}, {"temperature": 0, "top_p": 0.5}, {"do_sample": False}):
            assert different(chat, **settings) == 1
        assert different(chat, temperature=1.5) > 1
    finally:
        library.removeHandler(caplog.handler)
    assert [entry.getMessage() for entry in caplog.records if entry.name.startswith("transformers")] == []


def test_a_seed_makes_what_is_drawn_the_same_again():
    chat = plain_chat(max_tokens=6, temperature=1.5, seed=3)
    assert different(chat) == 1
    assert chat.invoke("hi").content == plain_chat(max_tokens=6, temperature=1.5).invoke("hi", seed=3).content
    assert len({chat.invoke("hi", seed=seed).content for seed in range(8)}) > 1


def test_stop_texts_may_be_one_or_several_and_are_set_aside_by_a_call():
    text = chat_of(generation=GREEDY | {"max_new_tokens": 12}).invoke("hello").content
    mark = text[2]
    for chat in (plain_chat(max_tokens=12, temperature=0, stop=mark), plain_chat(max_tokens=12, stop=(mark,))):
        assert chat.invoke("hello", temperature=0).content == text.split(mark)[0].strip()
        assert chat.invoke("hello", temperature=0, stop=[]).content == text
    for stop in (mark, [mark, "zzz"]):
        message = plain_chat(max_tokens=12, temperature=0).invoke("hello", stop=stop)
        assert message.content == text.split(mark)[0].strip()
        assert message.response_metadata["finish_reason"] == "stop"
    assert plain_chat(generation={"stop_strings": [mark]}).invoke("hello", max_tokens=12, temperature=0).content == (
        text.split(mark)[0].strip()
    )


def test_the_length_of_all_is_honoured_row_by_row():
    chat = plain_chat(temperature=0, max_length=40)
    short, long = chat.batch(["hi", "a longer question"])
    assert [message.usage_metadata["total_tokens"] for message in (short, long)] == [40, 40]
    assert chat.invoke("hi", max_tokens=3).usage_metadata["output_tokens"] == 3
    assert plain_chat(max_tokens=3).invoke("hi", max_length=20).usage_metadata["total_tokens"] == 20
    with pytest.raises(PromptTooLongError, match="max_length=5 counts them too"):
        chat.invoke("hi", max_length=5)
    configured = plain_chat(generation={"generation_config": GenerationConfig(max_length=30)})
    assert configured.invoke("hi").usage_metadata["total_tokens"] == 30


class Slow(StoppingCriteria):
    """Stops nothing, and takes its time."""

    def __call__(self, input_ids, scores, **kwargs):
        time.sleep(0.02)
        return input_ids.new_zeros(len(input_ids)).bool()


@pytest.mark.parametrize("beside", [{}, {"stop": ["zzz"]}, {"stopping_criteria": [Slow()]}])
def test_an_answer_cut_off_by_the_time_is_never_trusted(beside):
    chat = plain_chat(max_tokens=200, temperature=0)
    message = chat.invoke("hi", timeout=1e-6, **beside)
    assert tokens(message) < 200
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["semgrad"]["failure"]
    guarded = SemGradGuard(chat, score_threshold=1e9).invoke("hi", timeout=1e-6, **beside)
    assert guarded.response_metadata["semgrad_decision"]["decision"] == "abstain"


def test_settings_are_configured_one_by_one_at_run_time():
    chat = plain_chat(temperature=0, max_tokens=4).configurable_fields(
        max_tokens=ConfigurableField(id="most"), temperature=ConfigurableField(id="heat")
    )
    assert tokens(chat.invoke("hi", {"configurable": {"most": 7}})) == 7
    assert len({chat.invoke("hi", {"configurable": {"heat": 1.5}}).content for _ in range(6)}) > 1
    with pytest.raises(ConfigurationError, match="max_tokens=0"):
        chat.invoke("hi", {"configurable": {"most": 0}})
    from_pipeline = ChatSemGrad.from_llm(a_pipeline(max_new_tokens=3, do_sample=False)).configurable_fields(
        max_tokens=ConfigurableField(id="most"), generation=ConfigurableField(id="generation")
    )
    assert tokens(from_pipeline.invoke("hi", {"configurable": {"most": 7}})) == 7
    assert tokens(from_pipeline.invoke("hi", {"configurable": {"generation": {"max_new_tokens": 8}}})) == 8


def test_what_is_traced_is_what_is_in_force():
    chat = plain_chat(max_tokens=5, temperature=0.5, stop="x")
    params = chat._get_ls_params()
    assert (params["ls_max_tokens"], params["ls_temperature"], params["ls_stop"]) == (5, 0.5, ["x"])
    params = chat._get_ls_params(stop=["y"], max_new_tokens=6, temperature=0)
    assert (params["ls_max_tokens"], params["ls_temperature"], params["ls_stop"]) == (6, 0.0, ["y"])
    assert "ls_temperature" not in plain_chat()._get_ls_params()


def test_the_same_settings_share_a_cache_entry_however_they_were_made():
    keys = {
        chat._get_llm_string(stop=None)
        for chat in (
            plain_chat(max_tokens=6, temperature=0.5),
            plain_chat(generation={"max_new_tokens": 6, "temperature": 0.5}),
            ChatSemGrad.from_llm(plain_chat(max_tokens=9, do_sample=False), max_tokens=6, temperature=0.5),
        )
    }
    assert len(keys) == 1


# Those of a model that the user has already.


def a_pipeline(**settings):
    return pipeline("text-generation", model=tiny_model(), tokenizer=tiny_tokenizer(), **settings)


def of_chat(settings, **of_pipeline):
    llm = HuggingFacePipeline(pipeline=a_pipeline(**of_pipeline))
    return ChatHuggingFace(llm=llm, tokenizer=llm.pipeline.tokenizer, model_id="tiny", **settings)


def in_force(source, **settings):
    return chat_model(source, **settings)._layer()


def test_a_pipeline_s_settings_are_taken_over():
    made = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.4, "top_p": 0.8}
    expected = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.4, "top_p": 0.8}
    assert in_force(a_pipeline(**made)) == expected
    assert in_force(HuggingFacePipeline(pipeline=a_pipeline(**made))) == expected
    later = HuggingFacePipeline(pipeline=a_pipeline(), pipeline_kwargs={**made, "return_full_text": False})
    assert in_force(later) == expected
    assert tokens(ChatSemGrad.from_llm(a_pipeline(max_new_tokens=3, do_sample=False)).invoke("hi")) == 3
    assert in_force(a_pipeline(max_new_tokens=3, do_sample=False)) == {"max_new_tokens": 3, "do_sample": False}
    length = ChatSemGrad.from_llm(a_pipeline(max_length=30, do_sample=False))
    assert length.invoke("hi").usage_metadata["total_tokens"] == 30


def test_a_chat_model_s_settings_are_taken_over():
    said = {"temperature": 0.3, "max_tokens": 4, "top_p": 0.7, "seed": 5, "stop_sequences": ["x"]}
    expected = {"temperature": 0.3, "max_new_tokens": 4, "top_p": 0.7, "seed": 5, "stop": ["x"]}
    assert in_force(of_chat(said)) == expected
    assert in_force(of_chat({"max_tokens": 4}, max_new_tokens=9, do_sample=False)) == {
        "max_new_tokens": 4,
        "do_sample": False,
    }
    assert in_force(of_chat({"temperature": 0.0}, max_new_tokens=9)) == {"max_new_tokens": 9, "temperature": 0.0}
    for setting in ({"n": 2}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"logit_bias": {5: 1}}):
        with pytest.raises(ConfigurationError, match="cannot be followed here"):
            ChatSemGrad.from_llm(of_chat(setting))
    assert (
        in_force(of_chat({"n": 1, "presence_penalty": 0.0}, max_new_tokens=9, temperature=0.5))["max_new_tokens"] == 9
    )


def test_what_is_said_beside_a_source_stands_over_its_settings():
    made = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.4}
    assert in_force(a_pipeline(**made), max_tokens=5) == {"do_sample": True, "temperature": 0.4, "max_new_tokens": 5}
    assert in_force(a_pipeline(**made), temperature=0) == {"max_new_tokens": 3, "temperature": 0.0}
    assert in_force(a_pipeline(**made), generation={"do_sample": False}) == {"max_new_tokens": 3, "do_sample": False}
    assert in_force(a_pipeline(**made), max_length=50) == {"do_sample": True, "temperature": 0.4, "max_length": 50}
    assert in_force(plain_chat(generation=GREEDY), max_tokens=5, temperature=0.5) == {
        "max_new_tokens": 5,
        "temperature": 0.5,
    }


@pytest.mark.parametrize(
    ("base", "later", "expected"),
    [
        ({"do_sample": False}, {"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": False}, {"top_p": 0.7}, {"top_p": 0.7}),
        ({"do_sample": False}, {"seed": 3}, {"do_sample": False, "seed": 3}),
        ({"temperature": 0.7, "top_p": 0.5}, {"do_sample": False}, {"do_sample": False}),
        ({"temperature": 0.7, "top_p": 0.5}, {"temperature": 0.0}, {"top_p": 0.5, "temperature": 0.0}),
        ({"temperature": 0.0}, {"do_sample": True}, {"do_sample": True}),
        ({"temperature": 0.0}, {"top_p": 0.5}, {"temperature": 0.0, "top_p": 0.5}),
        ({"max_length": 40}, {"max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_new_tokens": 3}, {"max_length": 40}, {"max_length": 40}),
        ({"stop": ["a"]}, {"stop": []}, {"stop": []}),
        ({"stop": ["a"]}, {}, {"stop": ["a"]}),
    ],
)
def test_a_later_layer_replaces_what_it_speaks_of(base, later, expected):
    assert over(base, later) == expected
    assert layer(expected, owner=ChatSemGrad) == expected


def test_a_setting_of_none_is_none():
    silent = plain_chat(max_tokens=3, temperature=None, top_p=None, generation={"do_sample": None, "max_length": None})
    assert silent._layer() == {"max_new_tokens": 3}
    assert tokens(silent.invoke("hi", max_tokens=None, temperature=None)) == 3


def test_whatever_goes_wrong_with_settings_is_an_error_of_ours():
    for build in (
        lambda: plain_chat(spam=1),
        lambda: plain_chat().invoke("hi", spam=1),
        lambda: SemGradGuard(plain_chat(), score_threshold=1.0, spam=1),
        lambda: ChatSemGrad.from_pretrained("nowhere", spam=1),
    ):
        with pytest.raises(SemGradError):
            build()
    with pytest.raises(UnsupportedModelError):
        ChatSemGrad.from_llm(3)
