"""Every error that edgelm raises on purpose, in one closed family.

    EdgelmError                  base; `exit_code` is what the command line ends with
    |- UsageError          (2)   the call is wrong: arguments, option values
    |  |- RecipeError            a recipe key or value
    |  |- DataError              a data file: names the file and the row
    |  |- InputError             what was handed to predict
    |  `- UnknownVariant         a variant name the bundle does not hold
    |- ModelError          (2)   a model directory, hub id or package that cannot be compiled
    |- TargetUnavailable   (3)   the engine cannot run here
    |  `- MissingExtra           an optional dependency; the message holds the pip command
    |- VerificationError   (4)   a result differs from its reference by more than its limit
    |- BudgetError         (4)   nothing that was tried meets the budget
    |- BundleError         (5)   a bundle that cannot be trusted or read
    |  |- BundleNotFound
    |  |- BundleVersionError
    |  |- TamperedError          a file is not the one that was packed
    |  `- UntrustedError         no signature, or none by a key that is trusted
    |- StorageError        (5)   the disk: full, read-only, no permission; a study's storage
    `- RequestRefused      (1)   a server does not answer a request; carries the HTTP status

A message names the value and the rule it breaks; `hint` says what to do next.
"""

from __future__ import annotations


class EdgelmError(Exception):
    """Base of all errors a user can cause or cure. Carries `hint`, the next step, or None."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgelmError):
    """The call is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe holds an unknown key or a value outside its rule."""


class DataError(UsageError):
    """A data file cannot be used; the message names file and row."""

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        row: int | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if path is None else f"{path}: " if row is None else f"{path}, row {row}: "
        super().__init__(where + message, hint=hint)
        self.path = path
        self.row = row


class InputError(UsageError):
    """predict was handed what it cannot answer; `index` is the input's place in a list."""

    def __init__(self, message: str, *, hint: str | None = None, index: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.index = index


class UnknownVariant(UsageError):
    """The bundle holds no variant of that name."""


class ModelError(EdgelmError):
    """The model cannot be read or compiled."""

    exit_code = 2


class TargetUnavailable(EdgelmError):
    """The target's engine cannot run on this machine."""

    exit_code = 3


class MissingExtra(TargetUnavailable):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} is not installed", hint=f'install it with: pip install "edgelm[{extra}]"'
        )
        self.extra = extra


class VerificationError(EdgelmError):
    """A variant differs from its reference by more than its limit."""

    exit_code = 4


class BudgetError(EdgelmError):
    """Nothing meets the budget; the message tells what comes nearest."""

    exit_code = 4


class BundleError(EdgelmError):
    """The bundle cannot be read."""

    exit_code = 5


class BundleNotFound(BundleError):
    """There is no bundle at that path."""


class BundleVersionError(BundleError):
    """The bundle was written in a format this version does not know."""


class TamperedError(BundleError):
    """A file is missing, extra, or not the one that was packed."""


class UntrustedError(BundleError):
    """The bundle is not signed, or not by a key that is trusted."""


class StorageError(EdgelmError):
    """The disk refuses: full, read-only, or no permission; or the storage of a study does."""

    exit_code = 5


class RequestRefused(EdgelmError):
    """A server does not answer a request. Carries the HTTP `status`, a `code` for programs, the
    request's key that is wrong in `param`, and `retry_after_s` where trying again is worth it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
