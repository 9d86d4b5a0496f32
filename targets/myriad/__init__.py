"""What target `myriad` is made of: the graph as the device wants it, the process that compiles it, its reports."""

from dnc.targets.myriad.target import Myriad

__all__ = ["Myriad"]
