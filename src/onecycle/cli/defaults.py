"""Fill in missing options from a recipe, a saved configuration or a run."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from cyclopts import App
from cyclopts.config import Dict

from onecycle.core.config import Config
from onecycle.core.errors import InputError
from onecycle.core.option_groups import FromData
from onecycle.core.own_network import require_consent
from onecycle.core.recipes import BASELINE, RECIPES
from onecycle.distributed import job


def fill_in(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Take the values of missing options from `--config`, `--recipe` or `--resume`.

    Raises:
        InputError: when options exclude each other, or the value of an integer option is not a whole number.
    """
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    for argument in arguments:
        if argument.hint in (int, int | None, tuple[int, ...]):
            for token in argument.tokens:
                # Check that the value is a whole number. Otherwise 1.5 epochs would be rounded to 2.
                is_none = argument.hint == int | None and token.value.lower() == "none"
                if not (is_none or re.fullmatch(r"[+-]?\d+", token.value)):
                    raise InputError(f"{argument.name} is {token.value!r}; it must be a whole number")
    if "--epochs" not in {argument.name for argument in arguments}:
        return
    if "--resume" in given:
        is_study = "study" in commands
        # Resuming a study allows only the options below. For a resumed run, a later check refuses changed values.
        allowed = {"--resume", "--engine", "--address", "--network"}
        if refused := given.keys() - allowed if is_study else given.keys() & {"--config"}:
            raise InputError(f"--resume uses the saved configuration; remove {', '.join(sorted(refused))}")
        if is_study:
            return
        from onecycle.storage.run_folder import RunFolder

        if job.is_part() and not Path(given["--resume"]).exists():
            return  # the run folder exists only on another machine of the job
        start = RunFolder.open(Path(given["--resume"])).read_config()
    elif "--config" in given:
        if "--recipe" in given:
            raise InputError("--config includes the recipe; remove --recipe")
        # The user may give a link. `load` refuses links, so resolve the link here.
        start = Config.load(Path(os.path.realpath(given["--config"])))
        if "--init" in given:
            start = replace(start, init_sha256=None)
        if given.get("--network", start.network) != start.network:
            start = replace(start, network=given["--network"], network_sha256=None)
    else:
        # An unknown recipe gets the values of the baseline here. Cyclopts refuses it later.
        recipe = RECIPES.get(given.get("--recipe", ""), BASELINE)
        unnamed = [name for name in get_args(FromData) if f"--{name.replace('_', '-')}" not in given]
        start = replace(recipe, from_data=tuple(unnamed))
    require_consent(start.network, given.get("--network"), given.get("--resume") or given.get("--config") or "")
    values = {name: value for name, value in start.to_json().items() if value is not None}
    Dict(values, use_commands_as_keys=False)(app, commands, arguments)
