"""What a run does, from its configuration to its folder. The composition root: it owns the folder and the screen."""

import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from onecycle.compute import hardware
from onecycle.compute.kernels import native
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.files import locked
from onecycle.core.signals import Interruption, watched
from onecycle.distributed import agreement, ranks
from onecycle.models.test_time_augmentation import Averaged
from onecycle.run import environment, existing, results, setup
from onecycle.run.autosave import RunState
from onecycle.run.build import Experiment, assemble
from onecycle.run.failure import resumable, told_on_its_page
from onecycle.run.identity import identity, require_same
from onecycle.run.progress import RunProgress
from onecycle.run.resume import begun_by_this_job, require_alike, scratch, shared_folder
from onecycle.run.tensorboard import TensorBoard, require_tensorboard
from onecycle.storage.records import EpochRecord, LRCurve
from onecycle.storage.run_folder import RunFolder
from onecycle.train.loop import Evaluation, StepReport, evaluate, fit
from onecycle.train.lr_finder import find_lr

SWEEP_STEPS = 100


def run(config: Config, console: Console, place: Path | None = None) -> RunFolder:
    """Find the learning rates, train, evaluate, write it all down: the whole of `onecycle train`.

    The run's folder is `place`, or a new one in `config.out`.

    Raises:
        InputError: when the configuration cannot be run, and no folder is left behind unless training had begun; or
            when training cannot go on.
        Interrupted: by SIGINT or SIGTERM; `resume` goes on.
    """
    with watched() as interruption, ranks.joined() as here:
        require_alike(resumes=False)
        begun = None if place else begun_by_this_job(config)
        if any(here.of_all(begun is not None)):
            return resume(begun, console, config)
        agreement.require_even(config.shards, here.size)
        if config.tensorboard:
            require_tensorboard()
        with RunProgress(_screen(console)) as progress, ExitStack() as stack:
            started = time.perf_counter()
            experiment = assemble(config)
            _require_alike(experiment)
            setup.announce(experiment, progress)
            setup.require_cycle(experiment)
            setup.tell_of_interrupted(experiment, progress)
            folder = _new_folder(experiment, config.recipe, place, stack)
            with locked(folder.path), resumable(folder, config):
                progress.say(f"Run folder: {folder.path}")
                try:
                    rates = _rates(experiment, folder, progress)
                except InputError:
                    folder.discard()
                    raise
                state = RunState(experiment, folder, interruption, rates=rates, started=started)
                return _train(experiment, folder, progress, interruption, state=state, rates=rates)


def resume(path: Path | None, console: Console, config: Config | None = None) -> RunFolder:
    """Go on with an interrupted run where it was saved last, computing the way it began, to the same bits.

    Of several processes one has the run's folder at `path`; it sends the others what they need of it.

    Of `config` only where the data are and the number of workers may differ from what the run began with.

    Raises:
        InputError: when there is no such run, it is complete or at work, or goes on from something else: another
            configuration, other data, another version; or when training cannot go on.
        Interrupted: by SIGINT or SIGTERM; another `resume` goes on.
    """
    with watched() as interruption, ranks.joined() as here, shared_folder(path) as folder:
        began = folder.read_config()
        config = config or began
        agreement.require_even(config.shards, here.size)
        then = {**began.defining_values(), **environment.recorded_versions(folder)}
        now = {**config.defining_values(), **environment.versions(environment.COMPUTING)}
        require_same(then, now, f"{folder.path} goes on only as it began")
        with locked(folder.path), RunProgress(_screen(console)) as progress:
            if folder.complete:
                raise InputError(f"{folder.path} is complete: there is nothing to resume")
            folder.remove_strays()
            with resumable(folder, config):
                return _go_on(folder, config, progress, interruption)


def _go_on(folder: RunFolder, config: Config, progress: RunProgress, interruption: Interruption) -> RunFolder:
    started = time.perf_counter()
    how = environment.recorded_acceleration(folder)
    how.require(hardware.detect())
    experiment = assemble(config, how)
    environment.require_same_data(folder, experiment.dataset)
    _require_alike(experiment)
    setup.announce(experiment, progress)
    if cpu := environment.other_processor(folder, hardware.detect()):
        progress.warn(f"This run began on another processor, {cpu}: its last bits may come out otherwise here")
    rates = _rates(experiment, folder, progress)
    state = RunState(experiment, folder, interruption, rates=rates, started=started)
    if warning := state.restore():
        progress.warn(warning)
    folder.begin_again()
    if not ranks.current().leads:
        folder.remove_checkpoints()  # a copy, which may be in memory
    step = f", step {state.last_step.step}" if state.last_step else ""
    progress.say(f"Resuming {folder.path} after epoch {len(state.history)}{step}")
    return _train(experiment, folder, progress, interruption, state=state, rates=rates)


def _require_alike(experiment: Experiment) -> None:
    """Refuse processes that would not come to the same bits."""
    machine, how = hardware.detect(), experiment.acceleration
    processor = {"the processor": machine.cpu, "its instructions and caches": machine.cpu_features}
    kernels = {"the native kernels": str(native.identity())} if how.native_kernels or how.matrix_unit else {}
    agreement.require_alike({**identity(experiment), **processor, **kernels})


def _screen(console: Console) -> Console:
    """What this process may write to: of several only one says how far the run is."""
    return console if ranks.current().leads else Console(quiet=True)


