"""Separation at 0 dB as paper 004 measures it: SDR, SIR, SAR, SI-SDR, beside its tables."""
