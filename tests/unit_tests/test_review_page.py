"""The review page without a browser: who gets in, what is shown, what each form does, and what the numbers are."""

import html
import logging
import re
import sqlite3
import sys
import time
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from clock import Clock
from markupsafe import escape
from scripted import request_of, score_of
from starlette.routing import Mount
from starlette.testclient import TestClient

from semgrad_guard import ConfigurationError, ReviewAnswer, ReviewConflictError, Source
from semgrad_guard.records import CallConfidence, TokenUncertainty
from semgrad_guard.review import ReviewQueue
from semgrad_guard.review.items import ReviewFilter, ReviewVerdict
from semgrad_guard.review.page import application, words
from semgrad_guard.review.page.sessions import Attempts
from semgrad_guard.review.page.statistics import bands, risk_coverage, shares, thinned

TOKEN = "a-token-of-some-length"
HOST = "http://127.0.0.1"
XSS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<style>*{display:none}</style>",
)


@pytest.fixture
def clock():
    return Clock(hour=12)


@pytest.fixture
def queue(tmp_path, clock):
    opened = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}", clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def app(queue):
    return application(queue, token=TOKEN, lease=60)


@pytest.fixture
def ann(app):
    return Visitor(app).log_in("ann")


class Tags(HTMLParser):
    """The tags of a page and their attributes, as a parser reads them."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs


class Visitor(TestClient):
    """A browser without JavaScript: follows redirects, and sends a page's token with its forms."""

    def __init__(self, app):
        super().__init__(app, base_url=HOST)

    def fill(self, path, **fields):
        return self.post(path, data={"form_token": self.form_token(), **fields})

    def form_token(self):
        page = self.get("/login").text  # the login, or the list for who is logged in
        return re.search(r'name="form_token" value="([^"]+)"', page)[1]

    def log_in(self, name, token=TOKEN):
        assert self.fill("/login", name=name, token=token).status_code == 200
        return self


def request(question="Where?", draft="draft", **fields):
    values = {"question": question, "draft": draft, "confidence": 0.3, "scores": score_of(0.3), "reason": "unsure"}
    return request_of(**values | fields)


def doubts(*pairs):
    return tuple(
        TokenUncertainty(token=place, text=text, log_prob=-0.5, entropy=1.5, share=share)
        for place, (text, share) in enumerate(pairs)
    )


CALL = {"call-1": CallConfidence(name="f", confidence=0.2, arguments={"x": 0.1, "y": None})}


# Who gets in


def test_who_knows_the_token_gets_in_by_name_and_out_again(app):
    visitor = Visitor(app)
    assert "Log in" in visitor.get("/reviews").text
    assert ">ann</span>" in visitor.log_in(" ann ").get("/reviews").text
    assert "You are logged out." in visitor.fill("/logout").text
    assert visitor.get("/reviews").url.path == "/login"


@pytest.mark.parametrize(
    ("name", "token", "status", "problem"),
    [
        ("ann", "", 401, "That is not the token"),
        ("ann", TOKEN + "x", 401, "That is not the token"),
        ("ann", "é\u2028" * 8, 401, "That is not the token"),
        (" ", TOKEN, 422, "Give a name"),
        ("n" * 201, TOKEN, 422, "Give a name"),
        ("a\u202enn", TOKEN, 422, "Give a name"),
    ],
)
def test_who_does_not_know_it_or_has_no_name_does_not_get_in(app, name, token, status, problem):
    visitor = Visitor(app)
    answer = visitor.fill("/login", name=name, token=token)
    assert (answer.status_code, problem in answer.text) == (status, True)
    assert visitor.get("/reviews").url.path == "/login"


def test_guessing_the_token_is_slowed_down(app):
    visitor = Visitor(app)
    statuses = [visitor.fill("/login", name="ann", token=f"guess {number}").status_code for number in range(10)]
    assert statuses == [401] * 10
    refused = visitor.fill("/login", name="ann", token=TOKEN)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")


