"""Serve machine-learning models over ASGI, streaming first."""

__version__ = "0.1.0"
