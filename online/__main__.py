"""Makes `python -m online` run the `online` command."""

import sys

try:
    from online.commands.cli import main
except KeyboardInterrupt:  # Ctrl-C while modules are being imported
    sys.exit(130)

if __name__ == "__main__":
    main()
