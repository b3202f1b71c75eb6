"""The package of the V2 types at KServe's path."""
