"""The protocols, each as pure functions from bytes to payloads and from results to bytes."""
