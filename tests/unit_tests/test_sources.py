"""Where a model may come from, and what is refused."""

import shutil

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListChatModel
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint, HuggingFacePipeline
from models import INST, tiny_model, tiny_tokenizer
from scripted import record as record_of
from transformers import GenerationConfig, pipeline

from semgrad_guard import ChatSemGrad, SemGradGuard, UnsupportedModelError
from semgrad_guard.langchain.chat_model import chat_model
from semgrad_guard.model.load import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def hf_pipeline(folder, **settings):
    model, tokenizer = load_model(folder)
    return HuggingFacePipeline(pipeline=pipeline("text-generation", model=model, tokenizer=tokenizer, **settings))


def test_a_folder_and_a_pair_give_the_same(folder):
    model, tokenizer = load_model(folder)
    messages = [
        chat_model(source, generation={"max_new_tokens": 6}).invoke("hi") for source in (folder, (model, tokenizer))
    ]
    assert messages[0].content == messages[1].content
    assert messages[0].response_metadata["semgrad"] == messages[1].response_metadata["semgrad"]


def test_a_pipeline_s_generation_settings_are_honoured(folder):
    llm = hf_pipeline(folder, max_new_tokens=3, do_sample=False)
    chat = ChatHuggingFace(llm=llm, tokenizer=llm.pipeline.tokenizer)
    for source in (llm, chat):
        message = chat_model(source).invoke("hi")
        assert message.usage_metadata["output_tokens"] == 3
        assert message.response_metadata["finish_reason"] == "length"
    assert ChatSemGrad.from_llm(llm).invoke("hi", max_new_tokens=5).usage_metadata["output_tokens"] == 5
    config = hf_pipeline(folder, generation_config=GenerationConfig(max_new_tokens=4))
    assert ChatSemGrad.from_llm(config).invoke("hi").usage_metadata["output_tokens"] == 4


def test_a_chat_answers_as_the_model_does(folder):
    model, tokenizer = load_model(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)[0, ids.shape[1] :]
    message = ChatSemGrad.from_model(model, tokenizer).invoke("hi", max_new_tokens=6)
    assert message.content == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert message.usage_metadata["input_tokens"] == ids.shape[1]


def test_a_template_without_a_generation_prompt_works_with_messages():
    chat = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(INST), generation={"max_new_tokens": 4})
    assert chat.invoke("hi").response_metadata["semgrad"]["scores"] is not None
    assert chat.scorer.token_position == 2


def test_two_models_never_share_a_cached_answer():
    cache = InMemoryCache()
    chats = [
        ChatSemGrad.from_model(tiny_model(seed=seed), tiny_tokenizer(), generation={"max_new_tokens": 6}, cache=cache)
        for seed in (0, 1)
    ]
    first, second = (chat.invoke("hi") for chat in chats)
    assert first.content != second.content
    again = chats[0].invoke("hi")
    assert (again.content, again.response_metadata) == (first.content, first.response_metadata)
    assert len(cache._cache) == 2


def test_stop_strings_end_the_answer():
    chat = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(), generation={"max_new_tokens": 12})
    text = chat.invoke("hello").content
    assert len(text) > 3
    stopped = chat.invoke("hello", stop=[text[2]])
    assert stopped.content == text.split(text[2])[0].strip()
    assert stopped.response_metadata["finish_reason"] == "stop"


def test_an_answer_that_a_stop_string_leaves_empty_is_not_trusted():
    chat = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(), generation={"max_new_tokens": 12})
    first = chat.invoke("hello").content[0]
    guard = SemGradGuard(chat, score_threshold=1e9)
    record = record_of(guard.invoke("hello", stop=[first]))
    assert (record["decision"], record["reason"]) == ("abstain", "the response is empty")


def test_an_endpoint_is_refused_with_the_reason():
    endpoint = HuggingFaceEndpoint.model_construct(model="x", repo_id="x")
    with pytest.raises(UnsupportedModelError, match="no gradients come over HTTP"):
        SemGradGuard(endpoint, score_threshold=1.0)
    remote = ChatHuggingFace.model_construct(llm=endpoint)
    with pytest.raises(UnsupportedModelError, match="no gradients come over HTTP"):
        SemGradGuard(remote, score_threshold=1.0)
    with pytest.raises(UnsupportedModelError, match="FakeListChatModel answers from somewhere else"):
        SemGradGuard(FakeListChatModel(responses=["x"]), score_threshold=1.0)
    with pytest.raises(UnsupportedModelError, match="int gives no access"):
        SemGradGuard(7, score_threshold=1.0)


def test_weights_that_are_no_safetensors_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Cannot load"):
        load_model(tmp_path)
