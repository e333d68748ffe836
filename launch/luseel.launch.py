"""Starts luseel_node and takes it to the active state.

Written for what Jazzy, Kilted and Rolling have in common: LifecycleNode's own autostart argument
is newer than Jazzy, so the transitions are driven here and the node's autostart is switched off.

    ros2 launch luseel luseel.launch.py audio_topic:=/head/audio namespace:=robot
"""
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


def generate_launch_description():
    share = Path(get_package_share_directory("luseel"))
    arguments = [
        DeclareLaunchArgument(
            "namespace", default_value="",
            description="Namespace of the node and of its topics"),
        DeclareLaunchArgument(
            "params_file", default_value=str(share / "config" / "luseel.yaml"),
            description="YAML file with the parameters of the node"),
        DeclareLaunchArgument(
            "audio_topic", default_value="audio",
            description="Topic of the binaural audio (luseel/msg/AudioChunk)"),
        DeclareLaunchArgument(
            "query_topic", default_value="query",
            description="Topic of the queries (std_msgs/msg/String)"),
        DeclareLaunchArgument(
            "log_level", default_value="info",
            description="debug, info, warn, error or fatal"),
    ]
    node = LifecycleNode(
        package="luseel",
        executable="luseel_node",
        name="luseel",
        namespace=LaunchConfiguration("namespace"),
        # The later entry wins: whatever the file says, the transitions come from here.
        parameters=[LaunchConfiguration("params_file"), {"autostart": False}],
        remappings=[
            ("audio", LaunchConfiguration("audio_topic")),
            ("query", LaunchConfiguration("query_topic")),
        ],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
    configure = EmitEvent(event=ChangeState(
        lifecycle_node_matcher=matches_action(node),
        transition_id=Transition.TRANSITION_CONFIGURE))
    # Only after configuring: a node that somebody deactivates later stays inactive.
    activate = RegisterEventHandler(OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[EmitEvent(event=ChangeState(
            lifecycle_node_matcher=matches_action(node),
            transition_id=Transition.TRANSITION_ACTIVATE))]))
    # The handler first: it must be listening when the first transition ends.
    return LaunchDescription([*arguments, activate, node, configure])
