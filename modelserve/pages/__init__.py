"""What people read in a browser, and what programs read of the API."""

__all__: list[str] = []
