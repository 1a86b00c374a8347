"""Bytes and traffic."""
