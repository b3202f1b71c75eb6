"""The package of the constants at KServe's path."""
