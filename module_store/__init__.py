"""Content-addressed modules: verified before they load."""
