"""stage-runner: runs one pipeline stage per job spec and leaves a true record of it."""

__version__ = "0.1.0"
