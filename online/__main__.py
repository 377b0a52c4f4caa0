"""`python -m online` is `online`."""

import sys

try:
    from online.cli import main
except KeyboardInterrupt:  # a run of `--every` may be ended while it is being read
    sys.exit(130)

if __name__ == "__main__":
    main()
