"""Is this machine fit for that run? Each check is a small function over facts."""
