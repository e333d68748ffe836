"""The demo: the real node in its own process, a scene of real recordings, figures at the end."""
