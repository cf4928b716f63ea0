"""The demo models: recipe, synthetic corpus, losses and evaluation."""
