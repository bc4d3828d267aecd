"""A run: from a config to objects, its folder, its sizes, its hosts, training and using it."""
