"""Waveforms: in and out of files, measured, drawn and checked."""
