#!/usr/bin/env bash
# Installs luseel without ROS into a new environment, as on a training server, and looks at it.
# Usage: tools/without_ros.sh ENVIRONMENT
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
# The interpreter of the main environment, which is known to be suitable.
base=$(.venv/bin/python -c 'import sys; print(sys._base_executable)')
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
pip_install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >"$venv/pip.log" 2>&1
}
"$base" -m venv "$venv"
pip_install "torch==2.13.0+cpu" || pip_install "torch>=2.4"

# No compiler: one that fails stands before the real ones.
mkdir "$venv/no_compiler"
for name in cc c++ gcc g++ cmake ninja; do
  printf '#!/bin/sh\necho "%s was called" >&2\nexit 1\n' "$name" >"$venv/no_compiler/$name"
  chmod +x "$venv/no_compiler/$name"
done
PATH="$venv/no_compiler:$PATH" LUSEEL_ROS=0 pip_install . \
  || { tail -n 40 "$venv/pip.log"; exit 1; }
rm -r "$venv/no_compiler"

cd / # away from the checkout: what is imported now is what was installed
"$venv/bin/python" - <<'PYTHON'
import importlib.metadata
import importlib.util
import pathlib
import sys

import luseel_model
import training

for package in (luseel_model, training):
    assert package.__file__.startswith(sys.prefix), package.__file__
ros = [d.metadata["Name"] for d in importlib.metadata.distributions()
       if d.metadata["Name"].startswith("ros-")]
assert not ros, ros
for module in ("rclpy", "luseel", "luseel_ros"):
    assert importlib.util.find_spec(module) is None, module
model, train = (pathlib.Path(p.__file__).parent for p in (luseel_model, training))
for folder, pattern in ((model, "configs/luseel.yaml"), (model, "checkpoints/*.safetensors"),
                        (model, "head_data/*.safetensors"),
                        (train, "configs/debug.yaml"), (train, "captions.yaml"),
                        (train, "corpus/*.csv")):
    assert list(folder.glob(pattern)), f"{folder}/{pattern}"
extractor = luseel_model.load_model()
print(f"imported from {sys.prefix}: model {extractor.name}, no ROS wheel among "
      f"{len(list(importlib.metadata.distributions()))} packages")
PYTHON
for script in luseel luseel-train luseel-evaluate luseel-corpus luseel-heads; do
  "$venv/bin/$script" --help >/dev/null
done
