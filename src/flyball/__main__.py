"""`python -m flyball`."""

from .cli import main

main()
