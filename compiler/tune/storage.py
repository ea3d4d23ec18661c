"""Where a study is kept: a database or a journal file, as optuna opens them. Needs the extra
`tune`; what goes wrong is told without passwords."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from edgelm.runtime.errors import EdgelmError, RecipeError, StorageError

LOCKED_S = 60.0  # how long SQLite waits for others
# optuna says of a damaged journal, or one of something else, whatever Python raised
FAILURES = (OptunaError, SQLAlchemyError, OSError, RuntimeError, ValueError, LookupError, TypeError,
            AssertionError)  # fmt: skip


def open_storage(url: str) -> BaseStorage:
    """The storage at a database's URL or a journal file's path, made where there is none. Raises
    RecipeError and StorageError."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with storage_failures(url):
        return _database(url) if "://" in url else _journal(Path(url).expanduser())


@contextmanager
def storage_failures(url: str) -> Iterator[None]:
    """Turn what optuna and its storages raise into StorageError; UpdateFinishedTrialError stays."""
    try:
        yield
    except (EdgelmError, UpdateFinishedTrialError):
        raise
    except FAILURES as err:
        raise StorageError(
            f"the study at {shown(url)}: {_reason(err, url)}",
            hint="see to the storage and run the same again, which goes on; what was made is kept",
        ) from err


def shown(url: str) -> str:
    """The URL without user, password and options."""
    scheme, sep, rest = url.partition("://")
    return f"{scheme}{sep}{rest.rpartition('@')[2].partition('?')[0]}" if sep else url


def _database(url: str) -> BaseStorage:
    options: dict[str, object] = {"pool_pre_ping": True}  # connections rest while models are made
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": LOCKED_S}
    for wait in (0.5, 1.0, 2.0, None):
        try:
            return RDBStorage(url, engine_kwargs=dict(options))
        except ImportError as err:
            raise RecipeError(
                f"budget.study: {shown(url)}: its driver is not installed: {err.__cause__}",
                hint="install the driver with pip, or name another in the URL, such as "
                "postgresql+psycopg://",
            ) from err
        except (ArgumentError, ValueError, LookupError) as err:
            raise RecipeError(
                f"budget.study: {shown(url)}: it is no URL of a database",
                hint="such as sqlite:///study.db, postgresql://USER@HOST/NAME, "
                "mysql://USER@HOST/NAME; or the path of a journal file",
            ) from err
        except DBAPIError as err:  # another process made the same tables at the same time
            twice = isinstance(err, IntegrityError) or "already exists" in str(err.orig)
            if wait is None or not twice:
                raise
            time.sleep(wait)
    raise AssertionError


def _journal(path: Path) -> BaseStorage:
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(1) not in (b"", b"{"):
                raise ValueError("it begins with something else")
    lock = JournalFileOpenLock(str(path))  # works on NFS, and where links need rights
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _reason(err: BaseException, url: str) -> str:
    cause = err.__cause__ if isinstance(err, OptunaError) and err.__cause__ else err
    if isinstance(cause, DBAPIError):
        return _without_password(str(cause.orig).strip().partition("\n")[0], url)
    if isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    return f"what it holds is not what optuna wrote, or is damaged ({type(cause).__name__})"


def _without_password(text: str, url: str) -> str:
    password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return text.replace(password, "***") if password else text
