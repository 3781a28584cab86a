"""A PostgreSQL server of one's own, in a temporary folder, from Debian's package or any other installation."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "SEMGRAD_GUARD_POSTGRES"
MISSING = f"needs PostgreSQL: apt-get install postgresql, or set {VARIABLE} to the URL of a database it may use"


def programs() -> Path | None:
    """Find the folder of `initdb` and `pg_ctl`, of the latest version where there are several; None without."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return folders[-1].parent if folders else None


class Server:
    """A server that listens to a socket in its own folder only; `url` is its database."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._user = _servant() if os.getuid() == 0 else None  # the server refuses to run as root
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "--username=guard", "--auth=trust", "--encoding=UTF8", "--locale=C", self._folder / "data")
        self.url = f"postgresql+psycopg://guard@/postgres?host={folder}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = f"-c listen_addresses= -c unix_socket_directories={self._folder}"
        self._control("start", "-o", settings, "-l", self._folder / "log")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: "immediate" as a crash would, or "fast"."""
        self._control("stop", "-m", mode)

    def _control(self, verb: str, *arguments: str | Path) -> None:
        self._run("pg_ctl", verb, "-w", "-s", "-D", self._folder / "data", *arguments)

    def _run(self, program: str, *arguments: str | Path) -> None:
        log = self._folder / "commands"
        with log.open("a") as output:  # no pipe: the server would keep it open
            done = subprocess.run(
                [self._programs / program, *arguments],
                user=self._user,
                extra_groups=None if self._user is None else [],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]} failed: {log.read_text()[-2000:]}")


@contextmanager
def private_server() -> Iterator[Server]:
    """Give a server that runs, and take it away again with all its data.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    found = programs()
    if found is None:
        raise FileNotFoundError(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="guard-pg-"))  # short: a socket's path may have 107 letters
    try:
        server = Server(found, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _servant() -> str:
    """Name somebody who is not root: the package's own user, where there is one."""
    known = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
