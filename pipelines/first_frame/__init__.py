"""Samples of a first frame, to fit target models on."""
