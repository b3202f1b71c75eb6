"""Count and time requests, over all workers of a server."""
