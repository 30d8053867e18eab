"""Decode attention over resident slots: what all backends share, and one file for each of them."""
