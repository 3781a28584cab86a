"""Bring every fault about, and write what was expected and what was seen.

    python tests/production/faults.py --page docs/faults.md

Exit code 1 where something else was seen than expected. `faulty.py` says how faults are added.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from faulty import FAULTS, Fault, NotRun

_HERE = Path(__file__).parent
_PAGE = """\
# Faults

Each was brought about for real by `python tests/production/faults.py --page docs/faults.md`, which fails where
something else is seen than expected. Where the guard *abstains*, the reason quoted here stands in the record of its
answer, and nothing of the draft goes out.

| fault | expected | seen |
|---|---|---|
{rows}
"""


def known() -> list[Fault]:
    """Give all faults that the modules beside this one register."""
    sys.path.append(str(_HERE.parent))  # the scripted model of the other tests
    for path in sorted(_HERE.glob("faults_*.py")):
        importlib.import_module(path.stem)
    return FAULTS


def seen(fault: Fault) -> str:
    """Bring a fault about and tell what was seen; an exception is something that was seen.

    Raises:
        NotRun: it cannot be brought about here.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fault.bring_about(Path(folder))
        except NotRun:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def page(rows: Iterable[tuple[str, str, str]]) -> str:
    """Write the page."""
    return _PAGE.format(rows="\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Bring all about, write, and tell whether all is as expected."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--page", type=Path, help="where to write the page; default: print it")
    options.add_argument("--only", default="", help="only faults with this in their name")
    given = options.parse_args()
    rows, failed = [], 0
    for fault in known():
        if given.only not in fault.name:
            continue
        try:
            found = seen(fault)
            failed += found != fault.expected
        except NotRun as reason:
            found = f"not run: {reason}"
        rows.append((fault.name, fault.expected, found))
        print(f"{fault.name}: {found if found != fault.expected else 'as expected'}", file=sys.stderr)
    if given.page is None:
        print(page(rows))
    else:
        given.page.write_text(page(rows), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
