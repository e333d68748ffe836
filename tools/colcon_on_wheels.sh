#!/usr/bin/env bash
# Builds and tests the package with colcon where no ROS is installed: the wheels stand in for it.
# On a machine with ROS 2 it is just: colcon build && colcon test.
# Usage: tools/colcon_on_wheels.sh ENVIRONMENT WORKSPACE   (an environment with torch in it)
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD venv=$1 workspace=$2
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
python=$venv/bin/python

pip_install() {
  "$python" -m pip install --disable-pip-version-check "$@" >"$venv/pip.log" 2>&1 \
    || { tail -n 40 "$venv/pip.log"; exit 1; }
}
"$python" -m pip uninstall -q -y luseel # the tests have to meet what colcon builds
pip_install "setuptools<80"             # 80 breaks colcon
"$python" - >"$venv/ros.txt" <<'PYTHON'
import sys

sys.path.insert(0, "build_backend")
import luseel_build

print("\n".join(luseel_build.ROS_BUILD_REQUIREMENTS + luseel_build.ROS_RUN_REQUIREMENTS))
PYTHON
pip_install -r "$venv/ros.txt" "setuptools<80" "ros-ament-cmake-pytest==2.7.3" \
  ros-domain-coordinator colcon-common-extensions pytest rich

export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv PATH="$venv/bin:$PATH"
export COLCON_LOG_PATH=$workspace/log
mkdir -p "$workspace"
cd "$workspace"
colcon build --base-paths "$source" --event-handlers console_direct+ --cmake-args -GNinja \
  "-DPython3_EXECUTABLE=$python" \
  "-DCMAKE_PROJECT_luseel_INCLUDE=$source/cmake/pip_wheels_fixup.cmake" >build.txt 2>&1 \
  || { tail -n 60 build.txt; exit 1; }
tail -n 1 build.txt
colcon test --base-paths "$source" --return-code-on-test-failure \
  --event-handlers console_direct+ >test.txt 2>&1 || { tail -n 200 test.txt; exit 1; }
grep -E '=+ .*(passed|failed|error).* =+$' test.txt
colcon test-result --verbose
