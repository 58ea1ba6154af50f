"""The parts of scripts/results, on reports as guests give them (tests/ktap): python3 -m unittest tests/results.py"""
import contextlib
import io
import pathlib
import re
import shutil
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "scripts" / "results.d"))
import bench  # noqa: E402
import figures  # noqa: E402
import ktap  # noqa: E402
import judge  # noqa: E402
import tables  # noqa: E402
from ktap import Bad, Results, Row, pattern  # noqa: E402

EXPECTED = """# a comment

mm/ksm: keep it
	uffd-wp-pte ksm_* * (sync|async)
mm: fault around
	uffd-wp-faults read_in memfd sync
"""


class House:
    """As ktap.House, around recordings."""
    base, arch, own = "7.3", "x86_64", ["uffd-wp-pte", "uffd-wp-ranges", "uffd-wp-faults"]

    def __init__(self, folder, **results):
        self.results = self.series = self.out = folder
        (folder / "expected-failures").write_text(EXPECTED)
        (folder / "patched.log").write_text("Linux version 7.3.4\n")
        for name, recording in {"unpatched": "unpatched", "patched": "good", **results}.items():
            shutil.copy(HERE / "ktap" / f"{recording}.ktap", folder / f"{name}.ktap")

    def load(self, name):
        return Results(self.results / f"{name}.ktap")

    def origin(self, field):
        return field


def recorded(name):
    return Results(HERE / "ktap" / f"{name}.ktap")


class Ktap(unittest.TestCase):
    def test_good(self):
        good = recorded("good")
        self.assertEqual(good.plan, {"uffd-unit-tests": 4, "uffd-wp-faults": 3, "uffd-wp-pte": 4, "uffd-wp-ranges": 2})
        for program in good.plan:
            self.assertEqual(len(good.of(program)), good.plan[program])
        self.assertEqual(good.of("suite"), [Row("suite", "ok", program, "") for program in good.plan])
        self.assertEqual(good.faults["read_in memfd sync"], (0.062, 0.062))
        self.assertEqual(good.taint, "0")
        # What kselftest.h says of a test that it skips.
        self.assertIn(Row("uffd-unit-tests", "skip", "minor on anon", ""), good.rows)

    def test_fail_and_skip(self):
        self.assertIn(Row("uffd-wp-pte", "fail", "ksm_merge anon sync", "lost: no event"), recorded("unpatched").rows)
        self.assertIn(Row("uffd-wp-pte", "skip", "ksm_merge anon-thp sync", "no huge page to be had"), recorded("skip").rows)

    def test_ends(self):
        for name in "hang", "panic":
            self.assertEqual(recorded(name).begun, ("uffd-wp-pte", "ksm_merge anon-thp sync"))
            self.assertIsNone(recorded(name).taint)
        for name in "torn", "torn-middle", "early":
            self.assertEqual([row.name for row in recorded(name).of("uffd-wp-pte")],
                             ["mprotect_read_rw anon sync", "ksm_merge anon sync"], name)
        self.assertIn(Row("suite", "fail", "uffd-wp-pte", "exit=139"), recorded("early").rows)
        self.assertIn(Row("uffd-wp-ranges", "ok", "protect anon whole", ""), recorded("torn-middle").rows)

    def test_real(self):
        # As make run has it, of the unpatched kernel.
        real = recorded("rows")
        self.assertEqual(real.plan, {"uffd-wp-pte": 15, "uffd-wp-ranges": 3, "uffd-wp-faults": 85})
        self.assertEqual({program: sum(row.verdict == "fail" for row in real.of(program)) for program in real.plan},
                         {"uffd-wp-pte": 11, "uffd-wp-ranges": 3, "uffd-wp-faults": 46})
        self.assertEqual(len(real.faults), 85)
        self.assertEqual(real.faults["first_write shmem-mthp sync"], (0.062, 1.0))
        self.assertEqual(real.begun, ("uffd-wp-faults", "async_untouched file async"))
        self.assertEqual(real.of("suite")[0], Row("suite", "fail", "uffd-wp-pte", "exit=1"))

    def test_missing(self):
        with self.assertRaisesRegex(Bad, "there is no .*run make first"):
            recorded("none")

    def test_pattern(self):
        one = pattern("uffd-wp-pte ksm_* (anon|memfd-*) sync")
        self.assertTrue(one.fullmatch("uffd-wp-pte ksm_merge memfd-private-cow sync"))
        for name in "uffd-wp-pte ksm_merge tmpfs sync", "uffd-wp-pte ksm a anon sync", "uffd-wp-pte ksm_merge anon async":
            self.assertFalse(one.fullmatch(name), name)
        self.assertFalse(pattern("a.c").fullmatch("abc"))


