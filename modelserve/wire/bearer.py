"""Check that clients can send a bearer token (RFC 6750, 2.1): visible ASCII, without a space."""

from typing import Final

__all__ = ["LONGEST_TOKEN", "token_problem", "valid_token"]

# Proxies accept header lines of 8 KiB at most.
LONGEST_TOKEN: Final = 4096

_FIRST_VISIBLE: Final = "!"
_LAST_VISIBLE: Final = "~"


def valid_token(token: str) -> str:
    """Return a token that clients can send. Raises TypeError or ValueError without showing it."""
    if not isinstance(token, str):
        raise TypeError(f"The token must be text, not {type(token).__name__}.")
    problem = token_problem(token)
    if problem is not None:
        raise ValueError(f"The token {problem}.")
    return token


def token_problem(token: str) -> str | None:
    """Return why clients cannot send a token, or that it is empty; None if it is valid."""
    if not token.strip():
        return "is empty"
    if len(token) > LONGEST_TOKEN:
        return f"is longer than {LONGEST_TOKEN} characters"
    if not token.isascii():
        return "has a character that is not ASCII"
    if "\n" in token.strip() or "\r" in token.strip():
        return "has more than one line"
    if token != token.strip():
        return "begins or ends with white space"
    if " " in token:
        return "has a space in it"
    if not all(_FIRST_VISIBLE <= character <= _LAST_VISIBLE for character in token):
        return "has a control character in it"
    return None
