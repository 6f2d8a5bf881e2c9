"""`python -m pipeline` prepares the CIFAR-10 cache and reports what is in it."""

import preflight

preflight.require_environment("-m pipeline")

import sys

from pipeline.cifar10 import main

sys.exit(main())
