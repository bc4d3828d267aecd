"""Runs: building the objects of a config, workdir, model size, hosts, training, and using a trained model."""
