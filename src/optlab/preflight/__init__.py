"""Checks of every entry of params.yaml before anything is downloaded or trained, and their error messages."""
