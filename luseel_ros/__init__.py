"""ROS 2 part of LuSeeL: the node, and a demo of it. The model is in luseel_model."""
import os
import sys

# Installed by pip, no setup.bash is sourced: the environment itself is the ament prefix.
if "AMENT_PREFIX_PATH" not in os.environ and os.path.exists(os.path.join(
        sys.prefix, "share", "ament_index", "resource_index", "packages", "luseel")):
    os.environ["AMENT_PREFIX_PATH"] = sys.prefix
