"""What make bench has counted, as tables and as a picture."""
import pathlib
from collections import defaultdict
from typing import NamedTuple

from ktap import Bad
from tables import table


class Measured(NamedTuple):
    kernel: str
    group: str
    scenario: str
    memory: str
    registered: str
    pages: int
    faults: int
    instructions: int
    again: tuple  # faults and instructions of the second run

    # The cheaper run counts, where they differ: the other was interrupted.
    def each(self, unit):
        return (self.faults if unit == "faults" else min(self.instructions, self.again[1])) / self.pages


def measured(path):
    rows = []
    for line in pathlib.Path(path).read_text().splitlines():
        if "failed: " in line:
            raise Bad(f"a row could not be measured: {line}")
        f = line.split("\t")
        rows.append(Measured(*f[:5], *map(int, f[5:8]), tuple(map(int, f[9:11]))))
    return rows


def bench(path):
    rows = measured(path)
    show = lambda head, cells: print(*table(head, cells, "-")[0], sep="\n")
    print("What happens, and a write to each page: faults and instructions a page. The\n"
          "pages are there before, but for read_in (which does not write) and async_untouched.\n")
    columns = [("unpatched", "unpatched", "registered"), ("patched", "patched", "registered"),
               ("unregistered", "patched", "unregistered")]
    show("what happens", [(f"{unit}: {name}", row.scenario, row.memory, "-", f"{row.each(unit):.{places}f}")
                          for unit, places in (("faults", 2), ("instructions", 1)) for name, kernel, registered in columns
                          for row in rows if (row.group, row.kernel, row.registered) == ("faults", kernel, registered)])
    print("\nA round of dirty tracking of 64 MiB: instructions for each page that was written.\n")
    show("how, and how much of it is written", [(row.kernel, row.scenario, row.memory, "-", f"{row.each('instructions'):.1f}")
                                                for row in rows if row.group == "tracking"])
    print("\nThose who do not use it: instructions a page.\n")
    others = {(row.kernel, row.scenario, row.memory): row for row in rows if row.group == "others"}
    cells = [(*key, "-", f"{row.each('instructions'):.1f}") for key, row in others.items()]
    pay = []
    for (kernel, *who), row in others.items():
        if kernel == "patched":
            before = others["unpatched", *who]
            cells.append(("difference", *who, "-", f"{(row.each('instructions') / before.each('instructions') - 1) * 100:+.2f} %"))
            if min(row.instructions, row.again[1]) > min(before.instructions, before.again[1]) * 1.005:
                pay.append(" ".join(who))
    show("what a process without userfaultfd does", cells)
    pairs = [pair for row in rows for pair in zip((row.faults, row.instructions), row.again)]
    same = sum(one == two for one, two in pairs)
    apart, who = max((abs(row.instructions - row.again[1]) / row.instructions, f"{row.kernel}, {row.scenario} {row.memory}")
                     for row in rows)
    print(f"\ntwo runs: {same} of {len(pairs)} figures agree to the digit" +
          (f"; the largest difference is {apart * 100:.3f} % ({who})" if same < len(pairs) else ""))
    for who in pay:
        print(f"pays more than half a percent: {who}")
    if pay:
        raise Bad("those who do not use it pay for it")


def svg(path):
    """Faults a page of each scenario, before and after."""
    value = defaultdict(dict)
    for row in measured(path):
        if row.group == "faults" and row.scenario != "event_cycle" and row.memory in ("memfd", "hugetlb-shared"):
            if row.registered == "registered" or row.kernel == "patched":
                which = row.kernel if row.registered == "registered" else "unregistered"
                value[f"{row.scenario}, {row.memory}"][which] = row.each("faults")
    colors = {"unpatched": "#c0392b", "patched": "#2471a3", "unregistered": "#b0b0b0"}
    height = 80 + 30 * len(value)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="11">\n'
          f'<rect width="760" height="{height}" fill="white"/>\n'
          '<text x="12" y="20" font-size="14">Faults a page, in mappings that are registered for write protection</text>')
    for x, (which, color) in zip((12, 102, 182), colors.items()):
        print(f'<rect x="{x}" y="32" width="10" height="10" fill="{color}"/>'
              f'<text x="{x + 15}" y="41">{which.replace("unreg", "not reg")}</text>')
    for i, (name, bars) in enumerate(value.items()):
        print(f'<text x="242" y="{76 + 30 * i}" text-anchor="end">{name}</text>')
        for j, (which, color) in enumerate(colors.items()):
            y, n = 60 + 30 * i + 9 * j, bars.get(which, 0)
            print(f'<rect x="250" y="{y}" width="{n * 200 + 1:.1f}" height="9" fill="{color}"/>\n'
                  f'<text x="{255 + n * 200:.1f}" y="{y + 8}" font-size="9">{n:.2f}</text>')
    print("</svg>")
