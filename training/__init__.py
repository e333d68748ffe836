"""Training of LuSeeL: corpus, binaural simulation, losses, evaluation. Needs no ROS."""
