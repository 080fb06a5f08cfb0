"""Tables in bands of rows of different bits, chosen for a number of bytes."""
