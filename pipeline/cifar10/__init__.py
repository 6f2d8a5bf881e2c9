"""The real CIFAR-10 as verified uint8 arrays; `python -m pipeline` prepares its cache.

Every source ends in the same 184 MB: four arrays whose SHA-256 is known, in one cache file. A source
that gives other bytes is refused, and nothing ever stands in for CIFAR-10.
"""
