"""The systemd units as package data; `keepctl install` fills in the `@PLACEHOLDERS@`."""
