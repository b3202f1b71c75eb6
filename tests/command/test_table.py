"""The table of the command line's flags."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from modelserve import cli
from modelserve.command.flags import Flags, parse
from modelserve.command.table import FLAGS, LIMITS, Flag, Sets, add_flags
from modelserve.errors import LoadError

VALUES = {
    "model_dir": ["--model-dir", "."],
    "token_file": ["--token-file", "token"],
    "alias": ["--alias", "/a=/v1/models/m:predict"],
}


def test_each_flag_is_a_keyword_argument_and_each_limit_a_flag() -> None:
    assert sorted(flag.name for flag in FLAGS) == sorted(Flags.__annotations__)
    assert [flag.name for flag in FLAGS if flag.sets is Sets.LIMIT] == [*LIMITS]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_the_default_of_a_row_is_that_of_the_parser(flag: Flag) -> None:
    parser = ArgumentParser()
    add_flags(parser)
    assert getattr(parser.parse_args([]), flag.name) == flag.default


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.also], ids=lambda flag: flag.also)
def test_kserves_spelling_sets_the_same_option(flag: Flag) -> None:
    def parsed(spelling: str, value: str) -> Any:
        words = [spelling] if flag.is_switch and value == "" else [spelling, value]
        return getattr(parse(["app.py", *words]), flag.name)

    if flag.name == "predictor_health_check":
        assert parsed(flag.also, "") is True
    elif flag.is_switch:
        assert parsed(flag.also, "false") is False
    else:
        value = str(flag.options.get("choices", ["8"])[0])
        assert parsed(flag.also, value) == parsed(f"--{flag.name.replace('_', '-')}", value)


OF_MODEL_SERVER = [flag for flag in FLAGS if flag.sets in (Sets.LIMIT, Sets.APPLICATION)]


@pytest.mark.parametrize("flag", OF_MODEL_SERVER, ids=lambda flag: flag.name)
def test_a_flag_of_a_model_server_is_refused_for_another_application(
    flag: Flag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "token").write_text("secret")
    target = tmp_path / f"other_than_{flag.name}.py"
    target.write_text("async def app(scope, receive, send): ...\n")
    spelling = f"--{flag.name.replace('_', '-')}"
    words = VALUES.get(flag.name, [spelling] if flag.is_switch else [spelling, "8"])
    with pytest.raises(
        LoadError, match=f"^{spelling} cannot be set from here: .* not a ModelServer"
    ):
        cli.build(parse([str(target), *words]))
