"""Finished sets: views, unions, growth, and the original layout back."""