class Judged(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def said(self, what, *args):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            what(*args)
        return out.getvalue().splitlines()

    def wrong(self, change=None, **results):
        house = House(self.folder, **results)
        if change:
            change(house)
        return [line for line in self.said(judge.verdict, house) if not line.startswith("ok - ")]

    def test_good(self):
        self.assertEqual(self.wrong(), [])

    def test_each_recording(self):
        ran = "not ok - patched: all planned rows of uffd-wp-pte ran # "
        missing = "not ok - patched: all planned rows of uffd-wp-ranges ran # 0 of no plan"
        no_end = ["not ok - patched: uffd-wp-pte ends well # no word of its end", missing,
                  "not ok - patched: uffd-wp-ranges ends well # no word of its end",
                  "not ok - patched: not tainted # tainted: no word from the guest"]
        lost = "not ok - patched: uffd-wp-pte ksm_merge anon sync # lost: no event"
        for recording, lines in {
                "hang": [ran + "2 of 4", *no_end],
                "panic": [ran + "2 of 4", *no_end[:3], lost, no_end[3]],
                "torn": [ran + "2 of 4", *no_end],
                "torn-middle": [ran + "2 of 4", "not ok - patched: uffd-wp-pte ends well # fail exit=137"],
                "early": [ran + "2 of 4", "not ok - patched: uffd-wp-pte ends well # fail exit=139"],
                "skip": ["not ok - patched: uffd-wp-pte ksm_merge anon-thp sync # skip no huge page to be had"],
        }.items():
            with self.subTest(recording):
                self.assertEqual(self.wrong(patched=recording), lines)

    def test_control(self):
        self.assertIn("not ok - control: unpatched loses what the series claims to fix # "
                      "no claim has a row: nothing shows that the rows can fail",
                      self.wrong(lambda house: (house.series / "expected-failures").write_text("")))
        self.assertEqual(
            self.wrong(unpatched="good"),
            [f"not ok - control: unpatched loses {row} # it does not: ok, but '{by}' claims to fix it" for row, by in (
                ("uffd-wp-faults read_in memfd sync", "mm: fault around"),
                ("uffd-wp-pte ksm_merge anon sync", "mm/ksm: keep it"),
                ("uffd-wp-pte ksm_merge anon-thp sync", "mm/ksm: keep it"))])

    def test_control_races(self):
        def races(house):
            (house.series / "expected-failures").write_text(EXPECTED.replace("memfd sync", "memfd sync?"))

        self.assertEqual(self.wrong(races), [])
        # Another row still has to fail.
        self.assertEqual(len(self.wrong(races, unpatched="good")), 2)

    def test_log(self):
        log = (HERE / "ktap" / "full-cgroup.log").read_text()

        def with_log(text):
            return self.wrong(lambda house: (house.results / "patched.log").write_text(text))
        self.assertEqual(with_log(log), [])
        # Another's stack, a BUG within it, and a killer that never ends, are complaints.
        for text in (log.replace("uffd-wp-ranges invoked", "sh invoked"), log.replace("</TASK>", "BUG: Bad page map"),
                     log.replace("no killable", "no"), log + "Call Trace:\n"):
            self.assertRegex("\n".join(with_log(text)), "^not ok - patched: clean log # .*$")
        self.assertRegex("\n".join(self.wrong(lambda house: (house.results / "patched.log").unlink())), "clean log # there is no")

    def test_kunit(self):
        def tests(text, brings):
            def change(house):
                (house.results / "patched.log").write_text(text)
                (house.series / "series").write_text(f"check 0001-a.patch {brings}\n")
            return self.wrong(change)
        log = "KTAP version 1\n1..1\n    # Subtest: shadow\n    1..2\n    ok 1 moves\n    ok 2 drops\nok 1 shadow\n"
        self.assertEqual(tests(log, "mm/tests/a_kunit.c"), [])
        self.assertEqual(tests(log.replace("    ok 2", "    not ok 2"), "mm/tests/a_kunit.c"),
                         ["not ok - patched: KUnit drops # see patched.log"])
        self.assertEqual(tests("booted\n", "mm/tests/a_kunit.c"), ["not ok - patched: KUnit tests ran # patched.log has none"])
        self.assertEqual(tests("booted\n", "mm/a.c"), [])

    def test_race(self):
        def fails(house, *names):
            for name in names:
                file = house.results / f"{name}.ktap"
                file.write_text(file.read_text().replace("# # ok 1 wp on anon", "# # not ok 1 wp on anon # raced"))
        upstream = ["not ok - upstream suites: nothing that passed before fails # the patched kernel does worse in "
                    f"upstream's suites; see {self.folder}/patched.ktap"]
        self.assertEqual(self.wrong(lambda house: fails(house, "patched")), upstream)
        self.assertEqual(self.wrong(lambda house: fails(house, "patched", "again"), again="good"), upstream)
        self.assertEqual(self.wrong(lambda house: fails(house, "patched"), again="good"), [])

    def test_report(self):
        said = self.said(tables.report, House(self.folder), [])
        for cells in (["ksm_merge", "all but memfd", "lost", "kept"], ["mprotect_read_rw", "anon", "kept", "kept"],
                      ["read_in", "memfd", "sync 1.00, async 0.06", "0.06", "0.06"]):
            self.assertIn(cells, [[cell.strip() for cell in line.strip("|").split("|")] for line in said])
        for recording in "hang", "torn", "early":
            with self.assertRaises(Bad):
                self.said(tables.report, House(self.folder, patched=recording), [])

    def test_mutant(self):
        def mutant(name, *args):
            return judge.mutant(HERE / "ktap" / f"{name}.ktap", *args)
        rows = "uffd-wp-pte ksm_merge anon sync; uffd-wp-pte zap"
        self.assertEqual(mutant("unpatched", rows), "killed by uffd-wp-pte ksm_merge anon sync")
        self.assertEqual(mutant("unpatched", "uffd-wp-pte zap"), "killed by another row: uffd-wp-faults read_in memfd sync")
        self.assertEqual(mutant("good", rows), "survived")
        self.assertEqual(mutant("no-row", rows), f"no row ran that is called {rows}")
        self.assertEqual(mutant("no-row", rows, "died"), "no row ran")
        self.assertEqual(mutant("panic", rows, "died"), "killed by uffd-wp-pte ksm_merge anon sync")
        self.assertEqual(mutant("hang", "uffd-wp-pte ksm_merge", "died"), "killed by uffd-wp-pte ksm_merge anon-thp sync")
        self.assertEqual(mutant("hang", "uffd-wp-pte zap", "died"), "killed by another row: uffd-wp-pte ksm_merge anon-thp sync")


class Tables(unittest.TestCase):
    def test_groups(self):
        cells = [(column, "a", memory, mode, word) for column in ("x", "y") for memory in ("m", "n", "o") for mode in "st"
                 for word in ["lost" if (column, memory, mode) == ("x", "o", "t") else "kept"]]
        lines, kinds = tables.table("head", cells + [("x", "b", "m", "s", "kept")])
        self.assertEqual([[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]],
                         [["a", "m, n", "kept", "kept"], ["", "o", "s kept, t lost", "kept"], ["b", "m", "kept", "not run"]])
        self.assertEqual(kinds, "kinds of memory: m, n, o")

    def test_bench(self):
        def lines(unpatched, patched):
            for kernel, n in ("unpatched", unpatched), ("patched", patched):
                for registered, faults in ("registered", 64 if kernel == "unpatched" else 0), ("unregistered", 0):
                    yield "\t".join(map(str, (kernel, "faults", "read", "memfd", registered, 64, faults, 640, 64, faults, 648)))
                yield "\t".join(map(str, (kernel, "others", "fork", "anon", "unregistered", 64, 0, n, 64, 0, n)))

        def said(what, text):
            with tempfile.NamedTemporaryFile("w") as file, contextlib.redirect_stdout(io.StringIO()) as out:
                file.write(text)
                file.flush()
                what(file.name)
            return out.getvalue()
        good = said(bench.bench, "\n".join(lines(20000, 20050)) + "\n")
        self.assertRegex(good, r"\| read +\| all +\| 1.00 +\| 0.00 +\| 0.00 +\| 10.0 +\| 10.0 +\| 10.0 +\|")
        self.assertIn("+0.25 %", good)
        self.assertIn("8 of 12 figures agree to the digit; the largest difference is 1.250 % (unpatched, read memfd)", good)
        with self.assertRaisesRegex(Bad, "those who do not use it pay"):
            said(bench.bench, "\n".join(lines(20000, 20200)) + "\n")
        with self.assertRaisesRegex(Bad, "could not be measured: unpatched.*failed: no node"):
            said(bench.bench, "unpatched\tfaults\tread\tmemfd\tregistered\tfailed: no node\n")
        picture = said(bench.svg, "\n".join(lines(1, 1)) + "\n")
        self.assertIn('width="201.0" height="9" fill="#c0392b"', picture)
        self.assertEqual(picture.count("read, memfd"), 1)


class Merge(unittest.TestCase):
    def test_cut_short(self):
        """The rest of a guest stays, though a program in it has no end."""
        with tempfile.TemporaryDirectory() as folder:
            old, new = pathlib.Path(folder) / "old.ktap", pathlib.Path(folder) / "new.ktap"
            old.write_text("# # running ./uffd-wp-pte\n# # not ok 1 a\nnot ok 1 selftests: mm: ksft_userfaultfd.sh # TIMEOUT\n"
                           "# # running ./cow\n# # ok 1 b\n# ok 1 cow\n")
            new.write_text("# # running ./uffd-wp-pte\n# # ok 1 a\n# ok 1 uffd-wp-pte\n")
            ktap.merge(old, new)
            self.assertEqual([(row.program, row.verdict, row.name) for row in ktap.Results(old).rows],
                             [("cow", "ok", "b"), ("suite", "ok", "cow"), ("uffd-wp-pte", "ok", "a"), ("suite", "ok", "uffd-wp-pte")])


class Figures(unittest.TestCase):
    SPEC = """# a comment
texts: README.md | Documentation/**/*.rst
rows = count patched | uffd-wp-pte * * *
mutants = mutants
killed = mutants killed
bench = bench patched registered faults | faults read memfd
title = origin title
demo = demo table
torn = demo torn
keeps: what | anon = holds patched anon* | shmem = holds patched (memfd|memfd-*)
	KSM | uffd-wp-pte ksm_merge * *
costs: what | before = faults unpatched | after = faults patched | rows = rows
	read in, {count patched} rows | uffd-wp-faults read_in memfd sync; !uffd-wp-pte * * *
	* all modes | uffd-wp-faults read_in memfd *
brief = brief costs
subjects = subjects fixes
"""
    README = ("<!-- figures: rows -->4<!-- /figures --> of <!-- figures: mutants -->1<!-- /figures -->, "
              "<!-- figures: killed -->1<!-- /figures --> <!-- figures: bench -->0.00<!-- /figures --> "
              "<!-- figures: title -->title<!-- /figures -->\n\n<!-- figures: costs -->\n"
              "| what | before | after | rows |\n| --- | --- | --- | --- |\n"
              "| read in, 1 rows | 1.00 | 0.06 | `uffd-wp-faults read_in memfd sync`; not `uffd-wp-pte * * *` |\n"
              "| all modes | 0.06–1.00 | 0.06 | `uffd-wp-faults read_in memfd *` |\n<!-- /figures -->\n"
              "<!-- figures: brief -->\n| what | before | after |\n| --- | --- | --- |\n| all modes | 0.06–1.00 | 0.06 |\n<!-- /figures -->\n"
              "<!-- figures: torn -->9,000<!-- /figures --> <!-- figures: demo -->\n"
              "| memory | KSM | merged | before | after |\n|---|---|---|---|---|\n| anonymous | on | 1, 1 | 9,000 | 0 |\n<!-- /figures -->\n"
              "<!-- figures: subjects -->\n- mm: keep it\n<!-- /figures -->\n")
    RST = ".. figures: keeps\n\n====  ====  =====\nwhat  anon  shmem\n====  ====  =====\nKSM   yes   ``-``\n====  ====  =====\n\n.. /figures\n"

    def setUp(self):
        self.top = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        for folder in "mutants", "Documentation", "out":
            (self.top / folder).mkdir()
        (self.top / "mutants" / "one.patch").touch()
        self.house = House(self.top / "out")
        self.house.top = self.top
        (self.house.series / "figures").write_text(self.SPEC)
        (self.house.series / "series").write_text("fixes 1.patch\nfixes 2.patch\ncost 3.patch\n")
        for i, (subject, file) in enumerate((("mm: keep it", "mm/mmap.c"), ("test it", "tools/a.c"), ("mm: count it", "mm/mmap.c")), 1):
            (self.house.series / f"{i}.patch").write_text(f"Subject: [PATCH] {subject}\n---\n--- a/{file}\n")
        (self.top / "README.md").write_text(self.README)
        (self.top / "Documentation" / "a.rst").write_text(self.RST)

    def said(self, good, check=True):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(figures.figures(self.house, check), good)
        return out.getvalue().splitlines()

    def test_good(self):
        self.assertEqual([line for line in self.said(True) if not line.startswith("ok - ")], [])
        self.assertIn("ok - README.md: killed # SKIP make mutants has not run all of them", self.said(True))
        self.assertIn("ok - README.md: bench # SKIP there is no results/bench.tsv; make bench leaves it", self.said(True))

    def test_written(self):
        for name, text in ("README.md", self.README), ("Documentation/a.rst", self.RST):
            file = self.top / name
            file.write_text(re.sub("yes|0.06|4", "7", text))
            self.said(False)
            self.said(True, check=False)
            self.assertEqual(file.read_text(), text)
            self.said(True)

    def test_differs(self):
        for name, old, new, line in (
                ("README.md", "4<", "5<", "README.md: rows # says 5, measured 4; make figures writes it"),
                ("README.md", "| 1.00 | 0.06", "| 1.00 | 0.00", "README.md: costs # read in, 1 rows, after: says 0.00, measured 0.06; make figures writes it"),
                ("README.md", "1 rows", "2 rows", "README.md: costs # read in, 1 rows, what: says read in, 2 rows, measured read in, 1 rows; make figures writes it"),
                ("README.md", "| all modes | 0.06–1.00 | 0.06 | `uffd-wp-faults read_in memfd *` |\n", "",
                 "README.md: costs # all modes, what: says nothing, measured all modes; make figures writes it"),
                ("README.md", "after |\n| --- | --- | --- |\n", "after |\n| --- | --- | --- |\n| read in | 1.00 | 0.06 |\n",
                 "README.md: brief # all modes, what: says read in, measured all modes; make figures writes it"),
                ("README.md", "keep it", "keep", "README.md: subjects # says - mm: keep, measured - mm: keep it; make figures writes it"),
                ("Documentation/a.rst", "yes ", "no  ", "Documentation/a.rst: keeps # KSM, anon: says no, measured yes; make figures writes it"),
                ("README.md", "figures: rows", "figures: row", "README.md: row # patches/7.3/figures has no row"),
                ("README.md", "<!-- /figures -->\n", "", "README.md # a mark has no end"),
                ("out/figures", "ksm_merge * *", "ksm_merg * *", "Documentation/a.rst: keeps # KSM, anon: says yes, measured ``-``; make figures writes it"),
                ("out/figures", "read_in memfd *", "read memfd *", "README.md: costs # no row matches uffd-wp-faults read memfd *"),
                ("out/figures", "count patched |", "counts patched |", "README.md: rows # patches/7.3/figures: there is no measure 'counts patched'"),
                ("out/figures", "mutants = mutants\n", "mutants = mutants\nmore = mutants\n", "more # no text has it")):
            with self.subTest(line):
                file = self.top / name
                text = file.read_text()
                file.write_text(text.replace(old, new, 1))
                self.assertIn(f"not ok - {line}", self.said(False))
                file.write_text(text)

    def test_demo(self):
        self.assertIn("ok - README.md: demo # SKIP there is no results/demo.md; make demo leaves it", self.said(True))
        table = self.README.partition("figures: demo -->\n")[2].partition("<!--")[0]
        (self.house.results / "demo.md").write_text(f"Linux, QEMU\n\n{table}\nThe pages.\n")
        self.assertEqual([line for line in self.said(True) if "demo" in line or "torn" in line],
                         ["ok - README.md: torn", "ok - README.md: demo"])
        (self.house.results / "demo.md").write_text(f"Linux, QEMU\n\n{table}\nThe pages.\n".replace("9,000", "8,000"))
        self.assertIn("not ok - README.md: torn # says 9,000, measured 8,000; make figures writes it", self.said(False))

    def test_profile(self):
        (self.top / "README.md").write_text(self.README + "\n<!-- figures: where -->\n<!-- /figures -->\n")
        figures = self.house.series / "figures"
        figures.write_text(figures.read_text() + "\nwhere = profile read_in memfd\n")
        self.assertIn("ok - README.md: where # SKIP there is no profile-read_in-memfd.md; "
                      'make profile ROW="read_in memfd" leaves it', self.said(True))
        (self.house.results / "profile-read_in-memfd.md").write_text("Linux\n\n| function | a |\n|---|--:|\n| f() | 1 |\n")
        self.assertRegex("\n".join(self.said(False)), "not ok - README.md: where # .*make figures writes it")
        self.said(True, check=False)
        self.assertIn("| f() | 1 |\n<!-- /figures", (self.top / "README.md").read_text())

    def test_torture(self):
        (self.top / "README.md").write_text(self.README + "\n<!-- figures: many -->1<!-- /figures --> operations\n")
        figures = self.house.series / "figures"
        figures.write_text(figures.read_text() + "\nmany = torture operations\n")
        self.assertIn("ok - README.md: many # SKIP there is no results/torture.txt; make torture leaves it", self.said(True))
        (self.house.results / "torture.txt").write_text("1234 operations in 4 histories, 180 accesses, 60 of them reported\n")
        self.assertIn("not ok - README.md: many # says 1, measured 1,234; make figures writes it", self.said(False))

    def test_other_base(self):
        (self.house.series / "figures").unlink()
        self.assertRegex(self.said(True)[0], "^ok - none # SKIP there is no patches/7.3/figures")

    def test_newer_base(self):
        self.house.origin = lambda field: "newer"
        self.assertIn("ok - README.md: title # SKIP the text is about title, this is newer", self.said(True))

    def test_missing(self):
        (self.house.results / "patched.ktap").unlink()
        self.assertRegex("\n".join(self.said(False)), "not ok - README.md: rows # there is no .*patched.ktap; run make first")
        self.assertRegex("\n".join(self.said(False, check=False)), "figures: README.md: rows: there is no .*patched.ktap; run make first")
        self.assertEqual((self.top / "README.md").read_text(), self.README)


if __name__ == "__main__":
    unittest.main()
