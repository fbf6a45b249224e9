"""A run between two steps: when its state is saved, and how it is taken up again."""

import time
from dataclasses import asdict

import torch

from onecycle.core.errors import InputError
from onecycle.core.files import reading, writing
from onecycle.core.signals import Interruption, received
from onecycle.distributed import agreement, ranks
from onecycle.run.build import Experiment
from onecycle.run.identity import identity, require_same
from onecycle.storage.checkpoint import load_state, save_state, weights_digest
from onecycle.storage.records import EpochRecord, History
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import StepReport
from onecycle.train.nonfinite import NOT_LOOKED_AT, NonFiniteError, weights_finite

SAVE_SECONDS = 300.0  # within an epoch; at the end of one it is saved anyway
_FORMAT = 2


class RunState:
    """What a run has come to, saved after each epoch, every `SAVE_SECONDS` within one, and when it is told to stop."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        interruption: Interruption,
        *,
        rates: tuple[float, float],
        started: float,
    ) -> None:
        self.history: History = []
        self.last_step: StepReport | None = None  # of an epoch that is not in the history yet
        self.margins = torch.zeros(len(experiment.dataset.train), device=experiment.acceleration.device)
        """Sums over the epochs so far, of each training image."""
        self._order = -1, self.margins.long()  # of an epoch, on the device
        self._experiment = experiment
        self._folder = folder
        self._identity = {**identity(experiment), "lr_min": rates[0], "lr_max": rates[1]}
        self._interruption = interruption
        self._started = started
        self._saved = time.perf_counter()
        self._saved_when_told = False

    @property
    def seconds(self) -> float:
        """Since the run began, without the time in which it was interrupted."""
        return time.perf_counter() - self._started

    def after_step(self, report: StepReport) -> None:
        """A step is done: save if it is time.

        Raises:
            Interrupted: when the process was told to stop.
        """
        self.last_step = report
        self._add(report)
        if time.perf_counter() - self._saved >= SAVE_SECONDS:
            self.save()
        self.stop_if_told()

    def _add(self, report: StepReport) -> None:
        train = self._experiment.train
        if self._order[0] != report.epoch:  # once an epoch: to send it makes a GPU wait
            self._order = report.epoch, torch.from_numpy(train.order(report.epoch - 1)).to(self.margins.device)
        first = (report.step - (report.epoch - 1) * len(train)) * train.batch_size
        assert report.margins is not None, "a step that was done has them"
        self.margins.index_add_(0, self._order[1][first : first + report.images], report.margins)

    def after_epoch(self, record: EpochRecord) -> None:
        """An epoch is trained and evaluated: save.

        Raises:
            Interrupted: when the process was told to stop.
        """
        self.history.append(record)
        self.last_step = None
        if ranks.current().size > 1:  # else what is different in one of them would be noticed by its results, or never
            agreement.require_alike({f"the network after epoch {record.epoch}": weights_digest(self._experiment.model)})
            agreement.agree_to_stop()
        self.save()
        self._folder.write_history(self.history)
        self._interruption.check()

    def stop_if_told(self) -> None:
        """Between two batches: when the process was told to stop, save.

        Others may take long to agree to that. So this one saves as soon as it knows.

        Raises:
            Interrupted: when all stop.
        """
        if self._interruption.requested or (received() and not self._saved_when_told):
            self._saved_when_told = True
            self.save()
        self._interruption.check()

    def save(self) -> None:
        """Write all that the run needs to go on from here.

        Raises:
            NonFiniteError: when nothing can be gone on with; what was saved before is kept.
        """
        if not weights_finite(self._experiment.model):
            steps = len(self.history) * len(self._experiment.train)
            raise NonFiniteError(self.last_step.step if self.last_step else steps - 1, NOT_LOOKED_AT)
        self._saved = time.perf_counter()
        if not ranks.current().leads:
            return
        ranks.current().expect_soon(True)  # the next batch: a disk that hangs is to be named
        progress = {
            "format": _FORMAT,
            "run": self._identity,
            "history": [asdict(record) for record in self.history],
            "last_step": self.last_step.to_json() if self.last_step else None,
            "seconds": self.seconds,
        }
        folder, parts = self._folder, self._experiment
        save_state(
            folder.checkpoint,
            parts.model,
            parts.optimizer,
            progress,
            measured={"margins": self.margins},
            keep=folder.checkpoint_before,
        )

    def restore(self) -> str | None:
        """Take the run up where it was saved last, if it was; returns a warning where the newest file is damaged.

        Raises:
            InputError: when it was saved by another run, or another version, or all that was saved is damaged.
        """
        state = load_state(self._folder.checkpoint, self._folder.checkpoint_before)
        if state is None:
            return None
        with reading(state.path):
            saved = state.progress
            if saved["format"] != _FORMAT:
                raise InputError(f"{state.path} was written by another version of onecycle, which can go on with it")
            require_same(saved["run"], self._identity, f"{state.path} is of another run than this")
            self.history = [EpochRecord(**record) for record in saved["history"]]
            if saved["last_step"]:
                self.last_step = StepReport.from_json(saved["last_step"], self._experiment.acceleration.device)
            self._started -= saved["seconds"]
            self.margins.copy_(state.measured["margins"])
            state.restore(self._experiment.model, self._experiment.optimizer)
        if state.damaged:  # else it would take the place of the whole one when the next is written
            with writing(self._folder.checkpoint):
                self._folder.checkpoint.unlink(missing_ok=True)
        self._folder.write_history(self.history)  # it may lack the last epoch, or have one more
        return state.damaged and f"{state.damaged}; going on from the checkpoint before it, {state.path}"
