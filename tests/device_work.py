"""What compiled programs do on each device, read from XLA's text: multiplications, and gathers."""

import math
import re
from pathlib import Path

_PRODUCT = re.compile(r" dot\((?:[^,()%]* )?%?([\w.\-]+), .*lhs_contracting_dims={(.*?)}")


class Programs:
    """The programs that XLA writes to a folder as it compiles them."""

    def __init__(self, folder: str):
        self.folder, self.seen = Path(folder), set()

    def new(self) -> list[str]:
        """Return the optimised programs compiled since the last call."""
        found = set(self.folder.glob("*after_optimizations.txt")) - self.seen
        self.seen |= found
        return [path.read_text() for path in found]


def num_operations(program: str) -> int:
    """Return the operations of all matrix products, of loops in all of their iterations."""
    computations, name = {}, ""
    for line in program.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            name = "entry" if start[1] else start[2]
            computations[name] = []
        elif name:
            computations[name].append(line)

    def total(name: str) -> int:
        num, shapes = 0, {}
        for line in computations[name]:
            result = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]", line)
            if result:
                shapes[result[1]] = _sizes(result[2])
            product = _PRODUCT.search(line)
            if product:
                contracted = [shapes[product[1]][axis] for axis in _sizes(product[2])]
                num += 2 * math.prod(shapes[result[1]]) * math.prod(contracted)
            trips = re.search(r'"known_trip_count":{"n":"(\d+)"}', line)
            called = re.findall(r"(?:calls|body|to_apply)=%?([\w.\-]+)", line)
            num += sum(map(total, called)) * (int(trips[1]) if trips else 1)
            for branches in re.findall(r"branch_computations={(.*?)}", line):
                num += max(total(each.strip(" %")) for each in branches.split(","))
        return num

    return total("entry")


def largest_gather(program: str) -> int:
    """Return the number of entries of the largest array gathered from all devices, or zero."""
    gathers = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", program)
    return max((math.prod(_sizes(each)) for each in gathers), default=0)


def largest_array(program: str) -> int:
    """Return the number of entries of the largest array that a device computes or is given."""
    results = re.findall(r"= \w+\[([\d,]+)\]", program)
    return max((math.prod(_sizes(each)) for each in results), default=0)


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]
