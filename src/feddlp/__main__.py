"""`python -m feddlp` is the command `feddlp`."""

from feddlp.cli import main

if __name__ == "__main__":
    main()
