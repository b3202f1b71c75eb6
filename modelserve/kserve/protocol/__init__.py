"""KServe's path to the V2 types."""