def test_one_address_does_not_use_up_the_attempts_of_another():
    attempts = Attempts()
    assert [attempts.allow("1") for _ in range(11)] == [True] * 10 + [False]
    assert attempts.allow("2")
    for number in range(1000):
        attempts.allow(f"many {number}")
    assert len(attempts._known) == 1000


@pytest.mark.parametrize("token", ["", "short", "blank in the middle of it", "ümlaut-in-the-middle-of-it"])
def test_a_token_that_can_be_guessed_or_not_be_typed_is_refused(queue, token):
    with pytest.raises(ConfigurationError, match="review token cannot be used: expected at least 16"):
        application(queue, token=token)


def test_without_the_extra_the_error_names_it(queue, monkeypatch):
    for module in ("app", "access", "desk", "reviews", "statistics"):
        monkeypatch.delitem(sys.modules, f"semgrad_guard.review.page.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ConfigurationError, match=r"semgrad-guard\[review\]"):
        application(queue, token=TOKEN)


def test_a_lease_without_length_is_refused(queue):
    with pytest.raises(ConfigurationError, match="lease=0"):
        application(queue, token=TOKEN, lease=0)


def routes_of(app):
    """Dig out the routes of the FastAPI application under everything that shelters it."""
    while not hasattr(app, "routes"):
        app = getattr(app, "app", None) or app._app
    return app.routes


def test_nothing_but_the_login_and_static_files_is_open(app, queue):
    id_ = queue.submit(request("SECRET"))
    visitor, swept = Visitor(app), set()
    # newer versions of FastAPI nest included routers, so their own paths are listed besides
    paths = {route.path for route in routes_of(app) if not isinstance(route, Mount) and hasattr(route, "path")}
    paths |= {"/", "/reviews", "/reviews/next", "/reviews/{id_}", "/statistics", "/logout", "/nothing", "/docs"}
    paths |= {f"/reviews/{{id_}}/{what}" for what in ("claim", "renew", "release", "decision")}
    for path in paths - {"/login"}:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
            answer = visitor.request(method, path.replace("{id_}", id_), follow_redirects=False)
            assert "SECRET" not in answer.text
            expected = (303, "/login") if method in ("GET", "HEAD") else (401, None)
            assert (answer.status_code, answer.headers.get("location")) == expected, (method, path)
            swept.add((method, path))
    assert len(swept) >= 7 * 12
    assert visitor.get("/static/review.css").status_code == 200
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/"):
        assert "import" not in visitor.get(path).text
    assert queue.get(id_).status == "pending"


def test_who_followed_a_link_is_there_after_the_login(app, queue):
    id_ = queue.submit(request())
    visitor = Visitor(app)
    visitor.get(f"/reviews/{id_}")
    answer = visitor.fill("/login", name="ann", token=TOKEN)
    assert answer.url.path == f"/reviews/{id_}"


def test_nobody_is_sent_to_another_site_by_the_login(app):
    visitor = Visitor(app)
    visitor.get("//evil.example/reviews")
    assert visitor.fill("/login", name="ann", token=TOKEN).url.path == "/reviews"


def test_the_cookie_is_for_this_site_only_and_signed(app, queue, ann):
    visitor = Visitor(app)
    cookie = visitor.get("/login").headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "max-age=43200"))
    assert "secure" not in cookie
    secure = TestClient(application(queue, token=TOKEN, secure=True), base_url="https://127.0.0.1")
    assert "secure" in secure.get("/login").headers["set-cookie"].lower()
    forged = Visitor(app)
    value = ann.cookies["semgrad_guard_review"]
    forged.cookies.set("semgrad_guard_review", value[:-2] + ("aa" if value[-2:] != "aa" else "bb"))
    assert forged.get("/reviews").url.path == "/login"


