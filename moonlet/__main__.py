"""`python -m moonlet` is the command `moonlet`."""

from moonlet.cli.main import main

main()
