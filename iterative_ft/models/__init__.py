"""Models: where a checkpoint is, what a policy is, text to ids and back, and plain forward passes."""
