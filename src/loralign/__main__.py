"""``python -m loralign``, the form that ``accelerate launch -m loralign`` takes."""

from loralign.cli import main

if __name__ == "__main__":
    main()
