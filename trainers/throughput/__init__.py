"""Is data or compute the limit, and which part of it."""
