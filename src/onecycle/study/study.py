"""Plan and carry out a study: train a recipe and its variants with several seeds. A study has one folder."""

import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Self, get_args

from rich.console import Console

from onecycle.compute import hardware
from onecycle.core.config import Config
from onecycle.core.console import OutputConsole
from onecycle.core.errors import InputError, OnecycleError
from onecycle.core.files import locked, reading, replacing
from onecycle.core.older_records import with_current_names
from onecycle.core.option_groups import LARGEST_SEED, FromData
from onecycle.core.own_network import is_own_network, option_of, require_consent
from onecycle.core.recipes import RECIPES
from onecycle.core.regular_files import read_regular
from onecycle.core.signals import Interrupted
from onecycle.models import OwnNetwork
from onecycle.run.initial_weights import with_digest
from onecycle.storage.run_folder import MOST_JSON_BYTES, RunFolder, new_folder
from onecycle.study import summary
from onecycle.study.run import LOCAL_STUDY_ENGINE, StudyEngine, StudyRun

# These fields keep the values of the study's configuration, even if a variant changes the recipe.
_SHARED = (
    *("data", "coarse", "labels", "validation", "limit", "init", "init_sha256"),
    *("out", "device", "precision", "workers", "shards", "report", "tensorboard"),
)
_VARIABLE = ("precision", "shards")  # variants may differ in these shared fields

_TABLE_WIDTH = 140  # characters, when the output does not go to a terminal
_LONGEST_NAME = 200  # characters; file systems allow 255 bytes
_MOST_RUNS = 10_000


