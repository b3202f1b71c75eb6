"""When user code runs, on which thread, and what ends it early."""