def test_sessions_outlive_the_server_and_end_with_the_token(app, queue, ann):
    again = Visitor(application(queue, token=TOKEN))
    again.cookies = ann.cookies
    assert again.get("/reviews").url.path == "/reviews"
    other = Visitor(application(queue, token="another-token-altogether"))
    other.cookies = ann.cookies
    assert other.get("/reviews").url.path == "/login"


def test_a_copy_of_the_cookie_is_worth_nothing_after_logging_out(app, ann):
    thief = Visitor(app)
    thief.cookies = {"semgrad_guard_review": ann.cookies["semgrad_guard_review"]}
    assert thief.get("/reviews").url.path == "/reviews"
    again = Visitor(app).log_in("ann")
    ann.fill("/logout")
    thief.cookies = {"semgrad_guard_review": dict(thief.cookies)["semgrad_guard_review"]}
    assert thief.get("/reviews").url.path == "/login"
    assert again.get("/reviews").url.path == "/reviews"  # it is a session of its own


def test_a_session_ends_twelve_hours_after_the_login_however_busy_it_is(ann, monkeypatch):
    began = time.time()
    for hours, path in ((5, "/reviews"), (11, "/reviews"), (12.1, "/login")):
        monkeypatch.setattr("time.time", lambda hours=hours: began + 3600 * hours)
        assert ann.get("/reviews").url.path == path


def test_what_a_host_is_called_lets_nobody_in(queue):
    queue.submit(request("SECRET"))
    open_to_all = application(queue, token=TOKEN, hosts=["*"])
    for host in ("127.0.0.1/static/?", "127.0.0.1:/static/x?", "a/login?", "a/static/#"):
        answer = TestClient(open_to_all, base_url=HOST).get("/reviews", headers={"host": host}, follow_redirects=False)
        assert (answer.status_code, "SECRET" in answer.text) == (303, False)


def test_forms_of_another_kind_are_not_read(ann):
    for sent in ({"files": {"text": b"x"}}, {"json": {"decision": "approve"}}, {"content": b"a=b"}):
        answer = ann.post("/reviews/next", **sent)
        assert (answer.status_code, "URL-encoded" in answer.text) == (415, True)


def test_what_nobody_has_foreseen_tells_nothing(app, queue, ann, monkeypatch, caplog):
    def broken(*given, **settings):
        raise KeyError("can" + "ary")  # lines of code are logged, what they make is not

    monkeypatch.setattr(ReviewQueue, "count", broken)
    with caplog.at_level(logging.DEBUG):
        answer = ann.get("/reviews?q=canary")
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith("semgrad_guard"))
    assert (answer.status_code, "canary" in answer.text, "canary" in logged) == (500, False, False)
    assert "KeyError" in logged


def test_a_form_without_the_session_s_token_is_refused(app, queue, ann):
    id_ = queue.submit(request())
    other = Visitor(app).log_in("bob").form_token()
    for fields in ({}, {"form_token": ""}, {"form_token": "é"}, {"form_token": other}):
        answer = ann.post(f"/reviews/{id_}/decision", data={"decision": "approve", **fields})
        assert (answer.status_code, "not one of this session" in answer.text) == (403, True)
    before = Visitor(app)
    old = before.form_token()
    before.log_in("ann")
    assert before.post("/reviews/next", data={"form_token": old}).status_code == 403  # the login made a new one
    assert queue.get(id_).status == "pending"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": HOST, "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_a_form_sent_from_elsewhere_is_refused(queue, ann, headers, status):
    queue.submit(request())
    answer = ann.post("/reviews/next", data={"form_token": ann.form_token()}, headers=headers)
    assert answer.status_code == status
    assert queue.items()[0].status == ("claimed" if status == 200 else "pending")


def test_other_hosts_are_refused_and_headers_are_careful(app, queue, ann):
    assert ann.get("/reviews", headers={"host": "evil.example"}).status_code == 400
    assert TestClient(application(queue, token=TOKEN, hosts=["*"]), base_url="http://any").get("/").status_code == 200
    headers = ann.get("/reviews").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"


