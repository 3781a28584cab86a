"""`semgrad-guard review`: its commands on a queue, and what it refuses to start."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from scripted import request_of, score
from typer.testing import CliRunner

from semgrad_guard import ReviewAnswer
from semgrad_guard.cli import app
from semgrad_guard.review import ReviewQueue


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.delenv("SEMGRAD_GUARD_REVIEWS", raising=False)
    monkeypatch.delenv("SEMGRAD_GUARD_REVIEW_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)  # where the default is
    return f"sqlite:///{tmp_path / 'reviews.db'}"


@pytest.fixture
def ids(url):
    """Four reviews: an old one, one that was rejected, one claimed and one pending, whose score is not finite."""
    old = ReviewQueue(url, clock=lambda: datetime.now(UTC) - timedelta(days=40))
    queue = ReviewQueue(url)
    ids = [old.submit(asked("Old?"))] + [queue.submit(asked(question)) for question in ("Where [red]?", "Who?")]
    queue.decide(ids[0], "approve", "ann")
    queue.decide(ids[1], ReviewAnswer(decision="respond", text="mine"), "ann")
    queue.claim("bob")
    ids.append(queue.submit(asked("When?", scores=score(float("nan")), confidence=None)))
    old.close()
    queue.close()
    return ids


def asked(question, **fields):
    values = {"question": question, "draft": f"draft of {question}", "confidence": 0.25, "scores": None, "reason": "r"}
    return request_of(**values | fields)


def run(*arguments, **settings):
    return CliRunner().invoke(app, ["review", *arguments], **settings)


def read(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_list_shows_what_waits_and_what_was_decided(ids, url):
    shown = run("list", "--queue", url).stdout
    assert f"{ids[1]}  respond by ann  confidence 0.25\n    Where [red]?  ->  draft of Where [red]?" in shown
    assert f"{ids[2]}  claimed" in shown
    assert f"{ids[3]}  pending  confidence unknown" in shown
    assert shown.endswith("4 of 4 reviews\n")
    assert "1 of 4 reviews" in run("list", "--limit", "1").stdout


@pytest.mark.parametrize(
    ("filters", "places"),
    [
        (["--status", "pending"], [3]),
        (["--decision", "respond"], [1]),
        (["--reviewer", "bob"], [2]),
        (["--contains", "WHO"], [2]),
        (["--status", "decided", "--reviewer", "ann"], [0, 1]),
    ],
)
def test_the_list_can_be_narrowed_and_read_by_machines(ids, filters, places):
    found = read("list", *filters)
    assert [ids.index(item["id"]) for item in found["reviews"]] == places
    assert found["total"] == len(places)


def test_the_queue_is_named_before_or_after_the_command_or_in_the_environment(ids, url, monkeypatch, tmp_path):
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    assert read("--queue", elsewhere, "statistics")["counts"]["decided"] == 0
    assert read("--queue", elsewhere, "statistics", "--queue", url)["counts"]["decided"] == 2
    monkeypatch.setenv("SEMGRAD_GUARD_REVIEWS", elsewhere)
    assert read("statistics")["counts"]["decided"] == 0
    assert read("--queue", url, "statistics")["counts"]["decided"] == 2


def test_statistics(ids):
    shown = run("statistics").stdout
    assert "1 pending, 1 claimed, 2 decided, 0 expired" in shown
    assert "1 approve" in shown
    assert "approved as drafted: 50%" in shown


def test_what_was_decided_is_exported(ids, tmp_path):
    assert read("export", "out.jsonl") == {"exported": 2, "file": "out.jsonl"}
    assert [json.loads(line)["correct"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [True, False]
    assert "2 labelled questions" in run("export", "out.jsonl").stdout


def test_the_trail_tells_who_did_what(ids):
    assert [event["action"] for event in read("trail", ids[1])["trail"]] == ["submitted", "respond"]
    assert run("trail", ids[1]).stdout.splitlines()[1].endswith(" UTC  ann: respond")


def test_deleting_asks_before(ids):
    for answer in ("n\n", ""):
        result = run("delete", ids[2], input=answer)
        assert (result.exit_code, "Delete the review of 'Who?'" in result.output) == (1, True)
    assert read("list")["total"] == 4
    assert run("delete", ids[2], input="y\n").exit_code == 0
    assert read("delete", ids[3], "--yes", "--who", "dpo") == {"deleted": ids[3]}
    assert read("list")["total"] == 2
    assert read("trail", ids[3])["trail"][-1] | {"at": ""} == {
        "review_id": ids[3],
        "at": "",
        "who": "dpo",
        "action": "deleted",
    }


def test_purging_asks_before(ids):
    result = run("purge", "--older-than", "30d", input="n\n")
    assert (result.exit_code, "older than 30 days" in result.output) == (1, True)
    assert read("purge", "--older-than", "960.5h", "--yes") == {"purged": 0}
    assert read("purge", "--older-than", "30d", "--yes") == {"purged": 1}
    assert read("list")["total"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--status", "lost"], "status='lost': expected one of pending"),
        (["delete", "nothing", "--yes"], "no review 'nothing'"),
        (["trail", "nothing"], "no review 'nothing'"),
        (["purge", "--older-than", "30", "--yes"], "expected a number and a unit, such as 90d"),
        (["purge", "--older-than", "-3d", "--yes"], "expected a number and a unit"),
        (["export", "/nowhere/out.jsonl"], "Cannot write /nowhere/out.jsonl: No such file or directory."),
        (["statistics", "--queue", "sqlite:////nowhere/reviews.db"], "unable to open database file"),
        (["statistics", "--queue", "mysql://host/name"], "expected sqlite or postgresql"),
        (["--host", "0.0.0.0"], "can be reached from other machines: set SEMGRAD_GUARD_REVIEW_TOKEN."),
    ],
)
def test_errors_are_one_line(url, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.enable_socket
def test_the_page_is_not_started_where_it_cannot_be(url, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert (result.exit_code, "Address already in use" in result.stderr) == (2, True)
    monkeypatch.setenv("SEMGRAD_GUARD_REVIEW_TOKEN", "short")
    result = run("--port", "0")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
