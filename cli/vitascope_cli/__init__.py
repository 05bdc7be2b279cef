"""The command line: runs the embedded stack, and talks to any stack through its public API."""
