"""Where files lie and how they are asked for: local paths, object stores, web servers."""
