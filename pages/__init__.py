"""Pages of docs/ that are made from the code: settings, commands, the Python interface.

``python -m pages`` writes them; a test finds one that is not current.  In no wheel.
"""
