"""What the boots prove."""
import contextlib
import pathlib
import re
import sys
from collections import Counter
from typing import NamedTuple

from ktap import Bad, Results, Row, pattern


def upstream(house, results):
    """Rows of others' programs by name. Some names carry a measured number, and the
    same one may come more than once: which of them it is counts."""
    nth, rows = Counter(), {}
    for row in results.rows:
        if row.program not in house.own and row.name not in house.own:
            name = re.sub("[0-9]+", "N", f"{row.program}: {row.name}")
            nth[name] += 1
            rows[f"{name} ({nth[name]})"] = row
    return rows


def compare(house):
    """Some of these tests race, on any kernel: scripts/guests boots the patched one
    again if there is need, and what fails has to fail in both."""
    before, now = (upstream(house, house.load(name)) for name in ("unpatched", "patched"))
    again = upstream(house, house.load("again")) if (house.results / "again.ktap").exists() else {}
    count = Counter((kernel, row.program, row.verdict) for kernel, rows in enumerate((before, now)) for row in rows.values())
    print("\nupstream suites: passed/failed/skipped\n")
    print(f"| {'program':22} | {'unpatched':12} | {'patched':12} |\n|{'-' * 24}|{'-' * 14}|{'-' * 14}|")
    for program in dict.fromkeys(row.program for rows in (before, now, again) for row in rows.values()):
        three = ("/".join(str(count[kernel, program, verdict]) for verdict in ("ok", "fail", "skip")) for kernel in (0, 1))
        print("| {:22} | {:12} | {:12} |".format(program, *three))

    def passed(rows, name):
        return name in rows and rows[name].verdict == "ok"

    missing = Row("", "not run", "", "")
    worse = [name for name in before if passed(before, name) and not passed(now, name)]
    bad = [name for name in worse if not passed(again, name)]
    if bad:
        print("\npassed on the unpatched kernel, not on the patched:")
    for name in bad:
        row = now.get(name, missing)
        print(f"  {name.removesuffix(' (1)')}: {row.verdict} {row.reason}")
    races = [name for name in again if passed(again, name) and not passed(now, name)]
    if races:
        print("\nnot passed by the patched kernel at first, but in a second boot:", *(f"  {name}" for name in races), sep="\n")
    if bad or not any(passed(before, name) for name in before):
        raise Bad(f"the patched kernel does worse in upstream's suites; see {house.results}/patched.ktap")


class Expected(NamedTuple):
    subject: str  # of the patch
    text: str
    pattern: re.Pattern
    races: bool  # it may pass


def expected_failures(path):
    subject, found = "", []
    for line in path.read_text().splitlines():
        if line and line[0] not in "# \t":
            subject = line
        elif line.strip() and line[0] != "#":
            text = line.strip()
            found.append(Expected(subject, text, pattern(text.removesuffix("?")), text.endswith("?")))
    return found


def complaint(log):
    """The first complaint in a kernel's log. That a full memory cgroup has its
    stack printed is what uffd-wp-ranges asks for."""
    asked_for = ""
    if not log.is_file():
        return f"there is no {log}"
    for line in log.read_text(errors="replace").splitlines():
        if "uffd-wp-ranges invoked oom-killer" in line:
            asked_for = line
        serious = re.search("WARNING: |BUG: |BUG at|Oops|page_table_check|INFO: task|rcu: INFO", line)
        if (serious or not asked_for and "Call Trace" in line) and "command line: " not in line.lower():
            return line
        if re.search("no killable processes|Killed process", line):
            asked_for = ""
    return asked_for


