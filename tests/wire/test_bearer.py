"""Tokens that clients can send, and those that nobody can, or everybody."""

from typing import Any

import pytest

from modelserve import ModelServer
from modelserve.wire.bearer import LONGEST_TOKEN, token_problem, valid_token


@pytest.mark.parametrize("token", ["a", "secret", "a.b-c_d~e+f/g==", "x" * LONGEST_TOKEN, '"!~'])
def test_a_token(token: str) -> None:
    assert valid_token(token) == token
    assert ModelServer(token=token).serving.token == token


UNUSABLE = [
    ("", "is empty"),
    (" ", "is empty"),
    ("\r\n", "is empty"),
    ("secret\n", "begins or ends with white space"),
    ("\tsecret", "begins or ends with white space"),
    ("a\nb", "has more than one line"),
    ("a\rb\n", "has more than one line"),
    ("Bearer a", "has a space in it"),
    ("a\0b", "has a control character in it"),
    ("a\x1bb", "has a control character in it"),
    ("a\tb", "has a control character in it"),
    ("a\x7f", "has a control character in it"),
    ("\ufeffa", "has a character that is not ASCII"),
    ("a\u00a0", "has a character that is not ASCII"),
    ("caf\u00e9", "has a character that is not ASCII"),
    ("x" * (LONGEST_TOKEN + 1), "is longer than 4096 characters"),
]


@pytest.mark.parametrize(("token", "problem"), UNUSABLE)
def test_what_is_no_token(token: str, problem: str) -> None:
    assert token_problem(token) == problem
    with pytest.raises(ValueError) as caught:
        ModelServer(token=token)
    assert str(caught.value) == f"The token {problem}."


@pytest.mark.parametrize("token", [b"secret", 5, True])
def test_a_token_is_text(token: Any) -> None:
    with pytest.raises(TypeError, match="The token must be text, not "):
        ModelServer(token=token)
