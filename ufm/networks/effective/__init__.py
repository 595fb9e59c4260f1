"""The model that a trained network is close to, and the comparison of the two."""
