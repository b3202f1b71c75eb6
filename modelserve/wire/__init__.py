"""Bytes: how what goes over the wire is written, read and chosen. Pure: nothing here imports I/O."""