@dataclass(frozen=True, kw_only=True)
class Study:
    """The plan of a study: every variant with `seeds` seeds, starting at `config.seed`. Saved as `study.json`."""

    config: Config
    seeds: int
    variants: dict[str, dict[str, Any]]  # changes to `config` by variant name; the first variant is the reference
    threshold: float  # an accuracy, as a fraction; the summary shows the share of runs that reach it
    cores: int  # CPU cores for each run; their number affects the last bits of the results
    own_networks: dict[str, str]  # the SHA-256 of the source file of each network of the user's own, by its name

    def runs(self) -> list[tuple[str, Config]]:
        """The variant name and the configuration of every run. The runs with the same seed are consecutive."""
        seeds = range(self.config.seed, self.config.seed + self.seeds)
        return [(name, self.config_of(changes, seed)) for seed in seeds for name, changes in self.variants.items()]

    def config_of(self, changes: Mapping[str, Any], seed: int) -> Config:
        """The configuration of one run.

        Raises:
            InputError: when a changed value is not allowed.
        """
        start = self.config
        named_size = {"size": start.size} if start.size != RECIPES[start.recipe].size else {}
        if isinstance(other := changes.get("recipe"), str) and other in RECIPES:
            shared = {field: getattr(start, field) for field in _SHARED} | named_size
            # The sizes of the other recipe must end with the named size.
            open_fields = get_args(FromData) if start.from_data else ("sizes",) if named_size else ()
            start = replace(RECIPES[other], from_data=open_fields, **shared)
        from_data = [field for field in start.from_data if field not in changes]
        values = {**start.to_json(), "from_data": from_data, **changes, "seed": seed}
        if "network" in changes or not values["network_sha256"]:
            values["network_sha256"] = self.own_networks.get(str(values["network"]))
        return Config.from_json(values)

    def runs_in(self, path: Path) -> list[StudyRun]:
        """All runs, with their folders in the study folder `path`."""
        planned = self.runs()
        return [
            StudyRun(
                name=f"{name}, seed {config.seed}",
                place=f"{number}/{len(planned)}",
                folder=folder_of(path, name, config.seed),
                config=config,
                cores=self.cores,
            )
            for number, (name, config) in enumerate(planned, start=1)
        ]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "config": self.config.to_json()}

    @classmethod
    def of(
        cls,
        config: Config,
        changes: Sequence[dict[str, Any]],
        *,
        seeds: int,
        threshold: float,
        cores: int | None,
        own_networks: dict[str, str],
    ) -> Self:
        """A study with one variant for each of the `changes` to `config`. If `cores` is None, runs use all cores.

        `own_networks` has the SHA-256 of the source file of each network of the user's own, by the network's name.

        Raises:
            InputError: when a value is not allowed, or two runs would be the same.
        """
        if seeds < 1 or config.seed + seeds - 1 > LARGEST_SEED:
            raise InputError(f"--seeds is {seeds}; it must be at least 1, and the last seed must be below 2**63")
        if not 0 < threshold < 1:
            raise InputError(f"--threshold is {threshold}; it must be an accuracy between 0 and 1")
        if cores is not None and cores < 1:
            raise InputError(f"--cores is {cores}; it must be at least 1")
        if seeds * len(changes) > _MOST_RUNS:
            raise InputError(
                f"--seeds is {seeds}; it must be at most {_MOST_RUNS // len(changes)} for {len(changes)} variants"
            )
        for field in itertools.chain.from_iterable(changes):
            _require_variable(field)
        variants = {_name(change) or config.recipe: change for change in changes}
        cores = cores or hardware.usable_cores()
        study = cls(
            config=config, seeds=seeds, variants=variants, threshold=threshold, cores=cores, own_networks=own_networks
        )
        different = {study.config_of(change, config.seed) for change in changes}
        if min(len(different), len(variants)) < max(1, len(changes)):
            raise InputError(
                "two variants are the same run; list each value once, and do not list the recipe's own value in --vary"
            )
        if too_long := [name for name in variants if len(name) > _LONGEST_NAME]:
            raise InputError(f"{too_long[0][:40]}… is too long for a folder name; vary fewer fields at once")
        return study

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            InputError: when the study cannot be run.
            AttributeError, KeyError, TypeError, ValueError: when `values` does not describe a study.
        """
        config, changes = Config.from_json(values["config"]), list(values["variants"].values())
        # Studies of an earlier version have neither `cores` nor `own_networks`.
        cores, own_networks = values.get("cores"), values.get("own_networks", {})
        study = cls.of(
            config,
            changes,
            seeds=values["seeds"],
            threshold=values["threshold"],
            cores=cores,
            own_networks=own_networks,
        )
        if any("/" in name for name in values["variants"]):
            raise InputError("an earlier version of onecycle planned this study; start it again")
        if study.variants != values["variants"] or not (isinstance(study.seeds, int) and isinstance(study.cores, int)):
            raise ValueError("a variant's name does not match its changes, or seeds or cores is not an integer")
        return study


def plan(
    config: Config,
    *,
    seeds: int,
    grid: Sequence[str] = (),
    vary: Sequence[str] = (),
    threshold: float = 0.9,
    cores: int | None = None,
) -> Study:
    """Plan a study of `config` and its variants.

    With `grid`, the variants are all combinations of the values. With `vary`, they are `config` itself, and `config`
    with one value changed at a time. Both arguments are strings like "flip=random,alternating". Each run uses `cores`
    cores, by default all cores of this machine.

    Raises:
        InputError: for a malformed string, an unknown field or value, two identical runs, missing initial weights, or
            a network of the user's own that cannot be loaded.
    """
    if grid and vary:
        raise InputError("--grid combines values, but --vary changes one value at a time; use only one of them")
    choices = [[{field: value} for value in values] for field, values in map(_parsed, grid)]
    combined = [dict(item for choice in chosen for item in choice.items()) for chosen in product(*choices)]
    changes = [*combined, *({field: value} for field, values in map(_parsed, vary) for value in values)]
    if any(len(choice) < len(grid) for choice in combined):
        raise InputError("--grid lists a field twice; give all values of a field in one --grid")
    # Record the digests of the initial weights and of the user's own networks. A run fails if these have changed since.
    # So all runs of a variant train the same network from the same weights.
    networks = {str(change.get("network", config.network)) for change in changes}
    own = {name: OwnNetwork.load(name).sha256 for name in sorted(networks) if is_own_network(name)}
    return Study.of(with_digest(config), changes, seeds=seeds, threshold=threshold, cores=cores, own_networks=own)


def start(study: Study, console: Console, engine: StudyEngine = LOCAL_STUDY_ENGINE) -> Path:
    """Carry out a study in a new folder, or continue the same study if it was stopped before. Returns the folder.

    Raises:
        OnecycleError: when the folder cannot be created; also when a run fails, but only after all runs have ended.
    """
    name = f"study-{study.config.recipe}"
    if path := _find_stopped(study, name):
        console.out("Resuming this study, which was started earlier.", highlight=False)
    else:
        path = new_folder(study.config.out, name)
        _write(path / "study.json", study.to_json())
    _run(path, study, console, engine)
    return path


def _find_stopped(study: Study, name: str) -> Path | None:
    """The newest folder of `study` that has unfinished runs and that no other process uses, or None."""
    for path in sorted(study.config.out.glob(f"{name}*"), reverse=True):
        with suppress(OnecycleError):  # ignore a folder that cannot be used
            if _read(path) == study and not all(run.is_done() for run in study.runs_in(path)):
                with locked(path):
                    return path
    return None


def resume(
    path: Path, console: Console, engine: StudyEngine = LOCAL_STUDY_ENGINE, *, network: str | None = None
) -> None:
    """Carry out the remaining runs of the study in `path`.

    If the study trains the user's own network, its code is imported only if `network` names that code.

    Raises:
        OnecycleError: when there is no such study. If a run fails, the error is raised after all runs have ended.
    """
    study = _read(path)
    if len(study.own_networks) > 1:
        raise InputError(
            f"{path} trains several networks of your own, and --network can name only one; repeat the command that "
            "started the study"
        )
    for _, config in study.runs():
        require_consent(config.network, network, str(path))
    _run(path, study, console, engine)


def _read(path: Path) -> Study:
    if not path.is_dir():
        raise InputError(f"there is no study folder {path}; check the name")
    with reading(path / "study.json"):
        return Study.from_json(with_current_names(json.loads(read_regular(path / "study.json", MOST_JSON_BYTES))))


def _run(path: Path, study: Study, console: Console, engine: StudyEngine) -> None:
    console.out(f"Study folder: {path}", highlight=False)
    with locked(path):
        try:
            failed = _run_all(path, study, console, engine)
        except Interrupted as stopped:
            if len(study.own_networks) > 1:
                raise Interrupted(stopped.number, "repeat the command to go on") from None
            (own, *_) = [option for _, config in study.runs() if (option := option_of(config.network))] or [""]
            command = f"onecycle study --resume {shlex.quote(str(path))}{own}"
            raise Interrupted(stopped.number, f"`{command}` continues the study") from None
        wide = console if console.is_terminal else OutputConsole(file=console.file, width=_TABLE_WIDTH)
        with suppress(Interrupted):  # all runs have ended, so it is no interruption if nobody reads the table
            wide.print(summary.table(_summary(path, study)))
        if failed:
            raise InputError(
                f"{len(failed)} of {len(study.runs())} runs failed; the first is {failed[0]}; start the study again to "
                "repeat them"
            )


def _run_all(path: Path, study: Study, console: Console, engine: StudyEngine) -> list[str]:
    """Carry out the runs that are left, and write the summary. Returns a line for each run that failed."""
    runs = study.runs_in(path)
    failed: list[str] = []
    left: list[StudyRun] = []

    def fail(run: StudyRun, reason: str) -> None:
        failed.append(f"{run.name}: {reason}")
        console.out(failed[-1], highlight=False)

    for run in runs:
        try:
            if not run.is_done():
                left.append(run)
        except OnecycleError as error:
            fail(run, str(error))
    for run, failure in engine.carry_out(left, console):
        if failure:
            fail(run, failure)
            continue
        with suppress(OnecycleError):  # the summary at the end reports this error
            _write(path / "summary.json", _summary(path, study))
    _write(path / "summary.json", _summary(path, study))
    return failed


def folder_of(path: Path, variant: str, seed: int) -> Path:
    """The run folder of the given variant and seed, in the study folder `path`."""
    return path / variant / f"seed-{seed}"


def _summary(path: Path, study: Study) -> dict[str, Any]:
    done: dict[str, list[RunFolder]] = {name: [] for name in study.variants}
    for name, config in study.runs():
        folder = RunFolder(folder_of(path, name, config.seed))
        if folder.is_complete:
            done[name].append(folder)
    return {"recipe": study.config.recipe, **summary.summarize(done, study.threshold)}


def _write(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def _parsed(text: str) -> tuple[str, list[Any]]:
    field, equals, values = text.partition("=")
    field = field.strip().replace("-", "_")
    if not equals:
        raise InputError(f"{text!r} is not of the form field=value,value")
    _require_variable(field)
    return field, [_value(field, value.strip()) for value in values.split(",")]


def _require_variable(field: str) -> None:
    """Check that variants may differ in `field`. All variants have the same data, initial weights and output.

    Raises:
        InputError: when variants may not differ in `field`.
    """
    fixed = {"seed", "from_data", "network_sha256", *_SHARED} - {*_VARIABLE}
    allowed = [f.name for f in fields(Config) if f.name not in fixed]
    if field not in allowed:
        raise InputError(f"variants cannot differ in {field!r}; they can differ in {', '.join(allowed)}")


def _value(field: str, text: str) -> Any:
    if field in ("sizes", "widths") and re.fullmatch(r"\d+(-\d+)*", text):
        return [int(part) for part in text.split("-")]
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _name(changes: Mapping[str, Any]) -> str:
    def word(value: Any) -> str:
        return "-".join(map(str, value)) if isinstance(value, list) else str(value)

    name = ",".join(f"{field}={word(value)}" for field, value in changes.items())
    return name.replace("/", "%2F").replace("\\", "%5C")  # the name is that of a folder
