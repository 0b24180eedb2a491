"""`python -m qwen_edge.cli` is `qwen-edge`."""

from qwen_edge.cli.main import main

if __name__ == "__main__":
    main()
