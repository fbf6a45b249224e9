"""Train the run that a configuration describes: the code behind `onecycle train` and `onecycle find-lr`.

This module puts all parts together. It owns the run folder, the screen and the process group.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from onecycle.compute import hardware
from onecycle.core.config import Config
from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import locked
from onecycle.core.option_groups import OutputConfig
from onecycle.core.own_network import require_consent
from onecycle.core.signals import Interruption, watched
from onecycle.distributed import consistency, process_group
from onecycle.distributed.process_group import ProcessGroup
from onecycle.models import ModelComposite
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.run import environment, finished, repeat, results, setup
from onecycle.run.autosave import RunState
from onecycle.run.build import Experiment, assemble
from onecycle.run.expected_time import ExpectedTime
from onecycle.run.failure import failure_reported, resumable
from onecycle.run.features import compute_features
from onecycle.run.identity import identity, require_same
from onecycle.run.plan_check import PlanCheck
from onecycle.run.progress import RunProgress
from onecycle.run.results import TTAResult
from onecycle.run.resume import require_same_start, scratch, shared_folder, started_by_this_job
from onecycle.run.tensorboard import TensorBoard, require_tensorboard
from onecycle.storage.records import EpochRecord, LRCurve
from onecycle.storage.run_folder import RunFolder, require_parent
from onecycle.train.loop import Evaluation, StepReport, evaluate, fit
from onecycle.train.lr_finder import find_lr

SWEEP_STEPS = 100


def run(config: Config, console: Console, path: Path | None = None, *, repeated: Path | None = None) -> RunFolder:
    """Find the learning rates, train, evaluate, and write everything into a run folder.

    The folder is `path`, or a new one in `config.out`. If the run in the folder `repeated` is complete and has the same
    configuration, the new run uses that run's compute plan, if possible, and prints everything that may still make the
    two results differ.

    Raises:
        OnecycleError: when the configuration cannot be run (no folder is left behind), or when training fails.
        Interrupted: on SIGINT or SIGTERM. `resume` then continues the run.
    """
    with watched() as interruption, process_group.init() as group:
        require_same_start(group, resumes=False)
        earlier = None if path else started_by_this_job(config)
        if any(group.all_gather_object(earlier is not None)):
            return _resume(earlier, console, config, interruption, group, network=config.network)
        consistency.require_divisible(config.shards, group.size)
        if config.tensorboard:
            require_tensorboard()
        if path is None:
            _require_out(config, group)
        with RunProgress(_screen(console, group)) as progress, ExitStack() as stack:
            started = time.perf_counter()
            repetition = repeat.find(config, repeated, group)
            experiment = assemble(config, repetition.plan if repetition else None, group=group)
            config = experiment.config
            _begin(experiment, progress)
            if repetition:
                repetition.announce(experiment.dataset.fingerprint, progress)
            progress.expected = ExpectedTime(experiment)
            setup.mention_interrupted(experiment, progress)
            folder = _new_folder(experiment, config.recipe, path, stack)
            with locked(folder.path), resumable(folder, config, group):
                progress.say(f"Run folder: {folder.path}")
                try:
                    rates = _rates(experiment, folder, progress)
                except OnecycleError:
                    folder.discard()
                    raise
                state = RunState(experiment, folder, interruption, rates=rates, started=started)
                return _train(experiment, folder, progress, interruption, state=state, rates=rates)


def resume(
    path: Path | None,
    console: Console,
    config: Config | None = None,
    *,
    network: str | None = None,
    allow_code_changes: bool = False,
) -> RunFolder:
    """Resume an interrupted run from its last checkpoint, with the compute plan that it started with.

    The result is bit-identical to that of an uninterrupted run. With several processes, one process has the run folder
    at `path`, and sends the necessary files to the other processes. `config` must equal the original configuration,
    except for `data`, `init`, `workers` and the output options. If the run trains the user's own network, the code
    of this network is imported only if `network` names it.

    If onecycle's source code has changed since the run was last trained, the run is resumed only with
    `allow_code_changes`. The change is then recorded, and the result may not be bit-identical.

    Raises:
        OnecycleError: when there is no such run, when the run is complete or in use, when the configuration, data or
            versions differ, or when training fails.
        Interrupted: on SIGINT or SIGTERM. Another `resume` then continues the run.
    """
    with watched() as interruption, process_group.init() as group:
        return _resume(
            path, console, config, interruption, group, network=network, allow_code_changes=allow_code_changes
        )


def _resume(
    path: Path | None,
    console: Console,
    config: Config | None,
    interruption: Interruption,
    group: ProcessGroup,
    *,
    network: str | None,
    allow_code_changes: bool = False,
) -> RunFolder:
    with shared_folder(path, group) as folder:
        original = folder.read_config()
        require_consent(original.network, network, str(folder.path))
        config = config.resolved_as(original) if config else original
        consistency.require_divisible(config.shards, group.size)
        then = {**original.defining_values(), **environment.recorded_versions(folder)}
        now = {**config.defining_values(), **environment.versions(environment.COMPUTING)}
        require_same(then, now, f"{folder.path} can only be resumed as it was started")
        with locked(folder.path), RunProgress(_screen(console, group)) as progress:
            if folder.is_complete:
                raise InputError(f"{folder.path} is complete: there is nothing to resume; start a new run")
            folder.remove_temporary_files()
            if environment.has_other_code(folder) and not allow_code_changes:
                raise InputError(
                    f"the code of onecycle has changed since {folder.path} was trained; use the old code (its "
                    f"environment.json names the commit), or `{folder.resume_command(config)} --allow-code-changes`"
                )
            with resumable(folder, config, group):
                return _continue(folder, config, progress, interruption, group)


def _continue(
    folder: RunFolder, config: Config, progress: RunProgress, interruption: Interruption, group: ProcessGroup
) -> RunFolder:
    started = time.perf_counter()
    plan = environment.recorded_plan(folder)
    plan.require(hardware.detect())
    environment.require_data(folder, config)
    experiment = assemble(config, plan, group=group)
    environment.require_same_data(folder, experiment.dataset)
    _begin(experiment, progress)
    machine, has_other_code = hardware.detect(), environment.has_other_code(folder)
    if other := environment.other_machine(folder, machine, plan):
        progress.warn(f"This run was trained on {other}: the last bits of its results may differ here")
    if has_other_code:
        progress.warn("The code of onecycle has changed since this run was last trained")
    progress.expected = ExpectedTime(experiment)
    rates = _rates(experiment, folder, progress)
    state = RunState(experiment, folder, interruption, rates=rates, started=started)
    if warning := state.restore():
        progress.warn(warning)
    folder.discard_stopped_state()
    if other or has_other_code:
        environment.record_change(folder, machine, plan)
    if not group.is_main_process:
        # On this process, the checkpoints are temporary copies. They occupy memory if their folder is in a tmpfs.
        folder.remove_checkpoints()
    step = f", step {state.last_step.step}" if state.last_step else ""
    progress.say(f"Resuming {folder.path} after epoch {len(state.history)}{step}")
    return _train(experiment, folder, progress, interruption, state=state, rates=rates)


def _begin(experiment: Experiment, progress: RunProgress) -> None:
    """Check that all processes agree, announce the run, and compute the features for a frozen backbone."""
    _require_consistent(experiment)
    setup.announce(experiment, progress)
    compute_features(experiment, progress)


def _require_consistent(experiment: Experiment) -> None:
    """Check that all processes would compute bit-identical results."""
    machine, plan = hardware.detect(), experiment.plan
    cpu = {"the CPU": machine.cpu, "its instructions and caches": machine.cpu_features}
    code = {"the code of onecycle": environment.code_digest(), "the native kernels": environment.kernels_of(plan)}
    consistency.require_consistent({**identity(experiment), **cpu, **code}, experiment.group)


def _screen(console: Console, group: ProcessGroup) -> Console:
    """`console` on the main process, and a silent console on the other processes."""
    return console if group.is_main_process else Console(quiet=True)


def find_rates(config: Config, console: Console) -> RunFolder:
    """Run only the LR finder. Write its curve and plot into a new folder.

    Raises:
        OnecycleError: when the configuration cannot be run; no folder is left behind.
    """
    with watched(), process_group.init() as group, ExitStack() as stack:
        consistency.require_divisible(config.shards, group.size)
        _require_out(config, group)
        with RunProgress(_screen(console, group)) as progress:
            experiment = assemble(config, group=group)
            _begin(experiment, progress)
            folder = _new_folder(experiment, "find-lr", None, stack)
            try:
                _sweep(experiment, folder, progress)
            except BaseException:
                folder.discard()
                raise
        if group.is_main_process:
            finished.draw_plots(folder)
        group.wait_for_main_process()
        return folder


def _require_out(config: OutputConfig, group: ProcessGroup) -> None:
    """Refuse an unusable --out before the time-consuming work."""
    if group.is_main_process:
        require_parent(config.out)


def _new_folder(experiment: Experiment, name: str, path: Path | None, stack: ExitStack) -> RunFolder:
    """The folder of a new run. Every process except the main one gets a temporary folder, which `stack` removes."""
    if experiment.group.is_main_process:
        return setup.create_folder(experiment, name, path)
    return stack.enter_context(scratch())


def _sweep(experiment: Experiment, folder: RunFolder, progress: RunProgress) -> LRCurve:
    progress.start_sweep(SWEEP_STEPS)
    try:
        with experiment.group.watch_progress():
            curve = find_lr(
                experiment.trained,
                experiment.optimizer,
                experiment.train.at_last_size(),  # a change of the image size would make the loss jump
                plan=experiment.plan,
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
    """LR min and LR max. The LR finder chooses those that the configuration leaves open."""
    lr_min, lr_max = experiment.config.lr_min, experiment.config.lr_max
    if lr_min is None or lr_max is None:
        curve = folder.read_lr_curve() or _sweep(experiment, folder, progress)
        lr_min = curve.lr_min if lr_min is None else lr_min
        lr_max = curve.lr_max if lr_max is None else lr_max
    if lr_min > lr_max:
        raise InputError(f"LR min {lr_min:.2e} is above LR max {lr_max:.2e}; set both --lr-min and --lr-max")
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
    config, group = experiment.config, experiment.group
    lr_min, lr_max = rates
    last: Evaluation | None = None  # the evaluation of the last epoch
    board = _board(experiment, folder, state)
    plan_check = PlanCheck(experiment)

    def after_step(report: StepReport) -> None:
        state.after_step(report)
        progress.step(report)
        if line := plan_check.after_step(report):
            progress.say(line)

    def after_epoch(record: EpochRecord, evaluation: Evaluation) -> None:
        nonlocal last
        last = evaluation
        try:
            state.after_epoch(record)
        finally:
            progress.epoch(record)  # print only now: if printing fails, the epoch is already saved
        if board:
            board.epoch(record)

    progress.start_training(config.epochs, len(experiment.train), experiment.dataset.epoch_evaluated_on)
    with group.watch_progress():
        with failure_reported(folder, config, group, lr_max=lr_max):
            with interruption.deferred():
                fit(
                    experiment.trained,
                    experiment.optimizer,
                    experiment.train,
                    experiment.epoch_evaluation,
                    epochs=config.epochs,
                    lr_min=lr_min,
                    lr_max=lr_max,
                    peak_fraction=config.peak_fraction,
                    evaluated_on=experiment.dataset.epoch_evaluated_on,
                    plan=experiment.plan,
                    first_epoch=len(state.history),
                    last_step=state.last_step,
                    after_step=after_step,
                    after_evaluation_batch=state.stop_if_signaled,
                    after_epoch=after_epoch,
                )
            consistency.agree_to_stop(group)  # a signal may have arrived while the last epoch was saved
            interruption.check()
            evaluation, validation = _evaluations(experiment, last)
            train_sample = results.evaluate_training_sample(experiment)
            tta = _evaluate_with_tta(experiment) if config.test_time_augmentation else None
        if group.is_main_process:
            _conclude(
                experiment,
                folder,
                evaluation,
                progress,
                state=state,
                rates=rates,
                train_sample=train_sample,
                tta=tta,
                validation=validation,
            )
            if board:
                board.complete(config, folder.read_result(), folder.plots)
        group.wait_for_main_process()
    folder.remove_checkpoints()  # this comes last, because a run with a result and no checkpoints counts as complete
    return folder


def _board(experiment: Experiment, folder: RunFolder, state: RunState) -> TensorBoard | None:
    if experiment.config.tensorboard and experiment.group.is_main_process:
        return TensorBoard(folder.tensorboard, state.history, experiment.dataset.epoch_evaluated_on)
    return None


def _conclude(
    experiment: Experiment,
    folder: RunFolder,
    evaluation: Evaluation,
    progress: RunProgress,
    *,
    state: RunState,
    rates: tuple[float, float],
    train_sample: Evaluation,
    tta: TTAResult | None,
    validation: Evaluation | None,
) -> None:
    """Write the results, the plots and the report."""
    calibration = results.fitted_temperature(validation) if validation else None
    results.write(
        experiment,
        folder,
        evaluation,
        state.history,
        margins=state.margins,
        rates=rates,
        train_sample=train_sample,
        tta=tta,
        calibration=calibration,
        seconds=state.seconds,
    )
    if warning := folder.read_result().warning:
        progress.warn(warning)
    finished.draw_plots(folder)
    if experiment.config.report:
        predictor = replace(experiment.predictor, temperature=folder.read_result().temperature)
        finished.interpret_run(folder, predictor, experiment.dataset)
        progress.say(f"Report: {finished.write_report(folder)}")


def _evaluations(experiment: Experiment, last: Evaluation | None) -> tuple[Evaluation, Evaluation | None]:
    """The evaluation of `dataset.evaluation`, which gives the result, and the evaluation of the validation images.

    The second is None if there are no validation images.

    `last` is the evaluation of the last epoch. It is None if the run was interrupted after that epoch and then resumed.
    """
    dataset = experiment.dataset
    if last is None:
        batches, split = experiment.epoch_evaluation, dataset.epoch_evaluated_on
        last = evaluate(experiment.trained, batches, evaluated_on=split, plan=experiment.plan)
    if experiment.epoch_evaluation is experiment.evaluation:
        evaluation = last
    else:  # `last` used the validation images, or features instead of images
        evaluation = _evaluate(experiment, experiment.model, dataset.evaluated_on)
    return evaluation, last if dataset.epoch_evaluated_on == "validation" else None


def _evaluate(experiment: Experiment, model: ModelComposite, evaluated_on: str) -> Evaluation:
    return evaluate(model, experiment.evaluation, evaluated_on=evaluated_on, plan=experiment.plan)


def _evaluate_with_tta(experiment: Experiment) -> TTAResult:
    started = time.perf_counter()
    model = TestTimeAugmentation(experiment.model)
    evaluation = _evaluate(experiment, model, f"augmented {experiment.dataset.evaluated_on}")
    return TTAResult(evaluation.accuracy, time.perf_counter() - started)
