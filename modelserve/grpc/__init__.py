"""gRPC's services as paths of the application: calls opened, methods answered, streams."""

__all__: list[str] = []
