"""The city: consensus, HTTP, command line, leader policies and composition."""

__version__ = "0.1.0"
