"""Commands of ``luseel`` that need ROS 2: listen (to a node), bag, watch.

The modules are imported for their arguments each time ``luseel`` runs, so they import rclpy and
other heavy packages only once they are used.
"""

COMMANDS = ("bag", "listen", "watch")
