"""Every help text of the command line is a sentence, or a noun with what belongs to it, that can be read alone."""

import re

import pytest
import typer

from semgrad_guard.cli import app

# Words that lean on the option's name or on another text for their subject: "Of the split.", "At most so many."
LEANING = ("Also", "As", "At", "By", "For", "How", "It", "Only", "Of", "Ours", "So", "That", "The same", "What", "With")
SENTENCE = re.compile(rf"(?!(?:{'|'.join(LEANING)})\b)[A-Z].*[^.]\.", re.DOTALL)


def commands(command, name="semgrad-guard"):
    yield name, command
    for below, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {below}")


def texts():
    for name, command in commands(typer.main.get_command(app)):
        yield name, command.help
        yield from ((f"{name} {option.opts[0]}", option.help) for option in command.params if option.name != "help")


TEXTS = dict(texts())


def test_all_commands_and_options_are_read():
    assert {"semgrad-guard calibrate --seed", "semgrad-guard review delete id_", "semgrad-guard ask question"} <= {
        *TEXTS
    }
    assert len(TEXTS) > 120


@pytest.mark.parametrize("name", TEXTS)
def test_a_help_text_is_read_alone(name):
    assert SENTENCE.fullmatch(TEXTS[name] or ""), f"{name}: {TEXTS[name]!r}"


@pytest.mark.parametrize(
    "text", ["Of the split.", "At most so many.", "random seed.", "Random seed", "With --ray: it.", ""]
)
def test_what_leans_on_another_text_is_noticed(text):
    assert not SENTENCE.fullmatch(text)
