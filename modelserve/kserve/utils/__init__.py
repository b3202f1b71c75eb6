"""The package of the helpers at KServe's path."""
