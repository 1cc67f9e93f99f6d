"""The bytes of clips: how they are read, and what storage can give."""
