"""``python -m dmpt``, and what torchrun starts: ``torchrun ... -m dmpt train ...``."""

from dmpt.cli import main

if __name__ == "__main__":
    main()
