"""The open benchmark: fixed mixtures that anyone can rebuild, and one command that evaluates them.

``catalogue`` says which recording sounds where and how loud, ``render`` makes the audio from it,
``run`` asks a checkpoint, ``report`` and ``compare`` write down what came out (docs/benchmark.md).
"""
