"""A model that outlives what a robot does to it: no memory left, a GPU that fails."""

from __future__ import annotations

import gc
import time
from typing import Any, Callable

import torch

from luseel_model.errors import LuseelError, QueryError
from luseel_model.query import Capabilities
from luseel_model.streaming import is_out_of_memory

RELOAD_AFTER = 5  # failures in a row after which the model is loaded anew
RELOAD_PAUSE = 5.0  # [s] from one such attempt to the next, doubled each time ...
RELOAD_PAUSE_MAX = 120.0  # ... up to this


def words(error: BaseException) -> str:
    """An error for a person: our own speak for themselves, others need their type."""
    return str(error) if isinstance(error, LuseelError) else f"{type(error).__name__}: {error}"


def free_memory() -> None:
    """Give back what nothing refers to any more, on the CPU and on a GPU."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # after some failures the GPU answers nothing any more
            pass


class SteadyModel:
    """An `Extractor` that goes to the CPU when a GPU has no memory, and is loaded anew when it
    fails again and again. Fewer queries at a time, the first remedy, is up to the stream.

    Args:
        load: called with a device (empty: the best one) to get the model.
        device: where it should run.
        warn: called with a text when something was done about an error.
        reloaded: called each time the model was loaded anew.

    Raises:
        whatever `load` raises.
    """

    def __init__(self, load: Callable[[str], Any], device: str, warn: Callable[[str], None],
                 reloaded: Callable[[], None] = lambda: None):
        self._load, self._device, self._warn, self._reloaded = load, device, warn, reloaded
        self._failures = 0
        self._pause, self._not_before = RELOAD_PAUSE, 0.0
        self.reduced = ""  # what it does without because memory ran out
        self._model: Any = None
        self._load_somewhere()
        self.sample_rate, self.window = self._model.sample_rate, self._model.window
        self.microphones = getattr(self._model, "microphones", 2)
        self.capabilities = getattr(self._model, "capabilities", None) or Capabilities(
            frozenset({"text"}), microphones=self.microphones)
        self.name, self.device = self._model.name, self._model.device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def warm_up(self) -> None:
        """Run once on silence."""
        if not self._out_of_memory(self._model.warm_up):
            return
        self._to_cpu()
        self._model.warm_up()

    def infer_window(self, window, queries):
        """As that of the model."""
        error = self._model_or_error()
        if error is None:
            try:
                out = self._model.infer_window(window, queries)
                self._failures, self._pause = 0, RELOAD_PAUSE
                return out
            except QueryError:
                raise  # nothing that another model would do better
            except Exception as raised:
                if is_out_of_memory(raised) and (len(queries) > 1 or self._on_cpu()):
                    raise  # fewer at a time, or nothing that could be done here
                # without the traceback, which holds on to the tensors of that run
                error = raised.with_traceback(None)
        if self._model is not None and is_out_of_memory(error):
            self._to_cpu()
            return self._model.infer_window(window, queries)
        self._failures += 1
        if self._failures >= RELOAD_AFTER and time.monotonic() >= self._not_before:
            self._load_anew(error)
        raise error

    def _model_or_error(self) -> Exception | None:
        return None if self._model is not None else LuseelError("the model could not be loaded")

    def _on_cpu(self) -> bool:
        return str(self._model.device).startswith("cpu")

    @staticmethod
    def _out_of_memory(function: Callable[[], Any]) -> bool:
        try:
            function()
        except Exception as error:
            if is_out_of_memory(error):
                return True
            raise
        return False

    def _load_somewhere(self) -> None:
        def load():
            self._model = self._load(self._device)

        if self._device != "cpu" and self._out_of_memory(load):
            self._to_cpu()
        elif self._model is None:
            load()

    def _to_cpu(self) -> None:
        self._warn("no memory left on the GPU: the model goes on on the CPU, until the node is "
                   "configured again")
        self._model = None
        free_memory()
        self._device = "cpu"
        self._model = self._load("cpu")
        self.device = self._model.device
        self.reduced = "on the CPU, because the GPU has no memory left"

    def _load_anew(self, error: Exception) -> None:
        self._warn(f"the model failed {self._failures} times in a row ({words(error)}): loading it "
                   "anew")
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, RELOAD_PAUSE_MAX)
        self._failures, self._model = 0, None
        free_memory()
        try:
            self._load_somewhere()
            self.device = self._model.device
            self._reloaded()
        except Exception as again:
            self._failures = RELOAD_AFTER  # at once, when the pause is over
            self._warn(f"that failed: {words(again)}; trying again in {self._pause / 2:.0f} s")
