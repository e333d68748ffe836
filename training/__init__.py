"""Training of LuSeeL: corpus, binaural simulation, losses, evaluation. Needs no ROS."""

#: Of all recordings, heads and scenes, Hz.
SAMPLE_RATE = 16000
