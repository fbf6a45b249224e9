"""Checkpoints of a run: when they are saved, and how a run is restored from them."""

import time
from dataclasses import asdict

import torch

from onecycle.core.errors import InputError
from onecycle.core.files import reading, writing
from onecycle.core.signals import Interruption, received
from onecycle.distributed import consistency
from onecycle.run.build import Experiment
from onecycle.run.identity import identity, require_same
from onecycle.storage.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from onecycle.storage.records import EpochRecord, History
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import StepReport
from onecycle.train.nonfinite import NonFiniteError, weights_finite

SAVE_SECONDS = 300.0  # a checkpoint is saved this often within an epoch, and always at the end of an epoch
_FORMAT = 3


class RunState:
    """The progress of a run. It is saved after each epoch, every `SAVE_SECONDS` within an epoch, and before a stop."""

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
        self.last_step: StepReport | None = None  # the latest step of the current epoch; None before its first step
        self.margins = torch.zeros(len(experiment.dataset.train), device=experiment.plan.device)
        """The margin of each training image (label logit minus largest other logit), summed over the epochs so far."""
        # An epoch, and the image indices in the order of this epoch. Epoch -1 means that there is no order yet.
        self._order = -1, self.margins.long()
        self._experiment = experiment
        self._group = experiment.group
        self._folder = folder
        self._identity = {**identity(experiment), "lr_min": rates[0], "lr_max": rates[1]}
        self._interruption = interruption
        self._started = started
        self._last_save = time.perf_counter()
        self._saved_for_signal = False

    @property
    def seconds(self) -> float:
        """The duration of the run so far, excluding interruptions."""
        return time.perf_counter() - self._started

    def after_step(self, report: StepReport) -> None:
        """Record a step. Save a checkpoint if the last checkpoint is older than `SAVE_SECONDS`.

        Raises:
            Interrupted: when the processes of the run have agreed to stop.
        """
        self.last_step = report
        self._add_margins(report)
        if time.perf_counter() - self._last_save >= SAVE_SECONDS:
            self.save()
        if self._group.size > 1:
            consistency.agree_to_stop(self._group)
        self.stop_if_signaled()

    def _add_margins(self, report: StepReport) -> None:
        train = self._experiment.train
        if self._order[0] != report.epoch:  # copy the order only once per epoch, because a copy makes a GPU wait
            self._order = report.epoch, torch.from_numpy(train.order(report.epoch - 1)).to(self.margins.device)
        first = (report.step - (report.epoch - 1) * len(train)) * train.batch_size
        assert report.margins is not None, "only a report from JSON lacks margins"
        self.margins.index_add_(0, self._order[1][first : first + report.images], report.margins)

    def after_epoch(self, record: EpochRecord) -> None:
        """Record an epoch that was trained and evaluated, and save a checkpoint.

        Raises:
            Interrupted: when the processes of the run have agreed to stop.
            InputError: when the weights differ between the processes.
        """
        self.history.append(record)
        self.last_step = None
        if self._group.size > 1:
            # Compare the weights of the processes. Otherwise, a difference would show only in the results, or never.
            weights = {f"the network after epoch {record.epoch}": weights_digest(self._experiment.trained)}
            consistency.require_consistent(weights, self._group)
            consistency.agree_to_stop(self._group)
        self.save()
        self._folder.write_history(self.history)
        self._interruption.check()

    def stop_if_signaled(self) -> None:
        """Save a checkpoint when this process has received a signal. Stop when all processes have agreed to stop.

        The other processes may take long to agree, so this process saves at once.

        Raises:
            Interrupted: when all processes stop.
        """
        if self._interruption.requested or (received() and not self._saved_for_signal):
            self._saved_for_signal = True
            self.save()
        self._interruption.check()

    def save(self) -> None:
        """Save a checkpoint. Only the main process writes.

        Raises:
            NonFiniteError: when a weight is not finite; the last checkpoint is kept.
            StorageError: when the checkpoint cannot be written.
        """
        if not weights_finite(self._experiment.trained):
            steps = len(self.history) * len(self._experiment.train)
            step = self.last_step.step if self.last_step else steps - 1
            raise NonFiniteError(f"the network after step {step}", "a weight or a running statistic is infinity or NaN")
        self._last_save = time.perf_counter()
        if not self._group.is_main_process:
            return
        progress = {
            "format": _FORMAT,
            "run": self._identity,
            "history": [asdict(record) for record in self.history],
            "last_step": self.last_step.to_json() if self.last_step else None,
            "seconds": self.seconds,
        }
        save_checkpoint(
            self._folder.checkpoint,
            self._experiment.trained,
            self._experiment.optimizer,
            progress,
            measured={"margins": self.margins},
            keep=self._folder.checkpoint_before,
        )

    def restore(self) -> str | None:
        """Restore the last checkpoint, if there is one. Returns a warning if the newest file is damaged, else None.

        Raises:
            InputError: when the checkpoints belong to another run or version, or all checkpoints are damaged.
        """
        checkpoint = load_checkpoint(self._folder.checkpoint, self._folder.checkpoint_before)
        if checkpoint is None:
            return None
        with reading(checkpoint.path):
            saved = checkpoint.progress
            if saved["format"] != _FORMAT:
                raise InputError(
                    f"another version of onecycle wrote {checkpoint.path}; resume the run with that version"
                )
            require_same(saved["run"], self._identity, f"{checkpoint.path} belongs to another run")
            self.history = [EpochRecord.from_json(record) for record in saved["history"]]
            if saved["last_step"]:
                self.last_step = StepReport.from_json(saved["last_step"], self._experiment.plan.device)
            self._started -= saved["seconds"]
            self.margins.copy_(checkpoint.measured["margins"])
            checkpoint.restore(self._experiment.trained, self._experiment.optimizer)
        if checkpoint.damaged:
            # Remove the damaged file. Otherwise the next save would rename it over the intact previous checkpoint.
            with writing(self._folder.checkpoint):
                self._folder.checkpoint.unlink(missing_ok=True)
        self._folder.write_history(self.history)  # the old file may have one epoch more or less than the checkpoint
        return checkpoint.damaged and f"{checkpoint.damaged}; going on from the previous checkpoint, {checkpoint.path}"
