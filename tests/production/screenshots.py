"""Take the screenshots of the documentation: the review page over answers that the embedded model was not sure of.

    python tests/production/screenshots.py --out docs/images [--report report.html]

The answers, their confidences and doubts are the model's. Who decided what, and when, is made up: a script that knows
the right answers stands for three reviewers.
"""

import random
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser import browser, served

from semgrad_guard import HumanReview, Retrieve, ReviewAnswer, SemGradGuard
from semgrad_guard.calibration.labels import same
from semgrad_guard.demo import corpus, embedded_model, embedded_profile
from semgrad_guard.langchain.passages import BM25Retriever
from semgrad_guard.review import ReviewQueue
from tools.embedded.questions import CLOSED_BOOK, questions
from tools.embedded.tools import tools

TOKEN = "only-for-screenshots"
ASKED, WAITING = 60, 7  # questions of each kind; reviews that nobody has decided on yet
REQUESTS = ("What is the weather like?", "How do I get there?")


class Clock:
    """Tells a time that can be set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/images"),
    report: Annotated[Path | None, typer.Option(help="An evaluation report, to take a picture of as well.")] = None,
) -> None:
    """Fill a queue, look at it with a browser, and save what is seen."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        queue = _filled(f"sqlite:///{folder}/reviews.db")
        with served(queue, TOKEN) as address:
            page = chromium.new_page(viewport={"width": 1180, "height": 760}, device_scale_factor=1)
            page.goto(address)
            page.get_by_label("Your name").fill("Ann")
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url("**/reviews")
            page.screenshot(path=out / "review-list.png")
            shown = {"review-item": _spread(queue), "review-call": _last_call(queue)}
            for name, id_ in shown.items():
                queue.claim("Ann", id_=id_)
                page.goto(f"{address}/reviews/{id_}")
                page.keyboard.press("e")
                page.screenshot(path=out / f"{name}.png")
            page.goto(f"{address}/statistics")
            page.screenshot(path=out / "review-statistics.png", full_page=True)
            dark = chromium.new_context(color_scheme="dark", viewport={"width": 390, "height": 800}).new_page()
            dark.context.add_cookies(page.context.cookies())
            dark.goto(f"{address}/reviews/{shown['review-item']}")
            dark.screenshot(path=out / "review-phone.png")
        queue.close()
        if report is not None:
            page = chromium.new_page(viewport={"width": 1340, "height": 760})
            page.goto(report.resolve().as_uri())
            page.screenshot(path=out / "report.png")
            page.set_viewport_size({"width": 1020, "height": 385})
            page.locator("figure").first.evaluate("figure => figure.scrollIntoView()")
            page.screenshot(path=out / "report-curves.png")
    for picture in sorted(out.glob("*.png")):
        print(f"{picture} {picture.stat().st_size / 1000:.0f} kB")


def _filled(url: str) -> ReviewQueue:
    """Ask the embedded model until a queue is worth looking at, and let all but the last reviews be decided on."""
    rng, now = random.Random(7), datetime.now(UTC)
    clock = Clock(now - timedelta(hours=20))
    queue = ReviewQueue(url, clock=clock)
    search = Retrieve(BM25Retriever.from_texts(corpus()), k=3)
    guard = SemGradGuard(embedded_model(), profile=embedded_profile(), routes=[search, HumanReview(queue=queue)])
    asked = [item for stratum in CLOSED_BOOK for item in questions(stratum, "report")[:ASKED]]
    rng.shuffle(asked)
    right = {}
    for item in asked:
        clock.now += timedelta(minutes=rng.uniform(1, 8))
        guard.invoke(item.prompt)
        right[item.prompt] = item.answers
    waiting = queue.items(limit=None)
    decided = waiting[: len(waiting) - WAITING]
    for item in decided:
        clock.now = max(clock.now, item.created) + timedelta(seconds=5)
        reviewer = rng.choices(("Ann", "Bela", "Chidi"), (5, 3, 2))[0]
        queue.claim(reviewer, id_=item.id)
        clock.now += timedelta(seconds=rng.gammavariate(3, 9))
        queue.decide(item.id, _decision(item.request.question, item.request.draft, right, rng), reviewer)
    bound = guard.bind_tools([tool.schema() for tool in tools() if tool.name in ("find_route", "get_weather")])
    for request in REQUESTS:
        bound.invoke(request)
    clock.now += timedelta(minutes=3)
    queue.claim("Bela")
    return queue


def _decision(question: str, draft: str, right: dict[str, tuple[str, ...]], rng: random.Random) -> ReviewAnswer:
    answers = right[question]
    if same(question, draft, answers):
        return ReviewAnswer(decision="approve")
    if not answers:
        return ReviewAnswer(decision="reject")
    return ReviewAnswer(decision=rng.choice(("edit", "respond")), text=answers[0])


def _spread(queue: ReviewQueue) -> str:
    """Find the pending review where the doubt sits on the most tokens."""
    items = [
        item for item in queue.items(status="pending", limit=None) if item.request.draft and not item.request.tool_calls
    ]
    return min(items, key=lambda item: max((token.share for token in item.request.tokens), default=1.0)).id


def _last_call(queue: ReviewQueue) -> str:
    return [item for item in queue.items(status="pending", limit=None) if item.request.tool_calls][-1].id


if __name__ == "__main__":
    typer.run(main)
