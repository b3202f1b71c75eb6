"""KServe's path to the constants."""
