"""Where the command line takes its values from when it is not given them: a recipe, a saved configuration, a run."""

import re
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.config import Dict

from onecycle.core.config import BASELINE, RECIPES, Config
from onecycle.core.errors import InputError
from onecycle.distributed import job


def fill_in(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Let the values of `--config`, `--recipe` or `--resume` stand where the command line gives none.

    Raises:
        InputError: when options exclude each other, or a whole number is none.
    """
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    for argument in arguments:
        if argument.hint in (int, int | None, tuple[int, ...]):
            for token in argument.tokens:
                # Left alone, 1.5 epochs would be rounded to 2.
                absent = argument.hint == int | None and token.value.lower() == "none"
                if not (absent or re.fullmatch(r"[+-]?\d+", token.value)):
                    raise InputError(f"{argument.name} is {token.value!r}; it must be a whole number")
    if "--epochs" not in {argument.name for argument in arguments}:
        return
    if "--resume" in given:
        is_study = "study" in commands
        # A run takes options, and says which of them are not as it began.
        allowed = {"--resume", "--engine", "--address"}
        if refused := given.keys() - allowed if is_study else given.keys() & {"--config"}:
            raise InputError(f"--resume goes on as it was configured; leave out {', '.join(sorted(refused))}")
        if is_study:
            return
        from onecycle.storage.run_folder import RunFolder

        if job.is_part() and not Path(given["--resume"]).exists():
            return  # another machine has it
        start = RunFolder.open(Path(given["--resume"])).read_config()
    elif "--config" in given:
        if "--recipe" in given:
            raise InputError("--config names the recipe; leave out --recipe")
        start = Config.load(Path(given["--config"]))
    else:
        # An unknown recipe is refused when the arguments are converted.
        start = RECIPES.get(given.get("--recipe", ""), BASELINE)
    values = {name: value for name, value in start.to_json().items() if value is not None}
    Dict(values, use_commands_as_keys=False)(app, commands, arguments)
