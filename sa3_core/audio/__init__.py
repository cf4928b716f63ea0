"""Waveforms: rate and channels, audio files, levels, spectrograms and checks of results."""
