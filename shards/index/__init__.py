"""The index: derived from the tars, memory-mapped by readers."""
