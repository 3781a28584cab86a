"""A chat model that answers from a script, and a profile whose confidence is known: 1 / (1 + semgrad)."""

from uuid import uuid4

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from models import tiny_model, tiny_tokenizer
from pydantic import Field, PrivateAttr

from semgrad_guard import ChatSemGrad, Decision, Profile, ReviewRequest, Score, Verdict
from semgrad_guard.calibration.profile import Binding, Section
from semgrad_guard.langchain.streaming import last_chunk
from semgrad_guard.model.fingerprint import fingerprint, template_fingerprint
from semgrad_guard.scoring.settings import ScoringSettings
from semgrad_guard.serving.work import Judgement


def score(semgrad=1.0, **fields):
    values = {
        "semgrad": semgrad,
        "paragrad": 1.0,
        "exgrad": 1.0,
        "hybridgrad": 1.0,
        "nll": 1.0,
        "mean_nll": 1.0,
        "mean_entropy": 1.0,
        "max_entropy": 1.0,
        "first_entropy": 1.0,
        "max_nll": 1.0,
        "length": 1,
        "path": "cache",
        "layer_indices": (2, 3),
        "layers": (semgrad, semgrad),
    }
    return Score(**{**values, **fields})


def score_of(confidence):
    """The score that the profile of this module gives a confidence."""
    return score((1 - confidence) / confidence)


def failure_of(text):
    """Give the failure of a scripted answer as its message has it, of a text or a dict; none for an empty text."""
    return {"kind": "scoring_failed", "text": text} if isinstance(text, str) and text else text or None


def record(message):
    """Give a guard's decision as its message has it, with the fields of its verdict beside its own."""
    decision = message.response_metadata["semgrad_decision"]
    return decision["verdict"] | decision


def decided(decision="pass", confidence=0.9, *, scores=None, **fields):
    """Give what a guard could have decided."""
    passed = decision == "pass"
    cause = None if passed else "low_confidence"
    verdict = Verdict(
        passed=passed, cause=cause, confidence=confidence, scores=scores, threshold=0.8, method="fused", reason="why"
    )
    about = {"answered": passed, "cause": cause, "reason": "why", "verdict": verdict, "steps": ()}
    return Decision(decision=decision, **about | fields)


def judgement_of(score, confidence=0.9, decision="pass"):
    """Give a service's record of an answer that passed."""
    verdict = Verdict(
        passed=True, confidence=confidence, calibrated=True, scores=None, threshold=0.8, method="fused", reason="sure"
    )
    about = {"answered": True, "cause": None, "reason": "sure", "verdict": verdict, "steps": ()}
    return Judgement(decision=decision, score=score, version="0", **about)


def request_of(
    question="?", draft="", confidence=None, scores=None, reason="", policy="", threshold=None, cause=None, **fields
):
    """Give what a human is asked about a draft that did not pass."""
    verdict = Verdict(
        passed=False,
        cause=cause,
        confidence=confidence,
        scores=scores,
        threshold=threshold,
        method="fused",
        reason=reason,
        policy=policy,
    )
    return ReviewRequest(question=question, draft=draft, verdict=verdict, **fields)


def calling(*calls, text="", failure=""):
    """Give a message with tool calls, each (name, arguments, confidence); their arguments are half as sure."""
    ids = [f"call-{uuid4()}" for _ in calls]
    record = {
        id_: {
            "name": name,
            "scores": score_of(confidence).model_dump(mode="json"),
            "arguments": {key: score_of(confidence / 2).model_dump(mode="json") for key in arguments},
        }
        for id_, (name, arguments, confidence) in zip(ids, calls, strict=True)
    }
    return AIMessage(
        text,
        tool_calls=[
            {"name": name, "args": arguments, "id": id_} for id_, (name, arguments, _) in zip(ids, calls, strict=True)
        ],
        response_metadata={
            "semgrad": {
                "scores": score_of(0.9).model_dump(mode="json"),
                "failure": failure_of(failure),
                "tool_calls": record,
            }
        },
    )


class Scripted(ChatSemGrad):
    """Gives the scripted answers in turn: (text, score or None, failure), a message, or an exception to raise."""

    script: list = Field(default_factory=list, repr=False)  # traces hold the repr of what ran
    _asked: list = PrivateAttr(default_factory=list)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self._asked.append(messages)
        answer = self.script[min(len(self._asked), len(self.script)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, AIMessage):
            return ChatResult(generations=[ChatGeneration(message=answer)])
        text, given, failure = answer
        scores = None if given is None else given.model_dump(mode="json")
        record = {"scores": scores, "failure": failure_of(failure), "tool_calls": {}}
        message = AIMessage(text, response_metadata={"semgrad": record})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return self._generate(messages, stop, run_manager, **kwargs)

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        message = self._generate(messages, stop, run_manager, **kwargs).generations[0].message
        if message.content:
            yield ChatGenerationChunk(message=AIMessageChunk(content=message.content))
        yield ChatGenerationChunk(message=last_chunk(message, message.content))


MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()


def scripted(*answers):
    """Build the chat model; an answer is a confidence, or what `Scripted` takes."""
    script = [("draft", score_of(answer), "") if isinstance(answer, float) else answer for answer in answers]
    settings = {"token_position": 3, "layers": (2, 3), "reduction": "sum", "norm": "l1"}
    return Scripted(model=MODEL, tokenizer=TOKENIZER, script=script, **settings)


def profile(threshold=0.8, grounded=None):
    """Build a profile for the scripted model: confidence = 1 / (1 + semgrad)."""
    section = Section(
        features=("semgrad",),
        lowest=(-50.0,),
        highest=(50.0,),
        center=(0.0,),
        scale=(1.0,),
        coefficients=(-1.0,),
        intercept=0.0,
        questions=100,
        threshold=threshold,
        threshold_rule="by hand",
    )
    bound = Binding(
        model="scripted",
        fingerprint=fingerprint(MODEL),
        template=template_fingerprint(TOKENIZER),
        scoring=ScoringSettings(token_position=3, layers=(2, 3)),
    )
    return Profile(
        package="0",
        method="fused",
        bound_to=bound,
        answer=section,
        grounded=grounded,
        label_source="none",
        seed=0,
    )