def find_rates(config: Config, console: Console) -> RunFolder:
    """Run only the LR finder, and write its curve and picture into a folder of its own.

    Raises:
        InputError: when the configuration cannot be run, and no folder is left behind.
    """
    with watched(), ranks.joined() as here, ExitStack() as stack:
        agreement.require_even(config.shards, here.size)
        with RunProgress(_screen(console)) as progress:
            experiment = assemble(config)
            _require_alike(experiment)
            setup.announce(experiment, progress)
            folder = _new_folder(experiment, "find-lr", None, stack)
            try:
                _sweep(experiment, folder, progress)
            except BaseException:
                folder.discard()
                raise
        if here.leads:
            _draw(folder)
        here.end_together()
        return folder


def _new_folder(experiment: Experiment, name: str, place: Path | None, stack: ExitStack) -> RunFolder:
    """The folder of what begins; for a process that does not lead, one that is gone when `stack` is left."""
    if ranks.current().leads:
        return setup.make_folder(experiment, name, place)
    return stack.enter_context(scratch())


def _draw(folder: RunFolder) -> None:
    from onecycle.report import plots  # only now: it loads matplotlib, for which the first step need not wait

    plots.draw(folder)


def _sweep(experiment: Experiment, folder: RunFolder, progress: RunProgress) -> LRCurve:
    progress.start_sweep(SWEEP_STEPS)
    try:
        curve = find_lr(
            experiment.model,
            experiment.optimizer,
            experiment.train.at_last_size(),  # where the size changes, the loss jumps, and not for the rate
            acceleration=experiment.acceleration,
            steps=SWEEP_STEPS,
            after_step=progress.sweep_step,
        )
    finally:
        progress.end_sweep()
    folder.write_json(folder.lr_finder, curve.to_json())
    others = ", ".join(f"{name} {lr:.2e}" for name, lr in curve.suggestions.items())
    progress.say(f"LR finder: LR min {curve.lr_min:.2e}, LR max {curve.lr_max:.2e} (others: {others})")
    return curve


def _rates(experiment: Experiment, folder: RunFolder, progress: RunProgress) -> tuple[float, float]:
    """The pair (lr_min, lr_max): what was asked for, else what the LR finder found or finds."""
    lr_min, lr_max = experiment.config.lr_min, experiment.config.lr_max
    if lr_min is None or lr_max is None:
        curve = folder.read_lr_curve() or _sweep(experiment, folder, progress)
        lr_min = curve.lr_min if lr_min is None else lr_min
        lr_max = curve.lr_max if lr_max is None else lr_max
    if lr_min > lr_max:
        raise InputError(f"LR min {lr_min:.2e} is above LR max {lr_max:.2e}; give both --lr-min and --lr-max")
    return lr_min, lr_max


def _train(
    experiment: Experiment,
    folder: RunFolder,
    progress: RunProgress,
    interruption: Interruption,
    *,
    state: RunState,
    rates: tuple[float, float],
) -> RunFolder:
    config = experiment.config
    lr_min, lr_max = rates
    last: Evaluation | None = None
    board = _board(experiment, folder, state)

    def after_step(report: StepReport) -> None:
        state.after_step(report)
        progress.step(report)

    def after_epoch(record: EpochRecord, evaluation: Evaluation) -> None:
        nonlocal last
        last = evaluation
        try:
            state.after_epoch(record)
        finally:
            progress.epoch(record)  # after saving: a screen or a log may be gone
        if board:
            board.epoch(record)

    progress.start_training(config.epochs, len(experiment.train), experiment.dataset.evaluated_on)
    with told_on_its_page(folder, config, lr_max), interruption.deferred():
        fit(
            experiment.model,
            experiment.optimizer,
            experiment.train,
            experiment.evaluation,
            epochs=config.epochs,
            lr_min=lr_min,
            lr_max=lr_max,
            peak_fraction=config.peak_fraction,
            acceleration=experiment.acceleration,
            first_epoch=len(state.history),
            last_step=state.last_step,
            after_step=after_step,
            after_evaluation_batch=state.stop_if_told,
            after_epoch=after_epoch,
        )
    agreement.agree_to_stop()  # by a signal that came while the last epoch was saved
    interruption.check()
    # A run that was interrupted between its last epoch and its result has no evaluation at hand.
    evaluation = last or evaluate(experiment.model, experiment.evaluation, acceleration=experiment.acceleration)
    views = _over_views(experiment) if config.test_time_augmentation else None
    if ranks.current().leads:
        ranks.current().expect_soon(True)  # the end
        _conclude(experiment, folder, evaluation, progress, state=state, rates=rates, views=views)
        if board:
            board.complete(config, folder.read_result(), folder.pictures)
    ranks.current().end_together()
    folder.remove_checkpoints()  # last: a run that has none and has a result is complete
    return folder


def _board(experiment: Experiment, folder: RunFolder, state: RunState) -> TensorBoard | None:
    if experiment.config.tensorboard and ranks.current().leads:
        return TensorBoard(folder.tensorboard, state.history, experiment.dataset.evaluated_on)
    return None


def _conclude(
    experiment: Experiment,
    folder: RunFolder,
    evaluation: Evaluation,
    progress: RunProgress,
    *,
    state: RunState,
    rates: tuple[float, float],
    views: tuple[float, float] | None,
) -> None:
    """Write down, draw and explain what the run came to."""
    results.write(
        experiment,
        folder,
        evaluation,
        state.history,
        margins=state.margins,
        rates=rates,
        views=views,
        seconds=state.seconds,
    )
    _draw(folder)
    if experiment.config.report:
        existing.interpret_run(folder, experiment.predictor, experiment.dataset)
        progress.say(f"Report: {existing.write_page(folder)}")


def _over_views(experiment: Experiment) -> tuple[float, float]:
    """The accuracy with test-time augmentation, and the seconds that it took."""
    began = time.perf_counter()
    averaged = evaluate(Averaged(experiment.model), experiment.evaluation, acceleration=experiment.acceleration)
    return averaged.accuracy, time.perf_counter() - began