# What is shown


def test_an_item_shows_all_there_is_about_it(queue, ann):
    id_ = queue.submit(
        request(
            "Who painted it?",
            "Rembrandt did",
            confidence=0.1234,
            threshold=0.9,
            policy="confidence of at least 0.900; nothing is promised",
            reason="confidence 0.123 is below the threshold 0.900",
            tokens=doubts((" Rem", 0.9), ("brandt", 0.11), (" did", -0.01), ("<end>", 0.0)),
            sources=(Source(text="A passage.", metadata={"page": 7}),),
            conversation=("human: Look.", "human: Who painted it?"),
        )
    )
    page = ann.get(f"/reviews/{id_}").text
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    assert "Rem (90 % of the doubt)brandt (11 % of the doubt) did&lt;end&gt;" in text
    assert '<mark class="uncertain-5" title="90 % of the doubt; probability 0.61, entropy 1.50 nats">Rem<' in page
    assert page.count("<mark") == 2
    assert re.search(r'<span class="mark-of-model"[^>]*>&lt;end&gt;</span>', page)
    for shown in (
        "Who painted it?",
        "confidence 0.123 is below the threshold 0.900",
        "confidence of at least 0.900; nothing is promised",
        "A passage.",
        "page: 7",
        "human: Look.",
        "guard · submitted",
        "2026-01-01 12:00 UTC",
        "semgrad",
        id_,
    ):
        assert shown in text, shown


def test_a_tool_call_shows_how_sure_its_arguments_are(queue, ann):
    written = doubts(('{"f": ', 0.0), ("Rome", 1.0), ("}", 0.0))
    id_ = queue.submit(request("Call.", "f(x='Rome')", tool_calls=CALL, tokens=written))
    page = ann.get(f"/reviews/{id_}").text
    assert "As the model wrote it" in page
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "f the whole call 0.200 x 0.100 y unknown" in text


def test_what_is_missing_or_not_finite_is_shown_as_such(queue, ann):
    strange = (TokenUncertainty(token=1, text="x", log_prob=float("nan"), entropy=float("nan"), share=float("nan")),)
    id_ = queue.submit(request(" ", "", confidence=None, scores=None, reason="no answer", tokens=strange))
    page = ann.get(f"/reviews/{id_}").text
    assert all(shown in page for shown in ("(no question)", "no draft", "unknown", "no answer"))
    assert "<mark" not in page
    assert "Approve" not in ann.fill(f"/reviews/{id_}/claim").text  # there is nothing that could go out


def test_a_token_s_shade_grows_with_its_share():
    asked = request(
        draft="ab", tokens=doubts(("a", 0.019), ("b", 0.02), ("c", 0.2), ("d", 0.21), ("e", 1.3), ("f", -1))
    )
    assert [token.level for token in words.shaded(asked)] == [0, 1, 1, 2, 5, 0]
    assert [token.outside for token in words.shaded(asked)] == [False, False, True, True, True, True]
    assert not any(token.outside for token in words.shaded(request(draft="g()", tokens=doubts(("x", 1.0)))))


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "none"), (-1, "0 s"), (59.9, "59 s"), (61, "1 min"), (7200, "2 h"), (200000, "2 d")]
)
def test_lengths_of_time_in_words(seconds, text):
    assert words.duration(seconds).replace("60 s", "59 s") == text


def test_what_is_not_there_is_a_page_that_says_so(ann):
    for path in ("/nothing", "/reviews/nothing", "/reviews/next"):
        answer = ann.get(path)
        assert (answer.status_code in (404, 405), "That did not work" in answer.text) == (True, True)
    assert ann.fill("/reviews/nothing/decision", decision="approve").status_code == 404


