"""A copy of a subspace in which every layer counts alike, to ask whether the global scale of eigenvalues matters.

The alignment term divides all eigenvalues by one number, the mean over layers of the largest, so that layers keep
their relative importance. Here each layer's are divided by its own largest. Compare by::

    python experiments/equal_layers.py SUBSPACE COPY
    loralign sweep START --data TASK --space guard=SUBSPACE,COPY --reestimate_every 0 --trade drift task_gain
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from loralign.guard import AlignmentSubspace


def main() -> None:
    """Read, rescale, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subspace", type=Path)
    parser.add_argument("copy", type=Path, help="directory to write")
    arguments = parser.parse_args()
    held = AlignmentSubspace.load(arguments.subspace)
    layers = {
        name: replace(
            layer, eigenvalues=layer.eigenvalues / layer.eigenvalues[0], trace=layer.trace / float(layer.eigenvalues[0])
        )
        for name, layer in held.layers.items()
    }
    AlignmentSubspace(layers, held.info).save(arguments.copy)
    tops = [float(layer.eigenvalues[0]) / held.scale for layer in held.layers.values()]
    print(f"largest eigenvalues were {min(tops):.3g} to {max(tops):.3g} of their mean")


if __name__ == "__main__":
    main()
