"""Who has what of a search, as trials of an optuna study: for processes that share no disk.

A claim is a trial that is created as running; of several to one attempt the lowest number has it,
which all processes see alike. (Optuna's own way is a waiting trial that a process sets to running;
on SQLite two processes can win one.) While it works, a process counts up its trial's `beat`. Who
sees a beat stand still for `STALE_S`, by its own clock, ends that claim, so that the clocks of
machines need not agree. An attempt is made once a trial of it has an `outcome`.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from edgelm.compiler.machine import machine_name
from edgelm.compiler.tune.outcome import Outcome
from edgelm.compiler.tune.storage import open_storage, storage_failures
from edgelm.runtime.errors import StorageError
from edgelm.runtime.schema import decode, encode

BEAT_S = 20.0
STALE_S = 120.0


@dataclass(frozen=True)
class Claim:
    """A process that makes, or made, an attempt."""

    number: int  # of its trial
    worker: str  # HOST:PID
    outcome: Outcome | None  # None: it is at it


class Study:
    """The study `name` at `url`; `settings` has the value by axis of each model."""

    def __init__(
        self,
        url: str,
        name: str,
        settings: Mapping[str, Mapping[str, str]],
        *,
        less: bool,
        about: Mapping[str, str],
    ) -> None:
        """`less`: less quality is better; `about` is shown beside the study. Raises RecipeError and
        StorageError."""
        self.url, self.settings, self.less = url, settings, less
        self.worker = f"{platform.node()}:{os.getpid()}"
        self.storage = open_storage(url)
        self._beats: dict[int, tuple[int, float]] = {}  # by trial: the beat, and since when
        with storage_failures(url):
            self._id = self._open(name, about)

    def claims(self) -> dict[str, Claim]:
        """By attempt the claim that counts: the first with an outcome, else the first at work.
        Those that stand still are ended. Raises StorageError."""
        found: dict[str, Claim] = {}
        with storage_failures(self.url):
            for trial in self.storage.get_all_trials(self._id, deepcopy=False):
                said = trial.user_attrs
                outcome = decode(Outcome, said["outcome"]) if "outcome" in said else None
                if outcome is None and not self._works(trial):
                    continue
                known = found.get(said["attempt"])
                if known is None or (known.outcome is None and outcome is not None):
                    found[said["attempt"]] = Claim(trial.number, said["worker"], outcome)
        return found

    @contextmanager
    def claim(self, attempt: str, model: str) -> Iterator[int | None]:
        """Yields the trial of an attempt at the model, or None where another process was first.
        What has not succeeded by the end is free for others. Raises StorageError."""
        with storage_failures(self.url):
            trial = self._begin(attempt, model)
        try:
            with storage_failures(self.url):
                number = self.storage.get_trial(trial).number
            first = self.claims().get(attempt)
            if first is None or first.number != number:
                yield None
            else:
                with self._beating(trial):
                    yield trial
        finally:
            with suppress(StorageError, UpdateFinishedTrialError):
                self._end(trial, TrialState.FAIL)

    def succeed(self, trial: int, outcome: Outcome) -> bool:
        """Tell the outcome; False where others have ended the claim. Raises StorageError."""
        best, states = outcome.best(less=self.less), {p.state for p in outcome.points.values()}
        try:
            with storage_failures(self.url):
                self.storage.set_trial_user_attr(trial, "outcome", encode(outcome))
            if outcome.promise is not None:
                self._end(trial, TrialState.PRUNED, outcome.promise)
            elif best is not None:
                self._end(trial, TrialState.COMPLETE, best)
            else:
                self._end(trial, TrialState.FAIL if "failed" in states else TrialState.PRUNED)
        except UpdateFinishedTrialError:
            return False
        return True

    def _open(self, name: str, about: Mapping[str, str]) -> int:
        with suppress(KeyError):
            return self.storage.get_study_id_from_name(name)
        direction = StudyDirection.MINIMIZE if self.less else StudyDirection.MAXIMIZE
        try:
            study = self.storage.create_new_study([direction], name)
        except DuplicatedStudyError:  # made by another process just now
            return self.storage.get_study_id_from_name(name)
        for key, value in about.items():
            self.storage.set_study_user_attr(study, key, value)
        return study

    def _begin(self, attempt: str, model: str) -> int:
        params = dict(self.settings[model])
        values = {axis: [said[axis] for said in self.settings.values()] for axis in params}
        choices: dict[str, BaseDistribution] = {
            axis: CategoricalDistribution(list(dict.fromkeys(said)))
            for axis, said in values.items()
        }
        attrs = {"attempt": attempt, "worker": self.worker, "machine": machine_name(), "beat": 0}
        trial = create_trial(
            state=TrialState.RUNNING, params=params, distributions=choices, user_attrs=attrs
        )
        return self.storage.create_new_trial(self._id, trial)

    def _end(self, trial: int, state: TrialState, value: float | None = None) -> None:
        with storage_failures(self.url):
            self.storage.set_trial_state_values(trial, state, None if value is None else [value])

    def _works(self, trial: FrozenTrial) -> bool:
        """Whether the claim is running and its beat moves; it is ended where it does not."""
        if trial.state != TrialState.RUNNING:
            return False
        beat, now = trial.user_attrs["beat"], time.monotonic()
        seen, since = self._beats.get(trial.number, (None, now))
        if seen != beat:
            self._beats[trial.number] = beat, now
        elif now - since > STALE_S:
            id = self.storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            with suppress(UpdateFinishedTrialError):  # its own process, or another, was faster
                self._end(id, TrialState.FAIL)
            return False
        return True

    @contextmanager
    def _beating(self, trial: int) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(trial, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat(self, trial: int, stop: threading.Event) -> None:
        beat = 0
        while not stop.wait(BEAT_S):
            beat += 1
            try:
                with storage_failures(self.url):
                    self.storage.set_trial_user_attr(trial, "beat", beat)
            except StorageError:  # the next one may get through
                continue
            except UpdateFinishedTrialError:
                break
        self.storage.remove_session()  # of this thread
