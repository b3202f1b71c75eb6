"""One request and the answer to it."""
