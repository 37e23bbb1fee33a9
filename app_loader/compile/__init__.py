"""Compiles a module of the store: a program of its own in a unit of its own, whose result many keeps map."""
