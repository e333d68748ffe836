"""Scenes for microphone arrays: room responses, still and moving sounds, recorded data sets."""
