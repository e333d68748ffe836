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
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition


def generate_launch_description():
    share = Path(get_package_share_directory("luseel"))
    arguments = [
        DeclareLaunchArgument(
            "namespace", default_value="",
            description="Namespace of the node and of its topics"),
        DeclareLaunchArgument(
            "node_name", default_value="luseel",
            description="Name of the node: two of them side by side need two"),
        DeclareLaunchArgument(
            "params_file", default_value=str(share / "config" / "luseel.yaml"),
            description="YAML file with the parameters of the node"),
        DeclareLaunchArgument(
            "audio_topic", default_value="audio",
            description="Topic of the audio (its type: parameter audio_type)"),
        DeclareLaunchArgument(
            "query_topic", default_value="query",
            description="Topic of the queries (std_msgs/msg/String)"),
        DeclareLaunchArgument(
            "image_topic", default_value="~/query_image",
            description="Topic of a camera that points at what to hear (sensor_msgs/msg/Image)"),
        DeclareLaunchArgument(
            "compressed_image_topic", default_value="~/query_image/compressed",
            description="The same, compressed (sensor_msgs/msg/CompressedImage)"),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false",
            description="true: the clock is the topic /clock (simulation, bag)"),
        DeclareLaunchArgument(
            "log_level", default_value="info",
            description="debug, info, warn, error or fatal"),
    ]
    node = LifecycleNode(
        package="luseel",
        executable="luseel_node",
        name=LaunchConfiguration("node_name"),
        namespace=LaunchConfiguration("namespace"),
        # The later entry wins: whatever the file says, the transitions come from here.
        parameters=[LaunchConfiguration("params_file"), {
            "autostart": False,
            "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)}],
        remappings=[
            ("audio", LaunchConfiguration("audio_topic")),
            ("query", LaunchConfiguration("query_topic")),
            ("~/query_image", LaunchConfiguration("image_topic")),
            ("~/query_image/compressed", LaunchConfiguration("compressed_image_topic")),
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
