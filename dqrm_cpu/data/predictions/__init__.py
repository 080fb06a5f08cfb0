"""Files of predictions: keys of rows and their probabilities, as CSV or Parquet."""
