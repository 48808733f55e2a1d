"""Main: `python -m jobcore` is the command line."""

from jobcore.cli import main

if __name__ == "__main__":
    main()
