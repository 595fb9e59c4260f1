"""The theorems, one file for each family."""
