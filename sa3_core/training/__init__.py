"""LoRA training: datasets, adapters, the flow matching loss and the training loop."""
