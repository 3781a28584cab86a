"""The queue's database: opened with what keeps writers apart, brought up to date, and cleaned of what was deleted."""

from __future__ import annotations

import math
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import samestat
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from pydantic_core import to_json
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import Session

from semgrad_guard.errors import ConfigurationError, ReviewError

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7_305_264_633  # any number: PostgreSQL's advisory lock under which the schema is upgraded
_IN_MEMORY = "A queue in memory is lost with its thread; expected a file: sqlite:///reviews.db."
_EXPECTED = "expected sqlite:///reviews.db, or postgresql+psycopg://user@host/name"
_TURN = (0.0005, 0.003)  # seconds between tries to write to SQLite


class Database:
    """An engine whose sessions are transactions, and whose failures are `ReviewError`s without any text of a review."""

    def __init__(self, url: str, *, busy_timeout: float) -> None:
        """Open the database, make it if need be, and bring its schema up to date.

        Args:
            url: "sqlite:///file.db" or "postgresql+psycopg://...".
            busy_timeout: seconds to wait for another writer (SQLite) or for the server (PostgreSQL).

        Raises:
            ConfigurationError: the URL is malformed, another kind of database or one in memory, or its driver is not
                installed, unknown or asynchronous.
            ReviewError: the database cannot be opened, or is of a later version.
        """
        self.url, self._patience = _parsed(url), busy_timeout
        self.sqlite = self.url.get_backend_name() == "sqlite"
        arguments: dict[str, Any] = {"json_serializer": _json}
        if self.sqlite:
            arguments["connect_args"] = {"timeout": busy_timeout}
        elif "connect_timeout" not in self.url.query:
            arguments["connect_args"] = {"connect_timeout": math.ceil(busy_timeout)}
        try:
            # parameters stay out of messages: they are what people asked and what was answered
            self.engine = create_engine(self.url, hide_parameters=True, pool_pre_ping=not self.sqlite, **arguments)
        except ImportError as error:
            raise ConfigurationError(
                f"{self}: its driver is not installed ({error}); for PostgreSQL: pip install 'psycopg[binary]'."
            ) from error
        except (TypeError, ValueError) as error:
            raise _malformed() from error
        if self.sqlite:
            _keep_writers_apart(self.engine, busy_timeout)
            self._set_journal()
        self._upgrade()
        if self.sqlite:
            _keep_to_file(self.engine, repr(self))

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """Give a session that is one transaction: committed at the end, or rolled back by an exception.

        Raises:
            ReviewError: the database failed, such as locked for too long, full or gone. An `IntegrityError` is passed
                on: it tells that somebody else was faster.
        """
        engine = self.engine.execution_options(writes=True) if write else self.engine
        try:
            with Session(engine) as session, session.begin():
                yield session
        except IntegrityError:
            raise
        except (DBAPIError, sqlite3.Error) as error:
            raise self._failed(error) from error
        except (UnicodeError, OverflowError) as error:  # of the driver, before it asks the database
            raise ReviewError(
                f"The review queue {self} holds no half of a surrogate pair, and no number of more than 64 bits."
            ) from error

    def clean(self) -> None:
        """Rewrite an SQLite file, so that nothing deleted is left in it or its log; PostgreSQL has its own vacuum.

        Raises:
            ReviewError: it is in use and could not be rewritten in time.
        """
        if not self.sqlite:
            return
        try:
            connection: Any = self.engine.raw_connection()
            try:
                connection.execute("VACUUM")
                (blocked, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.close()
        except self.engine.dialect.loaded_dbapi.Error as error:
            raise self._unclean(error) from error
        if blocked:
            raise self._unclean("its log is being read")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __repr__(self) -> str:
        """Show where it is, without the password."""
        return self.url.render_as_string(hide_password=True)

    def _set_journal(self) -> None:
        """Write ahead, so that readers and a writer do not block each other; SQLite does not wait its turn here."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with self.engine.connect() as connection:
                    connection.connection.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except (TypeError, ValueError) as error:  # the driver refuses the name itself
                raise _malformed() from error
            except (DBAPIError, self.engine.dialect.loaded_dbapi.Error) as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise self._failed(error) from error
                time.sleep(0.02)

    def _upgrade(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.session(write=True) as session:
            connection = session.connection()
            if not self.sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise ReviewError(f"{self} is of a later version of semgrad-guard, or not ours: {error}") from error

    def _failed(self, error: Exception) -> ReviewError:
        cause = error.orig if isinstance(error, DBAPIError) else error
        return ReviewError(f"The review queue {self} failed: {type(cause).__name__}: {' '.join(str(cause).split())}")

    def _unclean(self, why: object) -> ReviewError:
        return ReviewError(
            f"Deleted, but {self} could not be rewritten ({why}), so that texts may be left in it. Call purge again."
        )


def _json(value: object) -> str:
    """Write numbers that are not finite as texts, which are read as numbers again; PostgreSQL takes no NaN in JSON."""
    return to_json(value, inf_nan_mode="strings").decode()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise _malformed() from error
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise ConfigurationError(f"The queue's database is {kind!r}; expected sqlite or postgresql.")
    try:
        asynchronous = parsed.get_dialect().is_async
    except NoSuchModuleError as error:
        raise ConfigurationError(f"The queue's url has a driver that is not known; {_EXPECTED}.") from error
    if asynchronous:
        raise ConfigurationError(f"The queue's url has an asynchronous driver; {_EXPECTED}.")
    if kind == "sqlite":
        name, options = (parsed.database or "").strip(), parsed.query
        if name in ("", "file:") or ":memory:" in name or "memory" in options.values() or "memdb" in options.values():
            raise ConfigurationError(_IN_MEMORY)
        if parsed.host:
            raise ConfigurationError(f"The queue's url names a host, and SQLite has none; {_EXPECTED}.")
        if "uri" not in options and (unknown := sorted(set(options) - {"timeout"})):
            raise ConfigurationError(
                f"The queue's url has the option {unknown[0]!r}, which needs 'uri=true' beside it."
            )
    return parsed


def _malformed() -> ConfigurationError:
    """Say so without the URL, which may hold a password."""
    return ConfigurationError(f"The queue's url is malformed; {_EXPECTED}.")


def _keep_writers_apart(engine: Engine, patience: float) -> None:
    """Take SQLite's lock when a writing transaction begins, not in its middle, where waiting would be a deadlock."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions by itself

    @event.listens_for(engine, "begin")
    def begins(connection: Connection) -> None:
        if connection.get_execution_options().get("writes"):
            _take_turn(connection, patience)
        else:
            connection.exec_driver_sql("BEGIN")


def _keep_to_file(engine: Engine, name: str) -> None:
    """Use the file only while it is the one that was opened: what goes into a deleted file is never found again."""
    with engine.connect() as connection:
        file = Path(
            connection.exec_driver_sql("SELECT file FROM pragma_database_list WHERE name = 'main'").scalar_one()
        )
    if not file.name or not file.exists():
        raise ConfigurationError(_IN_MEMORY)
    opened, gone = file.stat(), False

    @event.listens_for(engine, "checkout")
    def checked_out(connection: Any, record: Any, proxy: Any) -> None:
        nonlocal gone  # for good: without a connection that holds it, another file may get the same number
        gone = gone or not file.exists() or not samestat(file.stat(), opened)
        if gone:
            raise ReviewError(f"The file of the review queue {name} was deleted or replaced; open the queue again.")


def _take_turn(connection: Connection, patience: float) -> None:
    """Begin to write, as soon as nobody else does.

    SQLite itself would wait longer and longer between tries, up to a tenth of a second for what takes two thousandths:
    whoever came last would be served first, and nobody most of the time.
    """
    deadline = time.monotonic() + patience
    driver: Any = connection.connection.dbapi_connection  # nothing between: most tries fail, and errors are dear
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(*_TURN))
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(1000 * patience)}")
