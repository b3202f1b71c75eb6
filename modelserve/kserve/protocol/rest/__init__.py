"""The package of OpenAI's models at KServe's path."""
