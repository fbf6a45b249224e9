"""Many complete runs of a recipe and its variants, over seeds. A study is a folder of run folders."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from onecycle.compute import hardware
from onecycle.core.config import RECIPES, Config
from onecycle.core.errors import InputError
from onecycle.core.files import locked, reading, replacing
from onecycle.core.signals import Interrupted
from onecycle.storage.run_folder import RunFolder, new_folder
from onecycle.study import summary
from onecycle.study.run import LOCAL, Engine, StudyRun

# Of another recipe a run takes all but these: what it is trained on, and where and how.
_SHARED = ("data", "validation", "limit", "out", "device", "precision", "workers", "report", "tensorboard")

_WIDTH_OF_FILES = 140  # characters of the table where no terminal says how many there are
_LONGEST_NAME = 200  # characters; file systems allow 255 bytes


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is to be run: every variant with seeds `config.seed`, `config.seed + 1` and so on. `study.json`."""

    config: Config
    seeds: int
    variants: dict[str, dict[str, Any]]  # the changes to `config`, by name; the first is what others are compared with
    threshold: float  # an accuracy, a fraction
    cores: int  # that each run computes with, on which its last bits depend

    def runs(self) -> list[tuple[str, Config]]:
        """Every run as its variant's name and its configuration, a seed's runs one after another."""
        seeds = range(self.config.seed, self.config.seed + self.seeds)
        return [(name, self.configured(changes, seed)) for seed in seeds for name, changes in self.variants.items()]

    def configured(self, changes: Mapping[str, Any], seed: int) -> Config:
        """The configuration of one run.

        Raises:
            InputError: when a change is not allowed.
        """
        start = self.config
        if isinstance(other := changes.get("recipe"), str) and other in RECIPES:
            start = replace(RECIPES[other], **{field: getattr(start, field) for field in _SHARED})
        return Config.from_json({**start.to_json(), **changes, "seed": seed})

    def runs_in(self, path: Path) -> list[StudyRun]:
        """The same, in the study folder `path`."""
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
        cls, config: Config, changes: Sequence[dict[str, Any]], *, seeds: int, threshold: float, cores: int | None
    ) -> Self:
        """The study of `config` with each of these changes, on all of this machine's cores where `cores` is None.

        Raises:
            InputError: when it cannot be run, or would make the same run twice.
        """
        if seeds < 1 or config.seed + seeds > 2**64:
            raise InputError(f"--seeds is {seeds}; it must be at least 1, and the last seed below 2**64")
        if not 0 < threshold < 1:
            raise InputError(f"--threshold is {threshold}; it must be an accuracy between 0 and 1")
        if cores is not None and cores < 1:
            raise InputError(f"--cores is {cores}; it must be at least 1")
        variants = {_name(change) or config.recipe: change for change in changes}
        cores = cores or hardware.usable_cores()
        study = cls(config=config, seeds=seeds, variants=variants, threshold=threshold, cores=cores)
        if len({study.configured(change, config.seed) for change in changes}) < max(1, len(changes)):
            raise InputError("two of these variants are the same run; name every field and every other value once")
        if too_long := [name for name in variants if len(name) > _LONGEST_NAME]:
            raise InputError(f"{too_long[0][:40]}… is too long for the name of a folder; vary fewer fields at once")
        return study

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            InputError: when they are of a study that cannot be run.
            AttributeError, KeyError, TypeError, ValueError: when they are of none.
        """
        config, changes = Config.from_json(values["config"]), list(values["variants"].values())
        cores = values.get("cores")  # None in a study of an earlier version
        study = cls.of(config, changes, seeds=values["seeds"], threshold=values["threshold"], cores=cores)
        if study.variants != values["variants"] or not (isinstance(study.seeds, int) and isinstance(study.cores, int)):
            raise ValueError("it does not name its variants as a study does")
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
    """A study of `config`: of all combinations of `grid`, or of `config` itself and of each value of `vary` alone.

    Both hold texts such as "flip=random,alternating". Each run computes with `cores`, or all that this machine has.

    Raises:
        InputError: when a text is not of this form, names a field or a value that `Config` does not have, or makes the
            same run twice.
    """
    if grid and vary:
        raise InputError("--grid combines values and --vary takes each alone; give one of them")
    choices = [[{field: value} for value in values] for field, values in map(_parsed, grid)]
    combined = [dict(item for choice in chosen for item in choice.items()) for chosen in product(*choices)]
    changes = [*combined, *({field: value} for field, values in map(_parsed, vary) for value in values)]
    if any(len(choice) < len(grid) for choice in combined):
        raise InputError("--grid names a field twice; give all of its values at once")
    return Study.of(config, changes, seeds=seeds, threshold=threshold, cores=cores)


def begin(study: Study, console: Console, engine: Engine = LOCAL) -> Path:
    """Run a study in a folder of its own, and return the folder: a new one, unless the same study was stopped before.

    Raises:
        InputError: when the folder cannot be made, or a run fails; the others are run all the same.
    """
    name = f"study-{study.config.recipe}"
    if path := _stopped(study, name):
        console.print("This study was begun before, and goes on.", highlight=False)
    else:
        path = new_folder(study.config.out, name)
        _write(path / "study.json", study.to_json())
    _run(path, study, console, engine)
    return path


def _stopped(study: Study, name: str) -> Path | None:
    """The newest folder of this very study that has runs left to do and that no process is at work on."""
    for path in sorted(study.config.out.glob(f"{name}*"), reverse=True):
        with suppress(InputError):  # of a folder that cannot be gone on with
            if _read(path) == study and not all(run.is_done() for run in study.runs_in(path)):
                with locked(path):
                    return path
    return None


def go_on(path: Path, console: Console, engine: Engine = LOCAL) -> None:
    """Do what is left of the study in `path`.

    Raises:
        InputError: when there is none, or a run fails; the others are run all the same.
    """
    _run(path, _read(path), console, engine)


def _read(path: Path) -> Study:
    if not path.is_dir():
        raise InputError(f"there is no study folder {path}")
    with reading(path / "study.json"):
        return Study.from_json(json.loads((path / "study.json").read_text()))


def _run(path: Path, study: Study, console: Console, engine: Engine) -> None:
    console.print(f"Study folder: {path}", highlight=False, soft_wrap=True)
    with locked(path):
        try:
            _run_all(path, study, console, engine)
        except Interrupted as stopped:
            raise Interrupted(stopped.number, f"`onecycle study --resume {path}` goes on") from None


def _run_all(path: Path, study: Study, console: Console, engine: Engine) -> None:
    runs = study.runs_in(path)
    failed: list[str] = []
    left: list[StudyRun] = []

    def fail(run: StudyRun, error: InputError) -> None:
        failed.append(f"{run.name}: {error}")
        console.print(failed[-1], highlight=False, soft_wrap=True)

    for run in runs:
        try:
            if not run.is_done():
                left.append(run)
        except InputError as error:
            fail(run, error)
    for run, failure in engine.carry_out(left, console):
        if failure:
            fail(run, failure)
            continue
        with suppress(InputError):  # of another run, which the summary at the end will name
            _write(path / "summary.json", _summary(path, study))
    _write(path / "summary.json", _summary(path, study))
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDTH_OF_FILES)
    wide.print(summary.table(_summary(path, study)))
    if failed:
        raise InputError(f"{len(failed)} of {len(runs)} runs failed, the first is {failed[0]}")


def folder_of(path: Path, variant: str, seed: int) -> Path:
    """The folder of a run of the study in `path`."""
    return path / variant / f"seed-{seed}"


def _summary(path: Path, study: Study) -> dict[str, Any]:
    done: dict[str, list[RunFolder]] = {name: [] for name in study.variants}
    for name, config in study.runs():
        folder = RunFolder(folder_of(path, name, config.seed))
        if folder.complete:
            done[name].append(folder)
    return {"recipe": study.config.recipe, **summary.summarize(done, study.threshold)}


def _write(path: Path, values: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def _parsed(text: str) -> tuple[str, list[Any]]:
    field, equals, values = text.partition("=")
    allowed = [f.name for f in fields(Config) if f.name == "precision" or f.name not in ("seed", *_SHARED)]
    field = field.strip().replace("-", "_")
    if not equals or field not in allowed:
        raise InputError(f"{text!r} is no variation: give field=value,value with a field of {', '.join(allowed)}")
    return field, [_value(field, value.strip()) for value in values.split(",")]


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

    return ",".join(f"{field}={word(value)}" for field, value in changes.items())
