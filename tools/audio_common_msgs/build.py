#!/usr/bin/env python3
"""Builds either of the two packages called audio_common_msgs for the ROS 2 wheels of pip.

    python tools/audio_common_msgs/build.py ros_drivers|mgonzs13|all [--prefix FOLDER]

PyPI has neither. With a ROS distribution take its own package instead (docs/audio_messages.md).

Without --prefix each goes into a folder of its own in this environment
(`<environment>/audio_common_msgs/<kind>`), which is what the tests want, since one Python can hold
only one of them. With `--prefix <environment>` it becomes part of the environment. Nothing is done
where the same definitions are built already.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = ("ros_drivers", "mgonzs13")
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

# All that the packages of the two projects say, too, about these messages.
CMAKE = """\
cmake_minimum_required(VERSION 3.20)
project(audio_common_msgs)
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(std_msgs REQUIRED)
file(GLOB _messages RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} msg/*.msg)
rosidl_generate_interfaces(${PROJECT_NAME} ${_messages} DEPENDENCIES std_msgs)
ament_package()
"""
PACKAGE = """\
<?xml version="1.0"?>
<package format="3">
  <name>audio_common_msgs</name>
  <version>0.0.0</version>
  <description>The messages of KIND, built from their definitions</description>
  <maintainer email="luseel@example.org">LuSeeL maintainers</maintainer>
  <license>LICENSE</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>std_msgs</depend>
  <exec_depend>rosidl_default_runtime</exec_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
LICENSES = {"ros_drivers": "BSD", "mgonzs13": "MIT"}


class BuildError(RuntimeError):
    """The messages could not be built; the text says why and what to do."""


def default_prefix(kind: str) -> Path:
    """Where the messages go unless told otherwise: beside everything else of this environment."""
    return Path(sys.prefix) / "audio_common_msgs" / kind


def environment(prefix: Path) -> dict[str, str]:
    """Environment variables with which this Python finds the messages in `prefix`, too."""
    env = dict(os.environ)
    for name, folder in (("LD_LIBRARY_PATH", "lib"), ("PYTHONPATH", SITE)):
        env[name] = os.pathsep.join(
            [str(prefix / folder)] + [path for path in [os.environ.get(name)] if path])
    env["AMENT_PREFIX_PATH"] = os.pathsep.join(
        [str(prefix), os.environ.get("AMENT_PREFIX_PATH", sys.prefix)])
    return env


def requirements() -> list[str]:
    """What luseel's own messages are built with: the versions that run here."""
    sys.path.insert(0, str(ROOT / "build_backend"))
    try:
        from luseel_build import ROS_BUILD_REQUIREMENTS
    finally:
        sys.path.pop(0)
    return ROS_BUILD_REQUIREMENTS


def installed(requirement: str) -> bool:
    """Whether this Python has it, in that version if it names one."""
    name, _, version = requirement.partition("==")
    try:
        found = importlib.metadata.version(re.match(r"[\w-]+", name)[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    return found == version or not version


def fingerprint(kind: str) -> str:
    parts = [sys.version, *requirements(), CMAKE, PACKAGE]
    parts += [part for path in sorted((HERE / kind / "msg").glob("*.msg"))
              for part in (path.name, path.read_text())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def clean_environment() -> dict[str, str]:
    """Without the variables of the environment that runs this: the build has one of its own."""
    drop = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME",
            "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in drop}


def call(command: list, what: str, env: dict[str, str]) -> None:
    done = subprocess.run([str(part) for part in command], env=env, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        raise BuildError(f"{what} failed:\n" + "\n".join(done.stdout.splitlines()[-40:]))


def build(kinds: list[str], prefixes: dict[str, Path]) -> list[str]:
    """Build what is not there yet; returns the kinds that were built.

    Raises:
        BuildError: no ROS 2 wheels here, no compiler, or a step failed.
    """
    stamps = {kind: prefixes[kind] / "share" / "audio_common_msgs" / ".luseel-stamp"
              for kind in kinds}
    kinds = [kind for kind in kinds if not stamps[kind].exists()
             or stamps[kind].read_text() != fingerprint(kind)]
    if not kinds:
        return []
    if not installed("ros-std-msgs"):
        raise BuildError(
            "this Python has no ROS 2 wheels. Build them with your ROS distribution "
            "(docs/audio_messages.md), or run this in the environment of 'make test'.")
    if shutil.which("g++") is None:
        raise BuildError("no C++ compiler: sudo apt-get install g++")
    env = clean_environment()
    with tempfile.TemporaryDirectory(prefix="audio-common-msgs-") as scratch:
        tools = Path(sys.prefix)
        if not all(installed(requirement) for requirement in requirements()):
            tools = Path(scratch) / "tools"
            venv.create(tools, with_pip=False)
            call([sys.executable, "-m", "pip", "--python", tools / "bin" / "python", "install",
                  "--disable-pip-version-check", "--no-compile", *requirements()],
                 "installing the build tools", env)
        python = tools / "bin" / "python"
        env |= dict(AMENT_PREFIX_PATH=str(tools), CMAKE_PREFIX_PATH=str(tools),
                    PATH=f"{tools / 'bin'}{os.pathsep}{env['PATH']}")
        for kind in kinds:
            source, tree = Path(scratch) / kind, Path(scratch) / f"{kind}-build"
            shutil.copytree(HERE / kind / "msg", source / "msg")
            (source / "CMakeLists.txt").write_text(CMAKE)
            (source / "package.xml").write_text(
                PACKAGE.replace("KIND", kind).replace("LICENSE", LICENSES[kind]))
            fixup = ROOT / "cmake" / "pip_wheels_fixup.cmake"
            call(["cmake", "-S", source, "-B", tree, "-GNinja", "-DCMAKE_BUILD_TYPE=Release",
                  "-DBUILD_TESTING=OFF", f"-DCMAKE_INSTALL_PREFIX={prefixes[kind]}",
                  f"-DPython3_EXECUTABLE={python}", f"-DPYTHON_INSTALL_DIR={SITE}",
                  f"-DCMAKE_PROJECT_audio_common_msgs_INCLUDE={fixup}"],
                 f"configuring the messages of {kind}", env)
            call(["cmake", "--build", tree], f"building the messages of {kind}", env)
            # The other package of that name may lie there: only what belongs to it goes.
            for old in (prefixes[kind] / SITE / "audio_common_msgs",
                        prefixes[kind] / "share" / "audio_common_msgs"):
                shutil.rmtree(old, ignore_errors=True)
            call(["cmake", "--install", tree], f"installing the messages of {kind}", env)
            stamps[kind].write_text(fingerprint(kind))
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "all"])
    parser.add_argument("--prefix", type=Path, help="where to install; one kind only")
    args = parser.parse_args()
    kinds = list(KINDS) if args.kind == "all" else [args.kind]
    if args.prefix and len(kinds) > 1:
        parser.error("both have one name: --prefix takes one of them, ros_drivers or mgonzs13")
    prefixes = {kind: (args.prefix or default_prefix(kind)).resolve() for kind in kinds}
    try:
        built = build(kinds, prefixes)
    except BuildError as error:
        sys.exit(f"error: {error}")
    for kind in kinds:
        print(f"{kind}: {'built' if kind in built else 'up to date'} in {prefixes[kind]}")


if __name__ == "__main__":
    main()
