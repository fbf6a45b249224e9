import pwd
from pathlib import Path

import pytest

from onecycle.cli import main
from onecycle.core.cache import cache_folder
from onecycle.core.errors import InputError


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name and a home folder, as in a container that was started with another user id."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)


def test_the_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache_folder().parents


def test_a_user_without_a_home_folder_is_told_to_set_one(nameless: None) -> None:
    with pytest.raises(InputError, match="this user has no home folder, .*; set HOME to a writable folder"):
        cache_folder()


def test_a_user_without_a_home_folder_may_name_the_cache(
    nameless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "onecycle"


def test_an_older_platformdirs_does_not_create_a_folder_named_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path("~", ".cache", name))
    with pytest.raises(InputError, match="no home folder"):
        cache_folder()


def test_training_without_a_home_folder_is_refused_in_one_line(
    nameless: None, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(image_folder)]) == 0
    assert main(["train", "--data", str(image_folder)]) == 2
    assert capsys.readouterr().err.startswith("onecycle: this user has no home folder")
