"""A robot's two ears: put right (which is which, delay, level, polarity, a turned head), and what
its head does to sound.

The network was trained on heads that are mirror-symmetric: a sound in front or behind reaches both
ears at the same time and equally loud, and a sound from the right is that from the left with the
ears exchanged. A robot's microphones are seldom so. A few claps at known directions tell
(:func:`measure`, or ``luseel calibrate`` from a shell); the result is a :class:`Calibration`, a
small YAML file, which :func:`luseel_model.load_model` applies to all audio. Claps all around tell
the head's responses as well (:func:`measure_head`).

Signs: a delay is how much later the right ear hears, a level how much louder the right ear is.
Angles are degrees counter-clockwise from the front, 90 is left.
"""

from .ears import Calibration, CalibrationError, Direction
from .measurement import Measurement, measure
from .picture import plot_measurement
from .responses import measure_head
from .sounds import Sound, analyse, find_sounds

__all__ = ["Calibration", "CalibrationError", "Direction", "Measurement", "Sound", "analyse",
           "find_sounds", "measure", "measure_head", "plot_measurement"]
