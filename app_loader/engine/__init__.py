"""The engine as a keep uses it: a binding of wasmtime's library, and the objects made with it."""
