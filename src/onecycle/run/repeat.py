"""Repeat a run from its configuration: use its compute plan again, and say what may still change the result."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.distributed.process_group import ProcessGroup
from onecycle.run import environment
from onecycle.run.identity import differences
from onecycle.run.progress import RunProgress
from onecycle.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Repetition:
    """A run that is repeated: its folder, the fingerprint of its data, its compute plan, and what differs now.

    If this machine cannot carry out the plan, `plan` is None. If the record of the run is damaged, `plan` and
    `fingerprint` are both None.
    """

    path: str
    fingerprint: str | None
    plan: ComputePlan | None
    differences: tuple[str, ...]

    def announce(self, fingerprint: str, progress: RunProgress) -> None:
        """Print whether the result will be bit-identical to that of the repeated run.

        `fingerprint` is the fingerprint of the data of this run.
        """
        data = [] if self.fingerprint in (None, fingerprint) else ["the data differs"]
        if differing := [*data, *self.differences]:
            progress.warn(f"This run repeats {self.path}, but its result may differ: {'; '.join(differing)}")
        else:
            progress.say(f"This run repeats {self.path} with its compute plan, so the result has the same bits")


def find(config: Config, folder: Path | None, group: ProcessGroup) -> Repetition | None:
    """The run in the main process's `folder`, if it is complete and was trained with `config`. Otherwise None."""
    values = group.broadcast_object(lambda: _found(config, RunFolder(folder), group) if folder else None)
    if values is None:
        return None
    plan = values["plan"] and ComputePlan.from_json(values["plan"])
    return Repetition(values["path"], values["fingerprint"], plan, tuple(values["differences"]))


def _found(config: Config, run: RunFolder, group: ProcessGroup) -> dict[str, Any] | None:
    try:
        if not run.is_complete or run.read_config().defining_values() != config.defining_values():
            return None
        plan, differing = _compared(run, environment.recorded_plan(run), group)
        fingerprint = environment.recorded_fingerprint(run)
    except InputError:
        plan, differing, fingerprint = None, ["its record cannot be read"], None
    return {
        "path": str(run.path),
        "fingerprint": fingerprint,
        "plan": plan and plan.to_json(),
        "differences": differing,
    }


def _compared(run: RunFolder, plan: ComputePlan, group: ProcessGroup) -> tuple[ComputePlan | None, list[str]]:
    """The plan for repeating `run` (None if this machine cannot carry it out), and what may change the result."""
    machine = hardware.detect()
    differing = differences(environment.recorded_versions(run), environment.versions(environment.COMPUTING))
    if environment.has_other_code(run):
        differing.append("the code of onecycle has changed")
    if environment.was_changed(run):
        differing.append("it was itself resumed with other code or on another machine")
    try:
        plan.require(machine)
    except InputError as error:
        return None, [*differing, f"its compute plan was {plan}, but {error}"]
    if plan.device != "cpu":
        differing.append("runs on a GPU differ in their last bits")
    if other := environment.other_machine(run, machine, plan):
        differing.append(f"it was trained on {other}")
    if plan.threads and plan.threads > machine.cores:
        processes = environment.recorded_processes(run)
        differing.append(
            f"it had {processes} × {plan.threads} threads (processes × threads), and this run has {group.size} × "
            f"{machine.cores}; use --processes {processes} on as many cores"
        )
        plan = replace(plan, threads=machine.cores)
    return plan, differing