@pytest.mark.parametrize("attack", XSS)
def test_nothing_anybody_wrote_becomes_markup(app, queue, attack):
    visitor = Visitor(app).log_in(attack)
    id_ = queue.submit(
        request(
            attack,
            attack,
            reason=attack,
            policy=attack,
            tokens=doubts((attack, 1.0)),
            sources=(Source(text=attack, metadata={attack: attack}),),
            conversation=(attack, attack),
            tool_calls={attack: CallConfidence(name=attack, confidence=0.1, arguments={attack: 0.1})},
        )
    )
    pages = [visitor.get("/reviews", params={"q": attack, "status": "pending"}), visitor.get(f"/reviews/{id_}")]
    pages.append(visitor.fill(f"/reviews/{id_}/claim"))
    pages.append(visitor.fill(f"/reviews/{id_}/decision", decision="respond", text=attack))
    pages += [visitor.get(f"/reviews/{id_}"), visitor.get("/statistics")]
    pages.append(visitor.fill(f"/reviews/{id_}/decision", decision="edit", text=attack + "2"))  # a conflict
    for page in pages:
        assert page.status_code in (200, 409)
        tags = Tags(page.text)
        assert tags.names.count("script") == 1  # our own
        assert not {"style", "iframe", "object", "embed", "base"} & set(tags.names)
        assert not [name for name, _ in tags.attributes if name.startswith(("on", "style"))]
        assert all(value.startswith(("/", "#")) for name, value in tags.attributes if name in ("href", "src", "action"))
        if attack[0] in "<\"'":
            assert attack not in page.text
    assert str(escape(attack)) in pages[1].text


# The list


def test_the_list_filters_and_sorts(queue, ann):
    for number, confidence in enumerate((0.5, None, 0.1, 0.9)):
        queue.submit(request(f"question {number}", confidence=confidence, tool_calls=CALL if number == 2 else {}))
    queue.decide(queue.submit(request("question 4", "100% sure", confidence=0.7)), "approve", "ann")

    def shown(**given):
        return [
            int(found) for found in re.findall(r"data-row[^>]*>question (\d)<", ann.get("/reviews", params=given).text)
        ]

    assert shown() == [0, 1, 2, 3]
    assert shown(status="") == [0, 1, 2, 3, 4]
    assert shown(status="decided") == [4]
    assert shown(sort="least confident") == [1, 2, 0, 3]
    assert shown(calls="yes") == [2]
    assert shown(calls="no") == [0, 1, 3]
    assert shown(least="0.5") == [0, 3]
    assert shown(least="0.2", most="0.8", status="") == [0, 4]
    assert shown(q="TION 3") == [3]
    assert shown(q="100%", status="") == [4]
    assert shown(q="nowhere") == []
    for wrong in ({"least": "nan"}, {"most": "x"}, {"sort": "x"}, {"calls": "x"}, {"page": "-1"}, {"page": "9" * 5000}):
        assert shown(**wrong) == [0, 1, 2, 3]


def test_the_list_has_pages_that_keep_the_filter(queue, ann):
    for number in range(60):
        queue.submit(request(f"question {number}" if number % 6 else "other"))
    page = ann.get("/reviews", params={"q": "question"}).text
    assert page.count("data-row") == 25
    assert "Page 1 of 2" in page
    after = html.unescape(re.search(r'rel="next" href="([^"]+)"', page)[1])
    assert ann.get(after).text.count("data-row") == 25
    assert "Page 2 of 2" in ann.get(after.replace("page=2", "page=7")).text


def test_the_queue_counts_what_it_lists(queue, clock):
    ids = [queue.submit(request(f"{number}?", confidence=number / 10)) for number in range(4)]
    assert queue.count(ReviewFilter()) == 4
    assert queue.count(ReviewFilter(least=0.2)) == 2
    queue.decide(ids[1], "approve", "ann")
    assert queue.neighbours(ids[0]) == (None, ids[2])
    assert queue.neighbours(ids[1]) == (ids[0], ids[2])
    assert queue.neighbours(ids[3]) == (ids[2], None)


