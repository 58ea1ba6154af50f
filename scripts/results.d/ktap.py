"""KTAP as the guests report it, and where their reports lie."""
import pathlib
import re
import shlex
import subprocess
from typing import NamedTuple


class Bad(Exception):
    """One line on what was wrong, and what to do."""


class House:
    """Where things are; scripts/lib.sh alone says so."""

    def __init__(self):
        script = '. "$1/lib.sh" && printf "%s\\n" "$TOP" "$BASE" "$(out)" "$ARCH" "$OWN"'
        said = subprocess.run(["bash", "-euc", script, "results", pathlib.Path(__file__).resolve().parent.parent],
                              check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        self.top, self.base, self.out, self.arch = pathlib.Path(said[0]), said[1], pathlib.Path(said[2]), said[3]
        self.own = said[4].split()
        self.results, self.series = self.out / "results", self.top / "patches" / self.base

    def load(self, name):
        return Results(self.results / f"{name}.ktap")

    def origin(self, field):
        if not (self.out / "origin").is_file():
            raise Bad(f"there is no {self.out}/origin; run make first")
        facts = dict(word.split("=", 1) for word in shlex.split((self.out / "origin").read_text()))
        return facts.get(field, "")


# --- KTAP

class Row(NamedTuple):
    program: str  # that run_vmtests.sh names; "suite" for its own verdict on one
    verdict: str
    name: str
    reason: str


class Results:
    """What one guest reported."""

    def __init__(self, path):
        self.path = path
        self.rows, self.plan, self.faults = [], {}, {}
        self.taint = self.begun = program = None
        if not path.is_file():
            raise Bad(f"there is no {path}; run make first")
        text = path.read_text(errors="replace")
        # A line without an end was torn, and is none.
        for line in text[:text.rfind("\n") + 1].split("\n"):
            if m := re.match(r"# +# running (?:\./)?(\S+)", line):
                program = m[1]
            elif m := re.match(r"# +(# +)?(not )?ok \d+ (?:- )?(.*)", line):
                # So is one that another's line follows.
                if not re.search(r"\S# ", m[3]):
                    self.rows.append(self.row(program if m[1] else "suite", m[2], m[3]))
            elif m := re.match(r"# +# +1\.\.(\d+)$", line):
                self.plan.setdefault(program, int(m[1]))
            elif m := re.match(r"[# ]*(.*): ([0-9.]+) ([0-9.]+) \(limit .*faults a page$", line):
                self.faults[m[1]] = float(m[2]), float(m[3])
            elif m := re.match(r"# +# +# row (.*)", line):
                self.begun = program, m[1]
            elif m := re.match(r"# guest: tainted ([0-9]+)$", line):
                # Without TAINT_TEST: that KUnit tests ran is no complaint.
                taint = str(int(m[1]) & ~(1 << 18))
                # Of several guests, the one that was.
                self.taint = taint if self.taint in (None, "0") else self.taint

    @staticmethod
    def row(program, no, text):
        name, _, reason = text.partition(" # ")
        verdict = "fail" if no else "ok"
        if verdict == "ok" and reason[:4].upper() == "SKIP":
            verdict, reason = "skip", reason[4:].lstrip(" ")
        # kselftest.h puts the name of a test that it skips behind the word.
        if name.startswith("# SKIP "):
            verdict, name = "skip", name[7:]
        return Row(program or "", verdict, name.rstrip(" \t"), reason)

    def of(self, program):
        return [row for row in self.rows if row.program == program]


def merge(path, newer):
    """What a newer guest says of some programs takes the place of what this one did."""
    programs, kept, within = {row.name for row in Results(newer).of("suite")}, [], ""
    for line in path.read_text(errors="replace").splitlines(True):
        m = re.match(r"# +# running (?:\./)?(\S+)", line)
        within = m[1] if m and m[1] in programs else within
        # One that was cut short has no end of its own.
        if re.match(r"(not )?ok \d+ selftests: ", line):
            within = ""
        if not within:
            kept.append(line)
        elif re.match(rf"# +(not )?ok \d+ {re.escape(within)}\b", line):
            within = ""
    part = path.with_suffix(".part")
    part.write_text("".join(kept) + newer.read_text(errors="replace"))
    part.replace(path)


def pattern(text):
    """A * stands for one word or a part of it, (a|b) for one of them."""
    return re.compile(re.sub(r"\\\*", "[^ ]*", re.sub(r"\\([()|])", r"\1", re.escape(text).replace("\\ ", " "))))
