"""The review page in a real browser: with the keyboard, without JavaScript, under attack, and when its server dies."""

import re
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from browser import browser, served
from scripted import request_of, score_of

from semgrad_guard import ReviewAnswer, Source
from semgrad_guard.records import TokenUncertainty
from semgrad_guard.review import ReviewQueue

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium: apt-get install chromium"),
]
TOKEN = "a-token-of-some-length"
XSS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' autofocus onfocus='alert(1)",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<a href='javascript:alert(1)'>click</a>",
    "<style>@import 'http://evil.example'</style><link rel=stylesheet href=http://evil.example>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe><base href=http://evil.example>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
)
# What tells that a policy was broken, asked of every page before anything of it runs.
WATCH = "window.broken = []; addEventListener('securitypolicyviolation', e => broken.push(e.violatedDirective))"


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture
def queue(tmp_path):
    opened = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    yield opened
    opened.close()


@pytest.fixture
def address(queue):
    with served(queue, TOKEN) as given:
        yield given


def doubts(*pairs):
    return tuple(
        TokenUncertainty(token=place, text=text, log_prob=-0.5, entropy=1.5, share=share)
        for place, (text, share) in enumerate(pairs)
    )


def request(question="Where?", draft="draft", **fields):
    values = {"question": question, "draft": draft, "confidence": 0.3, "scores": score_of(0.3), "reason": "unsure"}
    return request_of(**values | fields)


@contextmanager
def visit(chromium, address, name="ann", **settings):
    """Log in, and check at the end that nothing went anywhere else, broke the policy or opened a dialog."""
    context = chromium.new_context(**settings)
    asked, odd = [], []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: odd.append(message.text) if "409" not in message.text else None)
    context.on("dialog", lambda dialog: (odd.append(dialog.message), dialog.dismiss()))
    context.on("weberror", lambda error: odd.append(str(error.error)))
    context.add_init_script(WATCH)
    context.set_default_timeout(60_000)  # a busy machine is slow, and no worse for it
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/reviews")
    yield page
    if settings.get("java_script_enabled", True):
        assert page.evaluate("broken") == []
    assert odd == []
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(address).netloc}
    context.close()


def claimed(page):
    """Wait until a review is there to be decided on, and its script has run."""
    page.get_by_role("heading", name="Decide").wait_for()
    page.wait_for_load_state("load")


def test_the_doubtful_token_is_highlighted_and_the_policy_is_kept(chromium, queue, address):
    id_ = queue.submit(request("Who?", "Rembrandt", tokens=doubts((" Rem", 0.9), ("brandt", 0.1), ("<end>", 0.0))))
    with visit(chromium, address) as page:
        page.get_by_role("link", name="Who?").click()
        page.wait_for_url(f"**/{id_}")
        marks = page.locator("mark")
        assert marks.all_text_contents() == ["Rem (90 % of the doubt)", "brandt (10 % of the doubt)"]
        shades = marks.evaluate_all("marks => marks.map(mark => getComputedStyle(mark).backgroundColor)")
        assert len({*shades, "rgba(0, 0, 0, 0)"}) == 3
        assert page.locator("mark").first.get_attribute("title").startswith("90 % of the doubt; probability")


def test_everything_is_decided_with_the_keyboard(chromium, queue, address):
    ids = [queue.submit(request(f"question {number}")) for number in range(4)]
    with visit(chromium, address) as page:
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.textContent") == "question 1"
        page.keyboard.press("k")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{ids[0]}")
        page.keyboard.press("c")
        claimed(page)
        page.keyboard.press("a")
        assert queue.get(ids[0]).status == "claimed"  # one key alone decides nothing
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{ids[1]}")
        page.keyboard.press("e")
        page.keyboard.press("Control+A")
        page.keyboard.type("are keys typed? j k a")
        page.keyboard.press("Control+Enter")
        page.wait_for_url(f"**/{ids[2]}")
        page.keyboard.press("r")
        page.keyboard.press("Control+Enter")
        page.wait_for_url(f"**/{ids[3]}")
        page.keyboard.press("w")
        page.keyboard.type("mine")
        page.keyboard.press("Escape")
        page.keyboard.press("w")
        page.keyboard.press("Control+Enter")
        page.get_by_text("Nothing else is waiting.").wait_for()
    assert [queue.get(id_).answer for id_ in ids] == [
        ReviewAnswer(decision="approve"),
        ReviewAnswer(decision="edit", text="are keys typed? j k a"),
        ReviewAnswer(decision="reject"),
        ReviewAnswer(decision="respond", text="mine"),
    ]


def test_shortcuts_are_shown_and_can_be_turned_off(chromium, queue, address):
    ids = [queue.submit(request(f"question {number}")) for number in range(2)]
    with visit(chromium, address) as page:
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
        assert dialog.is_visible()
        page.keyboard.press("n")  # not while the help is open
        dialog.get_by_label("Use single-key shortcuts").uncheck()
        dialog.get_by_role("button", name="Close").click()
        page.keyboard.press("n")
        page.goto(f"{address}/reviews/{ids[0]}")
        page.keyboard.press("c")
        page.keyboard.press("j")
        assert page.url.endswith(ids[0])
    assert [item.status for item in queue.items()] == ["pending", "pending"]


