"""Training: a synthetic corpus, the autoencoder's training and flow matching of the transformer. Nothing here runs at inference."""
