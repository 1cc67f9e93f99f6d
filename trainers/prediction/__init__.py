"""Models at work on videos: which frames, in which size, into which files."""
