"""Clues of paper 003: short clips made of pictures, clues that are wrong, AudioSet's manifests."""
