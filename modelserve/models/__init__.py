"""What a model is, which models there are, and how their hooks are run."""
