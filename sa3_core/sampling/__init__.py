"""From noise to latents: schedules, samplers, guidance, draws, and the run that joins them."""
