"""What is measured and stands in a text: written there, and compared with it.

patches/<base>/figures says what each figure is, and which rows show it. In a text
it stands between marks, which are comments there: <!-- figures: NAME --> and
<!-- /figures --> in Markdown, ".. figures: NAME" in reST, "# figures: NAME" in a
cover letter."""
import re
import shutil
from pathlib import Path

from bench import measured
from ktap import Bad, pattern

MARK = re.compile(r"((?:<!--|^\.\.|^#) figures: (\S+)(?: -->)?)(.*?)((?:<!--|^\.\.|^#) /figures)", re.S | re.M)


class NotMeasured(Bad):
    """What make test does not measure need not be there."""


class Figures:
    def __init__(self, house):
        self.house, self.cache, self.globs, self.tables, self.used = house, {}, [], {}, set()
        for line in (house.series / "figures").read_text().splitlines():
            if m := re.match(r"([\w-]+)(:| =) (.*)", line):
                fields = re.split(r"\s+\|\s+", m[3].strip())
                if m[1] == "texts":
                    self.globs = fields
                    continue
                rows = self.tables[m[1]] = []
                head = fields if m[2] == ":" else fields[:1]
                rows.extend([head] if m[2] == ":" else [head, fields[1:] or [""]])
            elif line.strip() and line[0] != "#":
                rows.append(re.split(r"\s+\|\s+", line.strip()))
        # brief: the lines of another table that are marked so, without the rows.
        brief = {name: self.tables[rows[0][0].split()[1]] for name, rows in self.tables.items() if rows[0][0].startswith("brief ")}
        for name, (head, *rows) in brief.items():
            self.tables[name] = [head[:-1]] + [[row[0][2:], *row[1:]] for row in rows if row[0].startswith("* ")]
        for rows in self.tables.values():
            for row in rows[1:]:
                row[0] = row[0].removeprefix("* ")

    def texts(self):
        return [file for glob in self.globs for file in sorted(self.house.top.glob(glob))]

    # --- what is measured

    def load(self, name):
        if name not in self.cache:
            self.cache[name] = self.house.load(name)
        return self.cache[name]

    def rows(self, kernel, shows, memory="*"):
        """Rows of a kernel that match: PROGRAM PATH MEMORY MODE; !what is not meant."""
        wanted = [pattern(one.strip()) for one in shows.split(";") if not one.strip().startswith("!")]
        without = [pattern(one.strip()[1:]) for one in shows.split(";") if one.strip().startswith("!")]
        kind = pattern(memory)
        for row in self.load(kernel).rows:
            name = f"{row.program} {row.name}"
            if any(one.fullmatch(name) for one in wanted) and not any(one.fullmatch(name) for one in without):
                if memory == "*" or kind.fullmatch(row.name.split(" ")[1]):
                    yield row

    def one(self, values, shows):
        """All that match have to be the same, or it is a range."""
        values = sorted(set(values))
        if not values:
            raise Bad(f"no row matches {shows}")
        return values[0] if len(values) == 1 else f"{values[0]}–{values[-1]}"

    def value(self, expression, shows, style, words=""):
        what, *args = expression.split()
        house = self.house
        if what == "rows":
            # The rows that show it stand beside it.
            text = "; ".join(f"`{one}`".replace("`!", "not `") for one in map(str.strip, shows.split(";")))
            return text.replace("|", "\\|") if style == ".md" else text
        if what == "faults":
            kernel, which = ("patched", 0) if args[0] == "unregistered" else (args[0], 1)
            faults = self.load(kernel).faults
            return self.one((f"{faults[row.name][which]:.2f}" for row in self.rows(kernel, shows) if row.name in faults), shows)
        if what in ("kept", "holds"):
            verdicts = [row.verdict for row in self.rows(args[0], shows, *args[1:]) if row.verdict != "skip"]
            good, bad = {"kept": ("kept", "lost"), "holds": ("yes", "no")}[what]
            if words:
                good, bad = (word.strip() for word in words.split("/"))
            bad = f"**{bad}**" if style == ".md" else bad
            # Where there is no such row, it does not happen to this kind of memory.
            if not verdicts and len(args) > 1:
                return "``-``"
            failed = len(verdicts) - verdicts.count("ok")
            if not verdicts:
                raise Bad(f"no row matches {shows}")
            return good if not failed else bad if failed == len(verdicts) else f"{bad} ({failed} of {len(verdicts)})"
        if what in ("count", "failed", "skipped"):
            verdict = {"count": "", "failed": "fail", "skipped": "skip"}[what]
            return str(sum(verdict in ("", row.verdict) for row in self.rows(args[0], shows)))
        if what == "mutants":
            patches = sorted(house.top.glob("mutants/*.patch"))
            if args == ["killed"]:
                said = [house.out / "mutants" / patch.stem for patch in patches]
                if not all(file.is_file() for file in said):
                    raise NotMeasured("make mutants has not run all of them")
                return str(sum(file.read_text().startswith("killed by ") for file in said))
            return str(sum(not args or "\nTest: yes\n" in patch.read_text() for patch in patches))
        if what == "patches":
            return str(len(self.patches(*args)))
        if what == "subjects":
            return "\n" + "".join(f"- {subject}\n" for subject in self.patches(*args, kernel=True))
        if what == "unshown":
            shown = (house.series / "expected-failures").read_text().splitlines()
            return "; ".join(f"`{subject}`" for subject in self.patches(kernel=True) if subject not in shown) or "none"
        if what == "origin":
            return house.origin(args[0])
        if what == "demo":
            if not (house.results / "demo.md").is_file():
                raise NotMeasured("there is no results/demo.md; make demo leaves it")
            versions, *lines = (house.results / "demo.md").read_text().splitlines()
            table = [line for line in lines if line.startswith("|")]
            return {"versions": versions, "table": "\n" + "".join(f"{line}\n" for line in table),
                    # Of the first snapshot.
                    "torn": table[2].split("|")[4].strip(), "mended": table[2].split("|")[5].strip()}[args[0]]
        if what == "profile":
            file = house.results / f"profile-{'-'.join(args)}.md"
            if not file.is_file():
                raise NotMeasured(f'there is no {file.name}; make profile ROW="{" ".join(args)}" leaves it')
            return "\n" + "".join(f"{line}\n" for line in file.read_text().splitlines() if line.startswith("|"))
        if what == "torture":
            if not (house.results / "torture.txt").is_file():
                raise NotMeasured("there is no results/torture.txt; make torture leaves it")
            operations, accesses = re.findall("([0-9]+) (?:operations|accesses)", (house.results / "torture.txt").read_text())
            return f"{int({'operations': operations, 'accesses': accesses}[args[0]]):,}"
        if what == "bench":
            if not (house.results / "bench.tsv").is_file():
                raise NotMeasured("there is no results/bench.tsv; make bench leaves it")
            kernel, registered, unit = args
            match = pattern(shows)
            return self.one((f"{row.each(unit):.{2 if unit == 'faults' else 1}f}" for row in measured(house.results / "bench.tsv")
                             if (row.kernel, row.registered) == (kernel, registered)
                             and match.fullmatch(f"{row.group} {row.scenario} {row.memory}")), shows)
        raise Bad(f"patches/{house.base}/figures: there is no measure '{expression}'")

    def patches(self, topic="", kernel=False):
        found = []
        for line in (self.house.series / "series").read_text().splitlines():
            if line and line[0] != "#" and (not topic or topic in line.split()[0].split(",")):
                text = (self.house.series / line.split()[1]).read_text()
                if not kernel or re.search(r"^--- a/(?!tools/|Documentation/|MAINTAINERS)", text, re.M):
                    found.append(re.sub(r"\n ", " ", re.search(r"^Subject: (?:\[PATCH\] )?((?:.|\n )*)", text, re.M)[1]))
        return found

    # --- as text

    def cells(self, name, style):
        """A table: its head, and its lines of cells."""
        if name not in self.tables:
            raise Bad(f"patches/{self.house.base}/figures has no {name}")
        self.used.add(name)
        head, *rows = self.tables[name]
        columns = [[part.strip() for part in column.partition(" = ")[::2]] for column in head]
        fixed = sum(not measure for _, measure in columns)
        lines = [[title for title, _ in columns]]
        for row in rows:
            labels, shows, words = row[:fixed], row[fixed] if len(row) > fixed else "", "".join(row[fixed + 1:])
            labels = [re.sub(r"\{(.*?)\}", lambda m: self.value(m[1], shows, style), label) for label in labels]
            lines.append([self.value(measure, shows, style, words) if measure else labels.pop(0) for _, measure in columns])
        return lines

    def text(self, name, style):
        if len(self.tables.get(name, ())) == 2 and len(self.tables[name][0]) == 1:
            self.used.add(name)
            (measure,), shows = self.tables[name]
            return self.value(measure, shows[0], style)
        lines = self.cells(name, style)
        if style == ".md":
            lines.insert(1, ["---"] * len(lines[0]))
            return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
        width = [max(map(len, column)) for column in zip(*lines)]
        if style == ".rst":
            rule = "  ".join("=" * n for n in width)
            body = ["  ".join(f"{cell:{n}}" for cell, n in zip(line, width)).rstrip() for line in lines]
            return "\n\n" + "\n".join([rule, body[0], rule, *body[1:], rule]) + "\n\n"
        return "\n" + "".join("  " + f"{line[0]:{width[0]}}" + "".join(f"  {cell:>{n}}" for cell, n in zip(line[1:], width[1:]))
                              + "\n" for line in lines)