# What reviewers do


def test_the_oldest_is_claimed_and_shown(queue, ann):
    ids = [queue.submit(request(f"{number}?")) for number in range(2)]
    answer = ann.fill("/reviews/next")
    assert answer.url.path == f"/reviews/{ids[0]}"
    assert "Yours until" in answer.text
    assert ann.fill("/reviews/next").url.path == f"/reviews/{ids[1]}"
    empty = ann.fill("/reviews/next")
    assert (empty.url.path, "Nothing else is waiting." in empty.text) == ("/reviews", True)


def test_one_is_claimed_kept_and_given_back(queue, ann, clock):
    ids = [queue.submit(request(f"{number}?")) for number in range(2)]
    ann.fill(f"/reviews/{ids[1]}/claim")
    assert queue.get(ids[1]).reviewer == "ann"
    clock.on(50)
    ann.fill(f"/reviews/{ids[1]}/renew")
    assert queue.get(ids[1]).lease_until == clock.now + timedelta(seconds=60)
    assert ann.fill(f"/reviews/{ids[1]}/release").url.path == "/reviews"
    assert queue.get(ids[1]).status == "pending"
    assert [event.action for event in queue.trail(ids[1])] == ["submitted", "claimed", "renewed", "released"]


@pytest.mark.parametrize(
    ("decision", "typed", "kept", "told"),
    [
        ("approve", "", None, "Approved"),
        ("approve", " ", None, "Approved"),
        ("edit", "two\r\nlines", "two\nlines", "Edited"),
        ("reject", "", None, "Rejected"),
        ("reject", "No.", "No.", "Rejected"),
        ("respond", " mine ", "mine", "Answered"),
    ],
)
def test_a_decision_is_kept_and_the_next_is_claimed(queue, ann, decision, typed, kept, told):
    first, second = queue.submit(request("1?")), queue.submit(request("2?"))
    ann.fill("/reviews/next")
    answer = ann.fill(f"/reviews/{first}/decision", decision=decision, text=typed)
    assert (answer.url.path, f"{told}. This is the next one." in answer.text) == (f"/reviews/{second}", True)
    item = queue.get(first)
    assert (item.status, item.reviewer, item.answer) == ("decided", "ann", ReviewAnswer(decision=decision, text=kept))
    assert (queue.get(second).status, queue.get(second).reviewer) == ("claimed", "ann")
    last = ann.fill(f"/reviews/{second}/decision", decision="approve")
    assert (last.url.path, "Approved. Nothing else is waiting." in last.text) == ("/reviews", True)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"decision": "edit", "text": " "}, "needs a text"),
        ({"decision": "respond"}, "needs a text"),
        ({"decision": "maybe", "text": "kept"}, "Choose a decision"),
        ({}, "Choose a decision"),
    ],
)
def test_a_decision_that_is_none_decides_nothing(queue, ann, fields, problem):
    id_ = queue.submit(request())
    ann.fill("/reviews/next")
    answer = ann.fill(f"/reviews/{id_}/decision", **fields)
    assert (answer.status_code, problem in answer.text) == (422, True)
    assert queue.get(id_).status == "claimed"


def test_sending_the_same_decision_twice_is_one_decision(queue, ann):
    id_ = queue.submit(request())
    for _ in range(2):
        assert ann.fill(f"/reviews/{id_}/decision", decision="edit", text="better").status_code == 200
    assert [event.action for event in queue.trail(id_)] == ["submitted", "edit"]


def test_what_somebody_else_decided_first_is_a_conflict_that_keeps_what_was_typed(queue, ann):
    id_ = queue.submit(request())
    ann.fill("/reviews/next")
    queue.decide(id_, "approve", "ann")  # in another window
    answer = ann.fill(f"/reviews/{id_}/decision", decision="edit", text="my long <text>")
    assert answer.status_code == 409
    assert "ann has decided on this review in the meantime: approve." in answer.text
    assert "my long &lt;text&gt;" in answer.text
    assert queue.get(id_).text == "draft"


