"""What runs looked like, as one HTML file and as figures."""
