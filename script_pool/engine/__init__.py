"""The engines that run scripts; `interface` is what the pool knows of them."""
