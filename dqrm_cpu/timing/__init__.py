"""Where the time went, and on which machine."""
