"""The service as its clients see it: openai's and langchain-openai's, over a socket, with the embedded model."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from serving import served
from transformers import StoppingCriteria, StoppingCriteriaList

from semgrad_guard import SemGradScorer
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.review import ReviewQueue
from semgrad_guard.serving.server import Setup
from semgrad_guard.serving.service import Terms
from semgrad_guard.serving.work import ChatJob, Limits, Policy, Sampling
from semgrad_guard.web.keys import ApiKeys
from tools.embedded.questions import questions

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

KEY = "0123456789abcdef-first"
KNOWN, INVENTED = "What is the capital of France?", "What is the capital of Zubrovia?"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    queue = f"sqlite:///{tmp_path_factory.mktemp('reviews')}/reviews.db"
    with served(Setup(reviews=queue), keys=ApiKeys([KEY])) as (engine, url):
        yield engine, url, queue


@pytest.fixture(scope="module")
def client(service):
    with openai.OpenAI(base_url=f"{service[1]}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def ask(client, question, **fields):
    return client.chat.completions.create(model="demo", messages=[{"role": "user", "content": question}], **fields)


def langchain(service, **settings):
    return ChatOpenAI(model="demo", base_url=f"{service[1]}/v1", api_key=KEY, max_retries=0, **settings)


def test_openai_s_client_reads_answers_and_how_sure_they_are(client):
    answer = ask(client, KNOWN)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason, answer.model) == ("Paris", "stop", "demo")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    record = choice.model_extra["semgrad"]
    assert record == choice.logprobs.model_extra["semgrad"]
    assert record["decision"] == "pass"
    verdict = record["verdict"]
    assert verdict["confidence"] >= verdict["threshold"]
    assert verdict["guarantee"]["risk"] == 0.05
    unsure = ask(client, INVENTED).choices[0]
    assert unsure.model_extra["semgrad"]["decision"] == "abstain"
    assert "Zubrovia" not in unsure.message.content


def test_policies_go_through_extra_body(client, service):
    def asked(**options):
        return ask(client, INVENTED, extra_body={"semgrad": options}).choices[0]

    assert asked(message="No idea.").message.content == "No idea."
    assert asked(policy="annotate").model_extra["semgrad"]["decision"] == "annotate"
    assert asked(threshold=0.0).model_extra["semgrad"]["decision"] == "pass"
    waiting = asked(policy="review").model_extra["semgrad"]
    queue = ReviewQueue(service[2])
    assert queue.get(waiting["review_id"]).request.question == INVENTED
    queue.close()


def test_openai_s_client_streams(client):
    chunks = list(ask(client, KNOWN, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Paris"
    finish = next(chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
    assert finish.model_extra["semgrad"] == finish.logprobs.model_extra["semgrad"]
    assert chunks[-1].usage.completion_tokens == 2
    verdict = {"semgrad": {"stream": "verdict"}}
    pieces = list(ask(client, "Tell me a joke.", stream=True, extra_body=verdict))
    texts = [chunk.choices[0].delta.content for chunk in pieces if chunk.choices[0].delta.content]
    assert len(texts) > 3
    assert pieces[-1].choices[0].model_extra["semgrad"]["verdict"]["confidence"] is not None


def test_openai_s_client_makes_a_round_trip_with_a_tool(client):
    question = {"role": "user", "content": "What is the weather in Zubrovia?"}
    first = client.chat.completions.create(model="demo", messages=[question], tools=[TOOL]).choices[0]
    (call,) = first.message.tool_calls
    assert (first.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments) == {"place": "Zubrovia"}
    sure = first.model_extra["semgrad"]["tool_calls"][call.id]
    assert sure["name"] == "get_weather"
    assert 0 <= sure["arguments"]["place"] <= 1
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "sunny"}'}
    second = client.chat.completions.create(
        model="demo",
        messages=[question, first.message, result],
        tools=[TOOL],
        extra_body={"semgrad": {"policy": "annotate"}},
    ).choices[0]
    assert second.message.content
    forced = {"type": "function", "function": {"name": "get_weather"}}
    third = ask(client, KNOWN, tools=[TOOL], tool_choice=forced, extra_body={"semgrad": {"policy": "annotate"}})
    assert third.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_log_probabilities(client):
    (choice,) = ask(client, KNOWN, logprobs=True, top_logprobs=2).choices
    assert [token.token for token in choice.logprobs.content] == [" Paris", "<|im_end|>"]
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    assert choice.logprobs.model_extra["semgrad"]["decision"] == "pass"
    withheld = ask(client, INVENTED, logprobs=True).choices[0]
    assert withheld.logprobs.content is None  # they would tell the draft


def test_seeds_and_several_choices(client):
    def drawn(**fields):
        extra = {"semgrad": {"policy": "annotate"}}
        answer = ask(client, "Tell me about something.", temperature=2, max_tokens=12, extra_body=extra, **fields)
        return [choice.message.content for choice in answer.choices]

    assert drawn(seed=7, n=3) == drawn(seed=7, n=3)
    assert len(set(drawn(seed=7, n=3))) > 1
    assert drawn(seed=7) != drawn(seed=8)


def test_stops_and_lengths(client):
    annotate = {"semgrad": {"policy": "annotate"}}
    whole = ask(client, "Tell me a joke.", extra_body=annotate).choices[0].message.content
    word = whole.split()[3]
    cut = ask(client, "Tell me a joke.", stop=[word], extra_body=annotate).choices[0]
    assert cut.message.content == whole.split(word)[0].strip()
    short = ask(client, "Tell me a joke.", max_completion_tokens=2, extra_body=annotate)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


def test_failures_are_openai_s_exceptions(client, service):
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        ask(client, KNOWN, presence_penalty=1.0)
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "long " * 2000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="other"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": KNOWN}])
    with pytest.raises(openai.InternalServerError) as late:
        ask(client, KNOWN, extra_body={"semgrad": {"timeout": 1e-4}})
    assert late.value.status_code == 504
    with pytest.raises(openai.APIStatusError) as large:
        ask(client, "x" * 1_100_000)
    assert large.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="wrong"), KNOWN)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").model_extra["semgrad"]["calibrated"] is True


def test_langchain_s_client_keeps_the_record(service):
    model = langchain(service)
    message = model.invoke(KNOWN)
    record = message.response_metadata["logprobs"]["semgrad"]
    assert (message.content, record["decision"]) == ("Paris", "pass")
    whole = None
    for chunk in model.stream(KNOWN):
        whole = chunk if whole is None else whole + chunk
    assert (whole.content, whole.response_metadata["logprobs"]["semgrad"]) == ("Paris", record)
    unsure = model.bind(extra_body={"semgrad": {"message": "No idea."}}).invoke(INVENTED)
    assert unsure.content == "No idea."


def test_langchain_s_tools_and_structured_output(service):
    class GetWeather(BaseModel):
        """Get the weather at a place."""

        place: str

    annotated = langchain(service, extra_body={"semgrad": {"policy": "annotate"}})
    message = annotated.bind_tools([GetWeather], tool_choice="GetWeather").invoke("What is the weather in Zubrovia?")
    assert message.tool_calls[0]["args"]["place"]
    structured = annotated.with_structured_output(GetWeather, method="function_calling")
    assert structured.invoke("What is the weather in Zubrovia?") == GetWeather(place="Zubrovia")


def score(client, **fields):
    return client.post("/score", body={"model": "demo", **fields}, cast_to=object)


def test_answers_from_elsewhere_are_scored_as_the_guard_would(client):
    tokenizer = embedded_model()[1]
    question = [{"role": "user", "content": KNOWN}]
    prompt = encode_chat(tokenizer, question)
    response = [*tokenizer(" Paris", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    scorer = SemGradScorer(*embedded_model(), scoring=embedded_profile().bound_to.scoring)
    (expected,) = scorer.score_ids([prompt], [response])
    for given in (
        {"messages": question, "response": "Paris"},
        {"prompt": tokenizer.decode(prompt), "response": " Paris"},
        {"prompt_token_ids": prompt, "response_token_ids": response},
    ):
        found = score(client, **given)
        assert found["semgrad"]["verdict"]["scores"]["semgrad"] == pytest.approx(expected.semgrad, rel=1e-4)
        assert found["semgrad"]["decision"] == "pass"
    assert score(client, **given, semgrad={"threshold": 1.0})["semgrad"]["decision"] == "abstain"


def test_an_answer_that_the_model_would_not_give_is_never_sure(client):
    for wrong in ("London", "banana", "xyz qqq"):
        record = score(client, messages=[{"role": "user", "content": KNOWN}], response=wrong)["semgrad"]
        assert (record["cause"], record["verdict"]["confidence"]) == ("unlikely_text", 0.0)
        assert "hardly" in record["reason"]


def test_requests_that_come_together_share_a_pass(client, service):
    engine = service[0]
    alone = {question: ask(client, question).choices[0] for question in (KNOWN, INVENTED)}
    engine.rows.clear()
    questions = [KNOWN, INVENTED] * 16
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda question: ask(client, question).choices[0], questions))
    assert sum(engine.rows) == 32
    assert max(engine.rows) > 4
    for question, choice in zip(questions, found, strict=True):
        assert choice.message.content == alone[question].message.content
        ours, theirs = (one.model_extra["semgrad"]["verdict"]["confidence"] for one in (choice, alone[question]))
        assert ours == pytest.approx(theirs, abs=1e-3)


class Slow(StoppingCriteria):
    """Takes its time with every token."""

    def __call__(self, input_ids, scores, **kwargs):
        time.sleep(0.005)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_client_that_hangs_up_frees_the_model(service, monkeypatch):
    """A draft of 900 tokens would take five seconds; it ends when its client goes."""
    engine, url, _ = service
    talks_on = {
        "stopping_criteria": StoppingCriteriaList([Slow()]),
        "suppress_tokens": [embedded_model()[1].eos_token_id],
    }
    for name, value in talks_on.items():
        monkeypatch.setitem(engine._worker._guard.llm.generation, name, value)
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 900}
    verdict = {**asked, "stream": True, "semgrad": {"stream": "verdict"}}

    def freed():
        began = time.monotonic()
        while engine._running and time.monotonic() - began < 1:
            time.sleep(0.01)
        return not engine._running

    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=asked, timeout=0.3)
        assert freed()
        with client.stream("POST", "/v1/chat/completions", json=verdict) as streamed:
            lines = streamed.iter_lines()
            while "content" not in next(lines):
                pass
            assert engine._running
        assert freed()


def test_accepted_requests_are_answered_while_the_service_stops():
    limits = Limits(batch_size=2)
    answers = []
    with served(Setup(limits=limits), terms=Terms(grace=20)) as (engine, url):
        accepted, own = [], engine.answer

        def answer(job):
            accepted.append(job)
            return own(job)

        engine.answer = answer
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        asking = [
            threading.Thread(target=lambda: answers.append(ask(client, KNOWN).choices[0].message.content))
            for _ in range(12)
        ]
        for thread in asking:
            thread.start()
        while len(accepted) < 12:
            time.sleep(0.001)
    for thread in asking:
        thread.join()
    assert answers == ["Paris"] * 12
    assert asyncio.run(engine.ready()) is False


def test_answers_drawn_at_a_high_temperature_are_not_sure_because_the_question_is_easy():
    """Gradients tell whether the model knows the answer, not whether this is it."""
    asked = questions("known", "report")[:96]
    jobs = [ChatJob(messages=question.messages, sampling=Sampling(temperature=2, max_tokens=16)) for question in asked]
    torch.manual_seed(0)
    worker = Setup().worker()
    found = [answer for start in range(0, 96, 32) for answer in worker.run(jobs[start : start + 32])]
    passed = [(q, a) for q, a in zip(asked, found, strict=True) if a.judgement.decision == "pass"]
    wrong = [a.text for q, a in passed if a.text.casefold() not in {right.casefold() for right in q.answers}]
    assert len(passed) > 5
    assert len(wrong) <= 1
    assert sum("hardly" in answer.judgement.reason for answer in found) > 40


def test_passages_are_looked_up_before_the_policy_decides():
    worker = Setup(passages=("The light bulb was invented by Thomas Edison.",)).worker()
    question = {"role": "user", "content": "Who invented the light bulb?"}
    for policy in ("abstain", "annotate"):
        (answer,) = worker.run([ChatJob(messages=(question,), policy=Policy(name=policy))])
        assert (answer.text, answer.judgement.decision) == ("Thomas Edison", "retrieve")
        assert answer.judgement.sources[0].metadata["used"] is True
