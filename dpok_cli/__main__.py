"""``python -m dpok_cli``, so that ``accelerate launch -m dpok_cli train-rl ...`` works."""

from dpok_cli.cli import main

if __name__ == "__main__":
    main()
