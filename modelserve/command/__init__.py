"""What can be set of a server, and by what: flags, environment variables, arguments of `run`."""

__all__: list[str] = []
