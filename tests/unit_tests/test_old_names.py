"""Names that a release before had: each still works, once more, and warns of the new one."""

import pytest
from langchain_core.runnables import RunnableLambda
from models import tiny_model, tiny_tokenizer
from scripted import profile, scripted

import semgrad_guard
from semgrad_guard import (
    AtMost,
    ChatSemGrad,
    ConfigurationError,
    Escalate,
    HumanReview,
    LLMJudge,
    RateLimit,
    Retrieve,
    SemGradGuard,
    TokenUncertainty,
    judged_by,
)

_LAST = "the old name goes with the next release"
PAIR = tiny_model(), tiny_tokenizer()


class Shelf:
    """A queue that nobody reads."""

    def submit(self, request):
        return "1"

    def wait(self, id_, timeout):
        return None

    async def await_(self, id_, timeout):
        return None


def guard(**settings):
    return SemGradGuard(scripted(0.9), profile=profile(), **settings)


OLD = {
    "AtMost": (lambda: AtMost(2, per=60), lambda made: isinstance(made, RateLimit) and made.calls == 2),
    "judged_by": (lambda: judged_by(RunnableLambda(str)), lambda made: isinstance(made, LLMJudge)),
    "ChatSemGrad.of": (lambda: ChatSemGrad.of(PAIR, max_tokens=3), lambda made: made.max_tokens == 3),
    "ChatSemGrad.of with a tokenizer": (lambda: ChatSemGrad.of(*PAIR, seed=7), lambda made: made.seed == 7),
    "context=none": (lambda: guard(context="none"), lambda made: made.passages == "optional"),
    "context=given": (lambda: guard(context="given"), lambda made: made.passages == "in_prompt"),
    "context=retrieved": (lambda: guard(context="retrieved"), lambda made: made.passages == "required"),
    "streaming=verdict": (lambda: guard(streaming="verdict"), lambda made: made.stream_drafts is True),
    "streaming=buffered": (lambda: guard(streaming="buffered"), lambda made: made.stream_drafts is False),
    "Escalate": (
        lambda: Escalate(other=print, allow=bool, timeout=3),
        lambda made: made.to is not None and made.budget is bool and made.timeout_seconds == 3,
    ),
    "Retrieve": (lambda: Retrieve(print, timeout=3), lambda made: made.timeout_seconds == 3),
    "HumanReview": (lambda: HumanReview(print, timeout=3), lambda made: made.timeout_seconds == 3),
    "HumanReview with a queue": (
        lambda: HumanReview(queue=Shelf(), wait=3, pending="Later."),
        lambda made: (made.wait_seconds, made.pending_message) == (3, "Later."),
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_works_and_warns_where_it_is_written(name):
    build, as_before = OLD[name]
    with pytest.warns(DeprecationWarning, match=_LAST) as warned:
        made = build()
    assert as_before(made)
    assert {warning.filename for warning in warned} == {__file__}


def test_an_old_value_that_was_wrong_is_refused_by_the_new_name():
    with pytest.warns(DeprecationWarning, match=_LAST), pytest.raises(ConfigurationError, match=r"passages='x'"):
        guard(context="x")
    with pytest.warns(DeprecationWarning, match=_LAST), pytest.raises(ConfigurationError, match=r"stream_drafts=\[\]"):
        guard(streaming=[])


def test_calibrate_is_calibrated(monkeypatch):
    calls = []
    monkeypatch.setattr(
        SemGradGuard, "calibrated", lambda self, *examples, **settings: calls.append((examples, settings))
    )
    with pytest.warns(DeprecationWarning, match=r"SemGradGuard\.calibrate is now SemGradGuard\.calibrated"):
        guard().calibrate([1], risk=0.2)
    assert calls == [(([1],), {"risk": 0.2})]


def test_the_shares_of_tokens_go_by_their_former_name():
    with pytest.warns(DeprecationWarning, match=_LAST):
        assert semgrad_guard.TokenDoubt is TokenUncertainty
