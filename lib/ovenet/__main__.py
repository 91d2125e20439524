"""``python -m ovenet COMMAND …``."""

from ovenet.commands import main

if __name__ == "__main__":
    main()
