"""What the boots showed, as tables."""
import datetime
from collections import Counter, defaultdict

from ktap import Bad


def table(head, cells, none="not run"):
    """Cells (column, path, memory, mode, word): paths and kinds of memory downwards,
    columns across, in the order in which they come. Kinds that fare the same share
    a line; modes are named if they differ."""
    got, modes, kinds, columns, every = {}, defaultdict(dict), defaultdict(dict), {}, {}
    for column, path, memory, mode, word in cells:
        got[column, path, memory, mode] = word
        modes[path, memory][mode] = kinds[path][memory] = columns[column] = every[memory] = True

    def word_of(column, path, memory):
        words = [(mode, got.get((column, path, memory, mode), none)) for mode in modes[path, memory]]
        if len({word for _, word in words}) == 1:
            return words[0][1]
        return ", ".join(f"{mode} {word}" for mode, word in words)

    width = [max(len(column), 12) for column in columns]

    def line(first, second, words):
        words = list(words) + [""] * (len(width) - len(words))
        return f"| {first:29} | {second:54} |" + "".join(f" {word:{n}} |" for word, n in zip(words, width))

    lines = [line(head, "kind of memory", columns), line("-" * 29, "-" * 54, ["-" * n for n in width])]
    for path, memories in kinds.items():
        groups = defaultdict(list)
        for memory in memories:
            groups[tuple(word_of(column, path, memory) for column in columns)].append(memory)
        name = path
        for words, members in groups.items():
            text = ", ".join(members)
            if len(groups) == 1 and len(members) > len(every) / 2:
                but = ", ".join(memory for memory in every if memory not in memories)
                text = f"all but {but}" if but else "all"
            # Long lists of kinds go on in lines of their own.
            while text:
                part = text if len(text) <= 54 else text[:text.rindex(",", 0, 54) + 1]
                text = text[len(part):].lstrip()
                lines.append(line(name, part, words))
                name, words = "", ()
    return lines, "kinds of memory: " + ", ".join(every)


def report(house, names):
    names = names or ["unpatched", "patched"]
    results = {name: house.load(name) for name in names}
    bad = False
    print(f"\n{house.origin('title')}, {house.arch}, {datetime.date.today()}; "
          f"unpatched and patched with patches/{house.base}\n")

    def word(row):
        if row.verdict == "fail":
            return row.reason.split(":")[0] or "failed"
        return "kept" if row.verdict == "ok" else "skipped"

    def show(head, cells):
        lines, kinds = table(head, cells)
        print(*lines, "", kinds, sep="\n")

    show("what happens to the PTE", [(name, *f"{row.name}  ".split(" ")[:3], word(row))
                                     for name in names for row in results[name].of("uffd-wp-pte")])
    print("\nfaults a page, of writes to pages that are not protected, or no more:\n")
    columns = [(name, name, 1) for name in names] + [("unregistered", "patched", 0)]
    show("what happens before the write", [(column, *f"{row}  ".split(" ")[:3], f"{value[which]:.2f}")
                                           for column, name, which in columns if name in results
                                           for row, value in results[name].faults.items()])
    for program in house.own:
        rows = {name: results[name].of(program) for name in names}
        print(f"\n{program}:")
        for name in names:
            count = Counter(row.verdict for row in rows[name])
            print(f"  {name:12} {count['ok']} pass, {count['fail']} fail, {count['skip']} skipped")
        for name in names:
            for row in rows[name]:
                if row.verdict == "skip":
                    print(f"  {name}, {row.name}: skipped: {row.reason}")
        patched = rows.get("patched", [])
        ran = {row.name for row in patched}
        wrong = [f"  {row.name}: {row.reason}" for row in patched if row.verdict == "fail"]
        wrong += [f"  {name}: not run" for name in dict.fromkeys(row.name for name in names for row in rows[name])
                  if name not in ran]
        if wrong:
            print("not passed by the patched kernel:", *wrong, sep="\n")
        bad |= bool(wrong) or not any(row.verdict == "ok" for row in patched)
    if bad:
        raise Bad(f"the patched kernel does not pass every row; see {house.results}/patched.ktap")
