"""The page for people, and the description of the API for programs."""

__all__: list[str] = []
