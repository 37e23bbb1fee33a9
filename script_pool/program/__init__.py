"""A script as a whole program: QuickJS made into a WASI command, which a keep runs as it runs any module."""
