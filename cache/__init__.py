"""The cache: one log in host RAM whose cold end ebbs to disk. Imports nothing else of swaptide."""
