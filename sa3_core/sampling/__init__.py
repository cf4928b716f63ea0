"""From noise to latents: schedules, samplers, guidance, noise draws, and the run that combines them."""
