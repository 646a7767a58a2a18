"""`python -m reludiag` is the command line."""

from reludiag_cli.app import main

if __name__ == "__main__":
    main()