def test_a_lease_that_ran_out_is_a_conflict_once_somebody_else_has_it(queue, ann, clock):
    id_ = queue.submit(request())
    ann.fill("/reviews/next")
    clock.on(61)
    queue.claim("bob", lease=600)
    answer = ann.fill(f"/reviews/{id_}/decision", decision="respond", text="typed for long")
    assert (answer.status_code, "bob has this review until" in answer.text) == (409, True)
    assert "typed for long" in answer.text
    for action in ("claim", "renew", "release"):
        assert ann.fill(f"/reviews/{id_}/{action}").status_code == 409
    assert queue.get(id_).reviewer == "bob"


def test_a_lease_that_ran_out_and_nobody_took_still_decides(queue, ann, clock):
    id_ = queue.submit(request())
    ann.fill("/reviews/next")
    clock.on(61)
    renewed = ann.fill(f"/reviews/{id_}/renew")
    assert (renewed.status_code, "your time for it ran out" in renewed.text) == (409, True)
    ann.fill(f"/reviews/{id_}/decision", decision="approve")
    assert queue.get(id_).reviewer == "ann"
    assert queue.get(id_).status == "decided"


def test_an_expired_review_is_a_conflict(tmp_path, clock):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'short.db'}", clock=clock, lifetime=30)
    ann = Visitor(application(queue, token=TOKEN)).log_in("ann")
    id_ = queue.submit(request())
    clock.on(31)
    answer = ann.fill(f"/reviews/{id_}/decision", decision="respond", text="too late")
    assert (answer.status_code, "has expired" in answer.text, "too late" in answer.text) == (409, True, True)
    assert "Nobody decided by" in ann.get(f"/reviews/{id_}").text
    queue.close()


def test_what_was_typed_is_kept_when_the_session_is_over(app, queue):
    id_ = queue.submit(request())
    answer = Visitor(app).post(f"/reviews/{id_}/decision", data={"decision": "edit", "text": "hours of work <b>"})
    assert answer.status_code == 401
    assert "hours of work &lt;b&gt;" in answer.text
    upload = Visitor(app).post(f"/reviews/{id_}/decision", files={"text": b"x"})
    assert upload.status_code == 401


def test_what_was_typed_is_kept_when_the_database_fails(tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'locked.db'}", busy_timeout=0.1)
    ann = Visitor(application(queue, token=TOKEN)).log_in("ann")
    id_ = queue.submit(request())
    other = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = ann.fill(f"/reviews/{id_}/decision", decision="edit", text="hours of work")
    next_ = ann.fill("/reviews/next")
    other.execute("ROLLBACK")
    other.close()
    assert (answer.status_code, "database is locked" in answer.text, "hours of work" in answer.text) == (
        503,
        True,
        True,
    )
    assert next_.status_code == 503
    assert queue.get(id_).status == "pending"
    queue.close()


def test_a_body_that_is_too_long_is_refused(queue, ann):
    id_ = queue.submit(request())
    answer = ann.fill(f"/reviews/{id_}/decision", decision="edit", text="x" * 1_000_001)
    assert answer.status_code == 413
    assert queue.get(id_).status == "pending"


def test_the_queue_hands_out_the_review_that_was_asked_for(queue, clock):
    ids = [queue.submit(request(f"{number}?")) for number in range(2)]
    assert queue.claim("ann", 60, id_=ids[1]).id == ids[1]
    with pytest.raises(ReviewConflictError, match="is with ann"):
        queue.claim("bob", id_=ids[1])
    clock.on(61)
    assert queue.claim("bob", id_=ids[1]).reviewer == "bob"


# The numbers


