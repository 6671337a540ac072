"""The replicated state, pure: the same commands in the same order give the same state anywhere."""
