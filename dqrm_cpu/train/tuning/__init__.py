"""A search before training: settings are tried out on few steps, and chosen on validation."""
