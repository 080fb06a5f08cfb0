"""Raw files, and their text or columns in blocks of whole rows."""
