"""`ChatSemGrad` beside the answer: caches, configuration at run time, serialisation, log-probabilities, metadata."""

import itertools
import json
from collections import Counter

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd, dumps, loads
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField
from models import CHATML, tiny_model, tiny_tokenizer

from semgrad_guard import Budget, ChatSemGrad, ConfigurationError, SemGradScorer
from semgrad_guard.langchain.logprobs import as_openai
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.records import TokenLogProb

GREEDY = {"max_new_tokens": 6, "do_sample": False}


def chat_of(*, seed=0, template=CHATML, generation=GREEDY, **settings):
    return ChatSemGrad.of((tiny_model(seed=seed), tiny_tokenizer(template)), generation=generation, **settings)


def stated(logits_of):
    """Change a model's own generation configuration."""
    chat = chat_of()
    chat.model.generation_config.update(**logits_of)
    return chat


# Chat models that may answer, or score, otherwise than `chat_of()`.
OTHERS = {
    "weights": lambda: chat_of(seed=1),
    "template": lambda: chat_of(template=CHATML.replace("\n", " ")),
    "precision": lambda: ChatSemGrad.of((tiny_model().double(), tiny_tokenizer()), generation=GREEDY),
    "generation": lambda: chat_of(generation=GREEDY | {"max_new_tokens": 7}),
    "own generation": lambda: stated({"repetition_penalty": 2.0}),
    "stop": lambda: chat_of(stop=["a"]),
    "span": lambda: chat_of(span="all"),
    "token": lambda: chat_of(token_position=2),
    "reduction": lambda: chat_of(reduction="sum"),
    "norm": lambda: chat_of(norm="l2"),
    "tau": lambda: chat_of(tau=2.0),
    "beta": lambda: chat_of(beta=0.5),
    "unweighted": lambda: chat_of(unweighted=True),
    "later": lambda: chat_of(later=True),
    "budget": lambda: chat_of(budget=Budget(tokens=1)),
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
    chat = chat_of()
    chat.model.config.name_or_path = "some/model"
    chat.model.config._commit_hash = "abc"
    message = chat.invoke("q?")
    metadata = {name: message.response_metadata[name] for name in ("model_name", "revision", "finish_reason")}
    assert metadata == {"model_name": "some/model", "revision": "abc", "finish_reason": "length"}
    prompt = len(encode_chat(chat.tokenizer, [{"role": "user", "content": "q?"}]))
    assert message.usage_metadata["input_tokens"] == prompt
    assert message.usage_metadata["total_tokens"] == prompt + 6
    assert chat._get_ls_params()["ls_max_tokens"] == 6
