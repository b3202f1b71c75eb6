"""The servers under test, each written as its own documentation would have a user write it.

A module here is imported in its competitor's environment only; `benchmarks.competitors` says how
each is installed and run.
"""
