"""`bench data`: preparing raw clicks and reading them back."""
