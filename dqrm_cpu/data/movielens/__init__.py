"""MovieLens-100k: real ratings that need no account, read out of a package that ships them."""
