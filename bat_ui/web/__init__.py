"""The page: widgets and wiring only.  Everything that it shows is read from a project on disk (project.py)."""