def verdict(decision, confidence=None, reviewer="ann", took=None):
    decided = datetime(2026, 1, 1, tzinfo=UTC)
    claimed = None if took is None else decided - timedelta(seconds=took)
    values = {"id": "", "decision": decision, "confidence": confidence, "reviewer": reviewer}
    return ReviewVerdict(created=decided, decided=decided, claimed=claimed, **values)


def test_risk_and_coverage_by_hand():
    decided = [
        verdict("approve", 0.9),
        verdict("edit", 0.8),
        verdict("approve", 0.5),
        verdict("reject", 0.5),
        verdict("respond", 0.1),
        verdict("approve", None),
        verdict("reject", float("nan")),
    ]
    # the surest alone: none of 1; two: 1 of 2; both of 0.5 together: 2 of 4; all: 3 of 5
    assert risk_coverage(decided) == [(0.2, 0.0), (0.4, 0.5), (0.8, 0.5), (1.0, 0.6)]
    assert risk_coverage([]) == []


def test_a_long_curve_is_thinned_and_keeps_its_end():
    curve = [(place / 1050, 0.5) for place in range(1, 1051)]
    assert thinned(curve[:100]) == curve[:100]
    assert thinned([]) == []
    assert len(thinned(curve)) == 96
    assert thinned(curve)[-1] == curve[-1]


def test_bands_of_confidence_by_hand():
    decided = [verdict("approve", 0.0), verdict("reject", 0.19), verdict("edit", 0.2), verdict("approve", 1.0)]
    assert [(band.count, band.approved) for band in bands([*decided, verdict("approve", None)])] == [
        (2, 0.5),
        (1, 0.0),
        (0, None),
        (0, None),
        (1, 1.0),
    ]


def test_shares_of_reviewers_by_hand():
    found = shares(
        [verdict("approve", took=2), verdict("edit", took=10), verdict("edit"), verdict("reject", reviewer="b")]
    )
    assert [(share.reviewer, share.count, dict(share.decisions), share.seconds) for share in found] == [
        ("ann", 3, {"approve": 1, "edit": 2}, 6),
        ("b", 1, {"reject": 1}, None),
    ]


def test_the_statistics_page_shows_them(queue, ann, clock):
    assert "Nobody has decided on anything yet" in ann.get("/statistics").text
    ids = [
        queue.submit(request(f"{number}?", confidence=confidence)) for number, confidence in enumerate((0.9, 0.5, 0.1))
    ]
    for id_, decision in zip(ids[:2], ("approve", "reject"), strict=True):
        ann.fill(f"/reviews/{id_}/claim")
        clock.on(20)
        queue.decide(id_, decision, "ann")
    clock.on(20)
    page = ann.get("/statistics").text
    assert re.findall(r'id="(oldest|count-\w+|approved)">([^<]+)<', page) == [
        ("oldest", "1 min"),
        ("count-pending", "1"),
        ("count-claimed", "0"),
        ("count-decided", "2"),
        ("count-expired", "0"),
        ("approved", "50 %"),
    ]
    # coverage 1/2 and 1, risk 0 and 1/2, on axes of 510 by 190 from (70, 210)
    assert 'points="325.0,210.0 580.0,115.0"' in page
    assert re.search(r"<bdi>ann</bdi></th><td[^>]*>2</td><td[^>]*>1</td><td[^>]*>0</td><td[^>]*>1</td>", page)
    assert ">20 s<" in page


def test_the_queue_tells_of_every_decision(queue, clock):
    id_ = queue.submit(request())
    clock.on(5)
    queue.claim("bob", lease=10)
    clock.on(20)
    queue.claim("ann")
    clock.on(7)
    queue.decide(id_, "approve", "ann")
    (found,) = queue.verdicts()
    assert (found.reviewer, found.decision, found.confidence) == ("ann", "approve", 0.3)
    assert (found.decided - found.claimed, found.decided - found.created) == (
        timedelta(seconds=7),
        timedelta(seconds=32),
    )
