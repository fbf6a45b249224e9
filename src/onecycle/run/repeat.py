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

    `plan` is None if this machine cannot carry out the plan.
    """

    path: str
    fingerprint: str
    plan: ComputePlan | None
    differences: tuple[str, ...]

    def announce(self, fingerprint: str, progress: RunProgress) -> None:
        """Print whether the result will have the same bits as that of the repeated run, on data with `fingerprint`."""
        data = [] if fingerprint == self.fingerprint else ["the data differs"]
        if differing := [*data, *self.differences]:
            progress.warn(f"This run repeats {self.path}, but its result may differ: {'; '.join(differing)}")
        else:
            progress.say(f"This run repeats {self.path} with its compute plan, so the result has the same bits")


def find(config: Config, folder: Path | None, group: ProcessGroup) -> Repetition | None:
    """The run in `folder` on the main process, if it was trained with `config`. None if there is no such run.

    Raises:
        InputError: when the record of the run is damaged.
    """
    values = group.broadcast_object(lambda: _found(config, RunFolder(folder), group) if folder else None)
    if values is None:
        return None
    plan = values["plan"] and ComputePlan.from_json(values["plan"])
    return Repetition(values["path"], values["fingerprint"], plan, tuple(values["differences"]))


def _found(config: Config, run: RunFolder, group: ProcessGroup) -> dict[str, Any] | None:
    is_run = run.config.exists() and run.environment.exists()
    if not is_run or run.read_config().defining_values() != config.defining_values():
        return None
    machine, plan = hardware.detect(), environment.recorded_plan(run)
    then, now = environment.recorded_versions(run), environment.versions(environment.COMPUTING)
    differing = differences(then, now)
    if environment.recorded_code(run) not in (None, environment.code_digest()):
        differing.append("the code of onecycle has changed")
    try:
        plan.require(machine)
    except InputError as error:
        return _values(run, None, [*differing, f"the compute plan was {plan}, but {error}"])
    if other := environment.other_machine(run, machine, plan):
        differing.append(f"it was trained on {other}")
    if plan.threads and plan.threads > machine.cores:
        processes = environment.recorded_processes(run)
        differing.append(
            f"it had {processes} × {plan.threads} threads (processes × threads), and this run has {group.size} × "
            f"{machine.cores}; use --processes {processes} on as many cores"
        )
        plan = replace(plan, threads=machine.cores)
    return _values(run, plan, differing)


def _values(run: RunFolder, plan: ComputePlan | None, differing: list[str]) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "fingerprint": environment.recorded_fingerprint(run),
        "plan": plan and plan.to_json(),
        "differences": differing,
    }
