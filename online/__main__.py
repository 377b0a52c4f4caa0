"""`python -m online` is `online`."""

from online.cli import main

if __name__ == "__main__":
    main()
