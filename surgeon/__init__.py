"""surgeon: model surgery and checkpoint ranking. The checkpoint is the unit of work."""

__version__ = "0.2.0"
