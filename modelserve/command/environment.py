"""Flags by environment variables: MODELSERVE_DRAIN_TIMEOUT is `--drain-timeout`.

A flag takes precedence over its variable, which takes precedence over the default. An empty
variable counts as unset. A switch is true or false, 1 or 0, yes or no, on or off. The values of a
repeatable flag are separated by white space; a flag on the command line replaces all of them.
"""

from argparse import SUPPRESS, Action, ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = [
    "FALSE", "TRUE", "Repeated", "Switch", "WrongVariable", "fill_in", "show_variables", "spelled",
    "wrong_option",
]  # fmt: skip

_PREFIX: Final = "MODELSERVE_"
TRUE: Final = ("1", "true", "yes", "on")
FALSE: Final = ("0", "false", "no", "off")
# Kubernetes sets such values for a service called modelserve, or modelserve-something.
_OF_SERVICES: Final = ("tcp://", "udp://", "sctp://")
_UNSET: Final = object()


class WrongVariable(ValueError):
    """An environment variable has an invalid value."""

    def __init__(self, variable: str, problem: object) -> None:
        super().__init__(f"the environment variable {variable}: {problem}")


class Switch(BooleanOptionalAction):
    """A flag without a value, and its `--no-` form; its help is left as it is."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, **options)
        self.help = options.get("help")  # some versions of Python add the default


class Repeated(Action):
    """A flag that may be given several times; the first value replaces the default."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, self.dest)
        before = given if isinstance(given, list) and given is not self.default else []
        setattr(namespace, self.dest, [*before, values])


def show_variables(parser: ArgumentParser) -> None:
    """Add the name of each flag's variable to its help."""
    for variable, flag in _flags_of(parser):
        flag.help = f"{flag.help or ''} [{variable}]".lstrip()


def fill_in(
    parser: ArgumentParser,
    arguments: Sequence[str] | None,
    environ: Mapping[str, str],
    read: Callable[[Sequence[str]], Namespace],
) -> Namespace:
    """Parse arguments; take missing ones from the environment.

    The result's `variables` has the variable of each flag that comes from one.

    Args:
        read: Parses the words of one flag. Raises ValueError.

    Raises WrongVariable. The parser reports invalid arguments.
    """
    found: dict[str, tuple[str, Any]] = {}
    for variable, flag in _flags_of(parser):
        if text := _text_of(variable, environ):
            try:
                options = read(_words_of(flag, text))
            except ValueError as exc:
                problem = f"{exc}".removeprefix(f"{flag.option_strings[0]}: ".lstrip("-"))
                raise WrongVariable(variable, problem) from None
            found[flag.dest] = variable, getattr(options, flag.dest)
    options = parser.parse_args(arguments, Namespace(**dict.fromkeys(found, _UNSET)))
    options.variables = {}
    for name, (variable, value) in found.items():
        if getattr(options, name) is _UNSET:
            setattr(options, name, value)
            options.variables[name] = variable
    return options


def spelled(options: Namespace, name: str) -> str:
    """Return the name by which an option was set: its flag or its variable."""
    variable: str | None = options.variables.get(name)
    return f"--{name.replace('_', '-')}" if variable is None else variable


def wrong_option(options: Namespace, name: str, problem: object) -> ValueError:
    """Return the error for an option: WrongVariable if it comes from a variable."""
    variable = options.variables.get(name)
    return ValueError(problem) if variable is None else WrongVariable(variable, problem)


def _flags_of(parser: ArgumentParser) -> Iterator[tuple[str, Action]]:
    """Yield each flag of the help that has a value or is a switch, with its variable."""
    for action in parser._actions:
        if action.option_strings and action.help != SUPPRESS and action.dest not in _NO_VARIABLE:
            yield _PREFIX + action.dest.upper(), action


_NO_VARIABLE: Final = ("help", "version")


def _text_of(variable: str, environ: Mapping[str, str]) -> str:
    text = environ.get(variable, "")
    is_of_service = variable.endswith("_PORT") and text.startswith(_OF_SERVICES)
    return "" if is_of_service else text


def _words_of(flag: Action, text: str) -> list[str]:
    """Return a flag and its text as words of a command line. Raises ValueError."""
    if isinstance(flag, Switch):
        on, off = flag.option_strings
        word = text.strip().lower()
        if word not in TRUE + FALSE:
            raise ValueError(f"{text!r} is neither true nor false")
        return [on if word in TRUE else off]
    values = text.split() if isinstance(flag, Repeated) else [text]
    return [f"{flag.option_strings[0]}={value}" for value in values]
