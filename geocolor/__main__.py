"""`python -m geocolor`, the same as `geocolor`."""

from geocolor_cli import main

if __name__ == "__main__":
    main()
