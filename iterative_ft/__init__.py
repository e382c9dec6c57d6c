"""What happens to a model trained on its own outputs."""
