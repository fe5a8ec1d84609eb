"""`python -m opdkit`, and what torchrun starts: torchrun --nproc-per-node 2 -m opdkit train CONFIG."""

from opdkit.cli import main

main()
