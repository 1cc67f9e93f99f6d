"""From sources to shards: planned, in parallel, resumable."""
