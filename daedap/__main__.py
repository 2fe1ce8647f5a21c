"""`python -m daedap`, for `torchrun` and `accelerate launch`."""

from daedap.cli import main

main()
