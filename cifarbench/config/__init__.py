"""Every key: its meaning, range and check. Defaults are in the YAML files of `conf/`."""
