"""Keys of categories to rows of embedding tables."""
