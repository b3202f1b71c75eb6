"""A process that serves: uvicorn's server with a drain, workers, and their supervisor."""
