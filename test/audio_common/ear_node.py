"""luseel_node with a model without a network."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ear_model import EarModel  # noqa: E402

from luseel_ros import node, run  # noqa: E402

node.LuseelNode.__init__.__defaults__ = (lambda name, device: EarModel(),)
run.main(sys.argv)