def kunit(log):
    """The KUnit tests in a kernel's log, without those of suites: (name, passed)."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return [(name, not bad) for bad, name in re.findall(r"^ +(not )?ok [0-9]+ ([\w.-]+)$", text, re.M)]


def good(house, name, program=""):
    """Whether a guest has nothing that another one should be asked for: of one
    program its rows, else what the kernel says of itself."""
    results = house.load(name)
    if program:
        return {row.verdict for row in results.of(program)} == {"ok"}
    return results.taint == "0" and not complaint(house.results / f"{name}.log")


def verdict(house):
    def say(good, name, why=""):
        print(f"ok - {name}" if good else f"not ok - {name} # {why}")

    results = {kernel: house.load(kernel) for kernel in ("unpatched", "patched")}
    for program in house.own:
        # Every planned row is there: a test that died in the middle reports fewer.
        for kernel, result in results.items():
            n, plan = len(result.of(program)), result.plan.get(program)
            say(0 < n == plan, f"{kernel}: all planned rows of {program} ran", f"{n} of {plan or 'no plan'}")
        # What dies or complains after its last row fails too.
        end = [row for row in results["patched"].of("suite") if row.name == program]
        say([row[1::2] for row in end] == [("ok", "")], f"patched: {program} ends well",
            "; ".join(f"{row.verdict} {row.reason}" for row in end) or "no word of its end")

    # Our kernels have every feature configured: a SKIP hides a missing one.
    for row in (row for row in results["patched"].rows if row.program in house.own):
        say(row.verdict == "ok", f"patched: {row.program} {row.name}",
            row.reason if row.verdict == "fail" else f"{row.verdict} {row.reason}")

    # The control: what fails on the unpatched kernel is what the series says it fixes.
    expected, used = expected_failures(house.series / "expected-failures"), set()
    for row in (row for row in results["unpatched"].rows if row.program in house.own):
        name = f"{row.program} {row.name}"
        by = [one for one in expected if one.pattern.fullmatch(name)]
        used.update(by)
        if row.verdict == "fail":
            say(by, f"control: unpatched loses {name}", f"no patch claims it: {row.reason}")
        elif by and not by[0].races:
            say(False, f"control: unpatched loses {name}", f"it does not: {row.verdict}, but '{by[0].subject}' claims to fix it")
    if not used:
        say(False, "control: unpatched loses what the series claims to fix",
            "no claim has a row: nothing shows that the rows can fail")
    for one in expected:
        if one not in used:
            say(False, f"control: {one.subject}", f"no row matches its claim {one.text}")

    # The KUnit tests that the series brings ran when the kernel booted.
    tests = kunit(house.results / "patched.log")
    for name, passed in tests:
        say(passed, f"patched: KUnit {name}", "see patched.log")
    series = house.series / "series"
    if series.is_file() and "_kunit.c" in series.read_text():
        say(tests, "patched: KUnit tests ran", "patched.log has none")

    # The kernel's own opinion: DEBUG_VM and page_table_check speak through the log.
    said = complaint(house.results / "patched.log")
    say(not said, "patched: clean log", said)
    taint = results["patched"].taint
    say(taint == "0", "patched: not tainted", f"tainted: {taint or 'no word from the guest'}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            compare(house)
        say(True, "upstream suites: nothing that passed before fails")
    except Bad as why:
        say(False, "upstream suites: nothing that passed before fails", why)


def mutant(path, wanted, died=""):
    """Whether a row that must notice did, another one, or none. One in which the
    guest died did; before the first row it is not the tests that noticed."""
    results = Results(pathlib.Path(path))
    named = [one.partition(" ")[::2] for one in re.split("; *", wanted) if one]
    failed = [(row.program, row.name) for row in results.rows if row.verdict == "fail"]
    if died and not failed and results.begun:
        failed.append(results.begun)
    noticed = [row for row in failed if any(row[0] == program and name in row[1] for program, name in named)]
    for word, found in (("killed by", noticed), ("killed by another row:", failed)):
        if found:
            return f"{word} {found[0][0]} {found[0][1]}"
    if died:
        return "no row ran"
    # A row that is not there, or that was skipped, says nothing.
    return "survived" if any(row.verdict == "ok" for row in results.rows) else f"no row ran that is called {wanted}"
