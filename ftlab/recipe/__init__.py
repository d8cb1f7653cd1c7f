"""What a run is: its keys, read from YAML and checked, and what they become in the libraries and elsewhere."""
