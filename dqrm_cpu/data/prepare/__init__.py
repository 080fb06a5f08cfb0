"""From raw click logs to shards: parsing, vocabularies, the split, the shuffle, and going on after a kill."""
