"""The commands of ``luseel``, a module each; every one adds its parser with ``register``."""
