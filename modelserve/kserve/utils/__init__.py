"""KServe's path to the helpers."""
