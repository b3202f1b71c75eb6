"""gRPC's services as paths of the application: opening calls, answering methods, streams."""

__all__: list[str] = []