def differs(there, here):
    """The first cell of a text that is not the one that was measured."""
    def cells(text):
        return [re.split(r" +\| +|  +", line.strip("| ")) for line in text.strip().splitlines()
                if not re.fullmatch("[-=| ]+", line)]
    one, other = cells(there), cells(here)
    for i, line in enumerate(other):
        said = one[i] if i < len(one) else []
        for j, cell in enumerate(line):
            if j >= len(said) or said[j] != cell:
                where = f"{line[0]}, {other[0][j]}: " if len(other) > 1 else ""
                return f"{where}says {said[j] if j < len(said) else 'nothing'}, measured {cell}"
    return "has more than is measured" if len(one) > len(other) else "is laid out in another way"


def figures(house, check):
    """Returns whether all is as it should be."""
    if not (house.series / "figures").is_file():
        print(f"ok - none # SKIP there is no patches/{house.base}/figures, so no text is about this base")
        return True
    measures, good = Figures(house), True

    def say(word, name, why=""):
        if check:
            print(f"{word} - {name}{' # ' * bool(why)}{why}")
        elif why:
            print(f"figures: {name}: {str(why).removeprefix('SKIP ')}")

    for file in measures.texts():
        path = file.relative_to(house.top)

        def put(match):
            nonlocal good
            there, name = match[3], match[2]
            try:
                here = measures.text(name, file.suffix if file.suffix in (".md", ".rst") else "")
            except NotMeasured as why:
                say("ok", f"{path}: {name}", f"SKIP {why}")
                return match[0]
            except Bad as why:
                good = False
                say("not ok", f"{path}: {name}", why)
                return match[0]
            if check and there != here and measures.tables[name][0][0].startswith("origin "):
                # A newer base is no mistake in the text.
                say("ok", f"{path}: {name}", f"SKIP the text is about {there}, this is {here}")
                return match[0]
            good &= not check or there == here
            say("ok" if there == here else "not ok", f"{path}: {name}",
                "" if there == here or not check else f"{differs(there, here)}; make figures writes it")
            return match[1] + here + match[4]

        text = file.read_text()
        if text.count("figures: ") != len(MARK.findall(text)):
            good = False
            say("not ok", f"{path}", "a mark has no end")
        new = MARK.sub(put, text)
        if not check and new != text:
            Path(f"{file}.part").write_text(new)
            Path(f"{file}.part").replace(file)
            print(f"figures: {path}: written")
    # The picture goes with the table.
    if not check and "demo" in measures.used and (house.results / "demo.svg").is_file():
        shutil.copy(house.results / "demo.svg", house.top / "demo/snapshot.svg")
    for name in measures.tables.keys() - measures.used:
        good = False
        say("not ok", f"{name}", "no text has it")
    return good
