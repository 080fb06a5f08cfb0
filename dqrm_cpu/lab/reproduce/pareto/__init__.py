"""AUC against written bytes: scores that are kept, models from outside, tests over rows, the front and its page."""
