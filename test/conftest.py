"""The ROS environment of the tests: this machine only, and a domain that nobody else uses."""
import contextlib
import os


def pytest_configure(config):
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if "ROS_DOMAIN_ID" in os.environ:
        return
    try:
        from domain_coordinator import domain_id
    except ImportError:
        return  # no ROS here: the tests that need it are skipped
    held = contextlib.ExitStack()
    os.environ["ROS_DOMAIN_ID"] = str(held.enter_context(domain_id()))
    config.add_cleanup(held.close)