def test_everything_works_without_javascript(chromium, queue, address):
    ids = [queue.submit(request(f"question {number}", confidence=number / 10)) for number in range(5)]
    with visit(chromium, address, java_script_enabled=False) as page:
        page.get_by_label("First", exact=True).select_option("least confident")
        page.get_by_label("Least confidence").fill("0.35")
        page.get_by_role("button", name="Show").click()
        assert page.locator("[data-row]").all_inner_texts() == ["question 4"]
        assert not page.locator("kbd").first.is_visible()
        page.get_by_role("button", name="Claim the oldest").click()
        for place, (title, button, text) in enumerate(
            (
                ("Approve", "Approve", None),
                ("Edit", "Send the edited draft", "better"),
                ("Reject", "Reject", "No."),
                ("Write an answer", "Send my answer", "mine"),
            )
        ):
            page.wait_for_url(f"**/{ids[place]}")
            panel = page.locator("details.decision").filter(has=page.locator("summary", has_text=title))
            panel.locator("summary").click()
            if text is not None:
                panel.get_by_role("textbox").fill(text)
            panel.get_by_role("button", name=button, exact=True).click()
        page.wait_for_url(f"**/{ids[4]}")
        page.get_by_role("button", name="Give back").click()
        assert page.get_by_text("Given back, undecided.").is_visible()
        page.get_by_role("link", name="Statistics").click()
        assert page.locator("#count-decided").inner_text() == "4"
        page.get_by_role("button", name="Log out").click()
        assert page.get_by_text("You are logged out.").is_visible()
    assert [queue.get(id_).text for id_ in ids] == ["draft", "better", "No.", "mine", None]


@pytest.mark.parametrize("attack", XSS)
def test_what_anybody_wrote_stays_text(chromium, queue, address, attack):
    asked = request(
        attack,
        attack,
        reason=attack,
        policy=attack,
        tokens=doubts((attack, 1.0)),
        sources=(Source(text=attack, metadata={"source": attack}),),
        conversation=(attack, attack),
    )
    id_ = queue.submit(asked)
    with visit(chromium, address, name=attack) as page:
        for path in (f"/reviews?q={attack}", f"/reviews/{id_}", "/statistics"):
            page.goto(address + path)
            assert page.evaluate("broken") == []
        page.goto(f"{address}/reviews/{id_}")
        assert page.locator(".question").inner_text().strip() == attack.strip()
        page.get_by_role("button", name="Claim").click()
        claimed(page)
        page.keyboard.press("e")
        assert page.locator("#edit-text").input_value() == attack.strip()
        page.keyboard.press("Control+Enter")
        page.get_by_text("Nothing else is waiting.").wait_for()
        page.goto(f"{address}/reviews/{id_}")
        assert page.locator("aside .draft-text").inner_text().strip() == attack.strip()
        page.goto(f"{address}/statistics")
    assert queue.get(id_).reviewer == " ".join(attack.split())


def test_the_watch_would_see_a_broken_policy(chromium, queue, address):
    with pytest.raises(AssertionError), visit(chromium, address) as page:  # noqa: PT012 - what breaks it is the test
        page.evaluate("document.body.setAttribute('style', 'color: red')")
        page.evaluate("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
        page.wait_for_function("broken.length > 0")


def test_a_conflict_is_shown_and_keeps_what_was_typed(chromium, queue, address):
    id_ = queue.submit(request())
    with visit(chromium, address) as page:
        page.keyboard.press("n")
        page.wait_for_url(f"**/{id_}")
        page.keyboard.press("w")
        page.keyboard.type("typed for long")
        queue.release(id_, "ann")
        queue.claim("bob")
        page.keyboard.press("Control+Enter")
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert "bob has this review until" in alert.inner_text()
        assert page.get_by_label("What you had written").input_value() == "typed for long"


def test_a_server_that_is_restarted_in_the_middle_loses_nothing(chromium, queue):
    id_ = queue.submit(request())
    with served(queue, TOKEN) as address, visit(chromium, address) as page:
        page.keyboard.press("n")
        page.wait_for_url(f"**/{id_}")
        kept = page.context.storage_state()
    port = urlsplit(address).port
    assert queue.get(id_).reviewer == "ann"
    with served(queue, TOKEN, port=port) as again:
        assert again == address
        page = chromium.new_context(storage_state=kept).new_page()
        page.goto(f"{address}/reviews/{id_}")
        assert re.search("Yours until", page.locator("aside").inner_text())
        page.keyboard.press("a")
        page.keyboard.press("Enter")
        page.get_by_text("Nothing else is waiting.").wait_for()
        page.context.close()
    assert [event.action for event in queue.trail(id_)] == ["submitted", "claimed", "approve"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_every_control_has_a_name_and_nothing_is_cut_off(chromium, queue, address, scheme, width):
    long = "Donaudampfschifffahrtsgesellschaft" * 8
    id_ = queue.submit(
        request(long, long, tokens=doubts((long, 1.0)), sources=(Source(text=long, metadata={long: long}),))
    )
    queue.claim("ann")
    with visit(chromium, address, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        for path in ("/reviews?status=", f"/reviews/{id_}", "/statistics"):
            page.goto(address + path)
            assert page.locator("html").get_attribute("lang") == "en"
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            unnamed = page.evaluate(
                "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
                ".filter(one => !one.labels.length && !one.getAttribute('aria-label')).map(one => one.outerHTML)"
            )
            assert unnamed == []
            assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
            assert page.get_by_role("heading", level=1).count() == 1
