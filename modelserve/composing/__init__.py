"""Models that call one another."""

__all__: list[str] = []
