"""Generated click data that imitates the statistics of the Criteo Kaggle set."""
