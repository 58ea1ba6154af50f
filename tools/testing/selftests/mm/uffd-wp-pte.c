// SPDX-License-Identifier: GPL-2.0
/*
 * A page that is write-protected through userfaultfd stays so, and the next
 * write to it is reported, whatever the kernel does to its page table entry
 * in between.
 *
 * A test is a row: what happens to the entry (path) x kind of memory x mode.
 * The three tables near the end of this file are all there is to read; each
 * row runs in a process of its own:
 *
 *   map, populate, register, protect some pages, run the path, write to all.
 *
 * and a row passes if each write to a protected page blocked, raised exactly
 * one event with the right address and flags, left the old content in place
 * until the event was resolved and the new content after it, and if no write
 * to an unprotected page raised any. A row must prove that its path ran and
 * that its memory is of the kind that it claims to be, else it is a SKIP.
 *
 * A failure begins with one of these words:
 *   lost:      a write to a protected page was not reported
 *   spurious:  a report for a page that was not protected
 *   content:   old content gone too early, or new content not there
 *   event:     an event with a wrong address or flag, or one too many
 *   hang:      something did not finish within its time
 *   crash:     the row's process died
 *   setup:     a step failed that should not
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/mman.h>

#include "../../../../mm/gup_test.h"
#include "uffd-wp-memory.h"
#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define UNPOISON	"/sys/kernel/debug/hwpoison/unpoison-pfn"
#define SPLIT		"/sys/kernel/debug/split_huge_pages"
#define WAIT_MS		5000	/* no single step takes longer */
#define MAX_UNITS	32

struct row;

/* What a path needs */
enum {
	P_PAGES		= BIT(0),	/* works on pages, not on empty entries */
	P_TWO_NODES	= BIT(1),
	P_KSM		= BIT(2),
	P_KSM_ZERO	= BIT(3),
	P_NUMA_HINT	= BIT(4),
	P_EARLY		= BIT(5),	/* registered before it is populated */
	P_ON_OTHER	= BIT(6),	/* populated on the other node */
	P_COMPACT	= BIT(7),
	P_PROT		= BIT(8),	/* first mapped with the protection in arg */
	P_CACHED	= BIT(9),	/* the content is not lost with the entry */
	P_SMALL		= BIT(10),	/* works on a part of a huge page */
	P_LRU		= BIT(11),	/* works on what reclaim looks at */
	P_PRIVATE	= BIT(12),	/* writes to the memory of another process */
	P_SHARED	= BIT(13),	/* writes to private memory */
	P_LARGE		= BIT(14),	/* works on large folios */
	P_PMD		= BIT(15),	/* works on what a PMD may map */
	P_ANON		= BIT(16),	/* works on private anonymous memory */
};

struct path {
	const char *name;
	unsigned int flags;
	int arg;
	void (*prepare)(struct row *row);	/* before it is registered */
	void (*armed)(struct row *row);		/* registered, not protected */
	void (*run)(struct row *row);		/* protected */
};

struct row {
	const struct path *path;
	const struct mode *mode;
	struct memory mem;	/* its units: what one protection, one write is for */
	unsigned int flags;	/* of the kind of memory */
	int try;
	bool filled;		/* there is content, not zeros */

	bool want_hint;		/* each write must take a hinting fault */
	bool hinted[MAX_UNITS];	/* by folio */

	/* the verdict */
	int nr_protected, nr_lost;
	bool bad;
	char why[160];
};

/* Not the end: what else is wrong may tell more. The first one is kept. */
static __printf(2, 3) void bad(struct row *row, const char *fmt, ...)
{
	va_list args;

	if (row->bad)
		return;
	row->bad = true;
	va_start(args, fmt);
	vsnprintf(row->why, sizeof(row->why), fmt, args);
	va_end(args);
}

/*
 * Layout and content of the tested range
 */

static bool protected(const struct row *row, int i)
{
	/* both kinds at either end, in the middle, and side by side */
	return row->mem.nr > 4 ? i % 4 == 0 || i % 4 == 3 : i % 2 == 0;
}

/* The page of a unit that is written and, for KSM, merged. */
static size_t target_page(const struct row *row, int i)
{
	return (target(&row->mem, i) - row->mem.addr) / page_size;
}

static uint64_t get_word(const char *addr)
{
	return __atomic_load_n((const uint64_t *)addr, __ATOMIC_RELAXED);
}

static void put_word(char *addr, uint64_t word)
{
	__atomic_store_n((uint64_t *)addr, word, __ATOMIC_RELAXED);
}

/* Three words of each page have content; the write goes to a fourth one. */
static size_t word_at(int n)
{
	return n == 0 ? 0 : n == 1 ? page_size / 2 : page_size - 8;
}

static size_t write_at(void)
{
	return page_size / 4 + 8;
}

static uint64_t new_word(int i)
{
	return 0x600d600d00000000ULL + i;
}

static uint64_t old_word(const struct row *row, size_t page)
{
	size_t pages = row->mem.unit / page_size;
	bool merged = row->path->flags & P_KSM &&
		      page == target_page(row, page / pages);

	if (!row->filled || (merged && row->path->flags & P_KSM_ZERO))
		return 0;
	return 0x01d01d0100000000ULL + (merged ? 0 : page + 1);
}

/* The content of the file behind a private mapping */
static uint64_t file_word(const struct row *row, size_t page)
{
	uint64_t word = old_word(row, page);

	return row->flags & M_HUGETLB ? 0 :
	       row->flags & M_ANON ? ~word : word;
}

static void check_page(struct row *row, const char *when, int i, size_t page,
		       bool written)
{
	char *addr = row->mem.addr + page * page_size;
	uint64_t got, want;
	int n;

	for (n = 0; n < 4; n++) {
		size_t at = n < 3 ? word_at(n) : write_at();

		want = n < 3 ? old_word(row, page) : written ? new_word(i) : 0;
		got = get_word(addr + at);
		if (got != want)
			bad(row, "content: %s unit %d, byte %zu is %#llx, not %#llx",
			    when, i, (size_t)(addr + at - row->mem.addr),
			    (unsigned long long)got, (unsigned long long)want);
	}
}

/* What the unit holds, seen through the mapping and through the file */
static void check_content(struct row *row, const char *when, int i, bool written)
{
	size_t pages = row->mem.unit / page_size, page = target_page(row, i);
	uint64_t got[2], want[2];

	check_page(row, when, i, page, written);
	if (pages > 1) {
		check_page(row, when, i, i * pages, false);
		check_page(row, when, i, (i + 1) * pages - 1, false);
	}
	if (!(row->flags & M_FD))
		return;
	if (row->flags & M_PRIVATE) {
		want[0] = file_word(row, page);
		want[1] = 0;
	} else {
		want[0] = old_word(row, page);
		want[1] = written ? new_word(i) : 0;
	}
	if (pread(row->mem.fd, &got[0], 8, page * page_size) != 8 ||
	    pread(row->mem.fd, &got[1], 8, page * page_size + write_at()) != 8)
		fail("setup: cannot read the file: %s", strerror(errno));
	if (got[0] != want[0] || got[1] != want[1])
		bad(row, "content: %s unit %d, the file has %#llx %#llx, not %#llx %#llx",
		    when, i, (unsigned long long)got[0], (unsigned long long)got[1],
		    (unsigned long long)want[0], (unsigned long long)want[1]);
}

static void fill(struct row *row)
{
	size_t page;
	int n;

	for (page = 0; page < row->mem.len / page_size; page++)
		for (n = 0; n < 3; n++)
			put_word(row->mem.addr + page * page_size + word_at(n),
				 old_word(row, page));
}

static void write_file_content(struct row *row)
{
	size_t page;
	int n;

	for (page = 0; page < row->mem.len / page_size; page++) {
		uint64_t word = row->flags & M_PRIVATE ?
				file_word(row, page) : old_word(row, page);

		for (n = 0; n < 3; n++)
			if (pwrite(row->mem.fd, &word, 8,
				   page * page_size + word_at(n)) != 8)
				fail("setup: cannot fill the file: %s", strerror(errno));
	}
}

/* Read, so that there is an entry with a page and not only a marker. */
static void touch_all(struct row *row)
{
	size_t pages = row->mem.unit / page_size, n;
	int i;

	for (i = 0; i < row->mem.nr; i++) {
		get_word(target(&row->mem, i));
		if (pages == 1 || row->flags & M_HUGETLB)
			continue;
		for (n = 0; n < 16; n++)
			get_word(row->mem.addr + (i * pages + n) * page_size);
		get_word(row->mem.addr + ((i + 1) * pages - 1) * page_size);
	}
}

/*
 * Mapping and populating
 */

/* Does the content come through the file? */
static bool by_file(const struct row *row)
{
	return row->flags & (M_TMPFS | M_DISK) ||
	       (row->flags & M_PRIVATE && row->flags & M_FD &&
		!(row->flags & M_HUGETLB));
}

static void create(struct row *row)
{
	bool large_file = row->flags & M_LARGE && !(row->flags & M_ANON);
	struct memory *mem = &row->mem;
	int prot = PROT_READ | PROT_WRITE;

	mem->unit = row->flags & M_HUGETLB ? huge_size :
		    row->flags & M_THP ? pmd_size : page_size;
	mem->len = mem->unit * (row->flags & M_MTHP ? 32 :
				mem->unit > page_size ? 4 : 8);
	row->filled = !row->mode->unpop || by_file(row) || large_file;
	if (row->path->flags & P_PROT &&
	    (row->mode->unpop || row->path->flags & P_EARLY))
		prot = row->path->arg;
	map_memory(mem, prot);
	if (large_file)
		fill_file(mem);
	if (large_file || by_file(row))
		write_file_content(row);
}

static void populate(struct row *row)
{
	if (by_file(row) && row->flags & M_PRIVATE && !(row->flags & M_ANON))
		touch_all(row);
	else
		fill(row);
	/* a part that is changed has the rest mapped by PTEs, too */
	if (row->flags & M_MTHP && row->flags & M_ANON && row->mem.folio == pmd_size)
		fail_if(mprotect(row->mem.addr, page_size, PROT_READ) ||
			mprotect(row->mem.addr, page_size, PROT_READ | PROT_WRITE),
			"mprotect");
}

static void prove_units(struct row *row)
{
	int i;

	for (i = 0; i < row->mem.nr; i++)
		prove_page(&row->mem, target(&row->mem, i));
	if (row->flags & M_MTHP)
		prove_mapping(&row->mem);
}

static void protect_units(struct row *row, int first, int count, bool on)
{
	set_protection(&row->mem, first * row->mem.unit, count * row->mem.unit, on);
}

static void protect(struct row *row)
{
	int i, n;

	for (i = 0; i < row->mem.nr; i += n) {
		for (n = 1; i + n < row->mem.nr; n++)
			if (protected(row, i + n) != protected(row, i))
				break;
		if (!protected(row, i))
			continue;
		protect_units(row, i, n, true);
		row->nr_protected += n;
	}
}

/*
 * The other thread: it does the accesses, and may block in them.
 */

static struct {
	pid_t tid;
	int go, done;
	char *addr;
	bool read;
	uint64_t word;
} other;

static void *other_thread(void *arg)
{
	uint64_t n;

	other.tid = syscall(__NR_gettid);
	n = 1;
	if (write(other.done, &n, 8) != 8)
		return NULL;
	while (read(other.go, &n, 8) == 8) {
		if (other.read)
			other.word = get_word(other.addr);
		else
			put_word(other.addr, other.word);
		n = 1;
		if (write(other.done, &n, 8) != 8)
			break;
	}
	return arg;
}

/* What came first within the time: an event, or the end of the access */
enum came { CAME_NOTHING, CAME_EVENT, CAME_DONE };

static enum came wait_for(int uffd, int ms)
{
	struct pollfd fds[2] = {
		{ .fd = uffd, .events = POLLIN },
		{ .fd = other.done, .events = POLLIN },
	};
	uint64_t n;

	if (poll(fds, 2, ms) <= 0)
		return CAME_NOTHING;
	if (fds[0].revents)
		return CAME_EVENT;
	if (read(other.done, &n, 8) != 8)
		fail("setup: lost the other thread");
	return CAME_DONE;
}

static void start_other(void)
{
	other.go = eventfd(0, EFD_CLOEXEC);
	other.done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fail_if(other.go < 0 || other.done < 0, "eventfd");
	start_thread(other_thread, NULL);
	if (wait_for(-1, WAIT_MS) != CAME_DONE)
		fail("hang: the other thread does not start");
}

static void start_access(char *addr, bool read, uint64_t word)
{
	uint64_t n = 1;

	other.addr = addr;
	other.read = read;
	other.word = word;
	if (write(other.go, &n, 8) != 8)
		fail("setup: lost the other thread");
}

/* Both threads, to the CPU of one of the two nodes */
static void pin(int node)
{
	pin_to(0, node);
	if (other.tid)
		pin_to(other.tid, node);
}

/*
 * The checks: this is what the rows are about
 */

static const char *what(bool is_read)
{
	return is_read ? "read" : "write";
}

static void check_event(struct row *row, int i, bool is_read)
{
	size_t align = row->flags & M_HUGETLB ? huge_size : page_size;
	uint64_t want, flags;
	struct uffd_msg msg;

	if (read(row->mem.uffd, &msg, sizeof(msg)) != sizeof(msg)) {
		bad(row, "event: unit %d: it could not be read: %s", i, strerror(errno));
		return;
	}
	if (msg.event != UFFD_EVENT_PAGEFAULT) {
		bad(row, "event: unit %d: it is of kind %#x, not a page fault", i,
		    msg.event);
		return;
	}
	want = (uintptr_t)(target(&row->mem, i) + write_at()) & ~(align - 1);
	if (msg.arg.pagefault.address != want)
		bad(row, "event: unit %d: the address is %#llx, not %#llx", i,
		    (unsigned long long)msg.arg.pagefault.address,
		    (unsigned long long)want);
	flags = row->mode->rwp ? UFFD_PAGEFAULT_FLAG_RWP : UFFD_PAGEFAULT_FLAG_WP;
	if (!is_read)
		flags |= UFFD_PAGEFAULT_FLAG_WRITE;
	if (msg.arg.pagefault.flags != flags)
		bad(row, "event: unit %d: the flags are %#llx, not %#llx", i,
		    (unsigned long long)msg.arg.pagefault.flags,
		    (unsigned long long)flags);
}

static void wait_end(struct row *row, int i, const char *doing)
{
	int extra = 0;
	struct uffd_msg msg;

	for (;;) {
		switch (wait_for(row->mem.uffd, WAIT_MS)) {
		case CAME_DONE:
			return;
		case CAME_NOTHING:
			fail("hang: unit %d: the %s goes on %d ms after it was resolved%s%s",
			     i, doing, WAIT_MS, row->bad ? "; and " : "",
			     row->bad ? row->why : "");
		case CAME_EVENT:
			bad(row, "event: unit %d: one more after it was resolved", i);
			if (++extra > 3 ||
			    read(row->mem.uffd, &msg, sizeof(msg)) != sizeof(msg))
				fail("%s", row->why);
			protect_units(row, i, 1, false);
		}
	}
}

/* An access that must go through without an event */
static void check_free(struct row *row, int i, const char *whose)
{
	struct uffd_msg msg;

	start_access(target(&row->mem, i) + write_at(), false, new_word(i));
	switch (wait_for(row->mem.uffd, WAIT_MS)) {
	case CAME_DONE:
		break;
	case CAME_NOTHING:
		fail("hang: unit %d: the write to %s did not finish in %d ms", i,
		     whose, WAIT_MS);
	case CAME_EVENT:
		bad(row, "spurious: unit %d: an event for a write to %s", i, whose);
		if (read(row->mem.uffd, &msg, sizeof(msg)) != sizeof(msg))
			fail("%s", row->why);
		protect_units(row, i, 1, false);
		wait_end(row, i, "write");
	}
	check_content(row, "after the write,", i, true);
}

/* Counts only hinting faults of the access, see numa_arm(). */
static void note_hint(struct row *row, int i, long long before)
{
	if (row->want_hint && vm_counter("numa_hint_faults") > before)
		row->hinted[folio_index(&row->mem, i)] = true;
}

static void check_sync(struct row *row, int i)
{
	bool is_read = row->mode->rwp && i % 2;
	char *addr = target(&row->mem, i) + (is_read ? 0 : write_at());
	long long hints = row->want_hint ? vm_counter("numa_hint_faults") : 0;
	struct pollfd fd = { .fd = row->mem.uffd, .events = POLLIN };
	enum came came;

	start_access(addr, is_read, new_word(i));
	came = wait_for(row->mem.uffd, WAIT_MS);
	note_hint(row, i, hints);
	if (came == CAME_NOTHING)
		fail("hang: unit %d: the %s neither finished nor raised an event in %d ms",
		     i, what(is_read), WAIT_MS);
	if (came == CAME_DONE) {
		if (!row->nr_lost++ && !row->bad)
			snprintf(row->why, sizeof(row->why), "the %s raised no event",
				 what(is_read));
		return;
	}

	check_event(row, i, is_read);
	if (poll(&fd, 1, 0))
		bad(row, "event: unit %d: more than one", i);
	/* the content of a read-protected page is not there to be looked at */
	if (!row->mode->rwp)
		check_content(row, "before it was resolved,", i, false);
	if (wait_for(-1, 0) == CAME_DONE)
		fail("content: unit %d: the %s did not wait for its event to be resolved",
		     i, what(is_read));
	protect_units(row, i, 1, false);
	wait_end(row, i, what(is_read));
	if (is_read && other.word != old_word(row, target_page(row, i)))
		bad(row, "content: unit %d: the read got %#llx", i,
		    (unsigned long long)other.word);
	check_content(row, "after it was resolved,", i, !is_read);
	check_free(row, i, "a page that was resolved");
}

static bool still_protected(const struct row *row, int i)
{
	return pagemap_entry(target(&row->mem, i)) & PM_UFFD_WP &&
	       !scan_written(target(&row->mem, i));
}

static void check_async(struct row *row, int i)
{
	long long hints = row->want_hint ? vm_counter("numa_hint_faults") : 0;
	enum came came;

	/* No event tells; what the pagemap says of the page does. */
	if (!still_protected(row, i)) {
		if (!row->nr_lost++ && !row->bad)
			snprintf(row->why, sizeof(row->why),
				 "reported as written before the write");
		check_free(row, i, "a page that lost its protection");
		return;
	}
	check_content(row, "before the write,", i, false);
	start_access(target(&row->mem, i) + write_at(), false, new_word(i));
	came = wait_for(row->mem.uffd, WAIT_MS);
	note_hint(row, i, hints);
	if (came == CAME_NOTHING)
		fail("hang: unit %d: the write did not finish in %d ms", i, WAIT_MS);
	if (came == CAME_EVENT)
		fail("spurious: unit %d: an event although nobody is to be told", i);
	check_content(row, "after the write,", i, true);
	if (!scan_written(target(&row->mem, i))) {
		if (!row->nr_lost++ && !row->bad)
			snprintf(row->why, sizeof(row->why),
				 "not reported as written after the write");
	} else if (pagemap_entry(target(&row->mem, i)) & PM_UFFD_WP) {
		bad(row, "event: unit %d: written, but pagemap still has it as protected",
		    i);
	}
}

static void check_units(struct row *row, bool prot)
{
	int i;

	for (i = 0; i < row->mem.nr; i++) {
		if (protected(row, i) != prot)
			continue;
		if (!prot)
			check_free(row, i, "a page that is not protected");
		else if (row->mode->async)
			check_async(row, i);
		else
			check_sync(row, i);
	}
}

static void check_all(struct row *row)
{
	struct pollfd fd = { .fd = row->mem.uffd, .events = POLLIN };
	int i;

	/* A neighbour may share the folio, and its hinting fault serves both. */
	check_units(row, row->want_hint);
	check_units(row, !row->want_hint);
	if (poll(&fd, 1, 0))
		bad(row, "event: one is left over");

	if (row->nr_lost)
		fail("lost: %d of %d protected pages: %s", row->nr_lost,
		     row->nr_protected, row->why);
	if (row->bad)
		fail("%s", row->why);
	for (i = 0; row->want_hint && i < row->mem.nr; i++)
		if (protected(row, i) && !row->hinted[folio_index(&row->mem, i)])
			again("the write to unit %d took no hinting fault", i);
}

/*
 * Paths: mprotect()
 */

static void mprotect_set(struct row *row)
{
	set_prot(&row->mem, row->path->arg);
}

static void mprotect_rw(struct row *row)
{
	set_prot(&row->mem, PROT_READ | PROT_WRITE);
}

static void mprotect_there_and_back(struct row *row)
{
	mprotect_and_back(&row->mem, row->path->arg);
}

static void mprotect_part(struct row *row)
{
	char *part = row->mem.addr + row->mem.nr / 4 * row->mem.unit;
	size_t len = row->mem.nr / 2 * row->mem.unit;
	int n;

	fail_if(mprotect(part, len, row->path->arg), "mprotect");
	n = count_vmas(row->mem.addr, row->mem.map_len);
	if (n != 3)
		fail("setup: %d VMAs after mprotect() of a part, not 3", n);
	fail_if(mprotect(part, len, PROT_READ | PROT_WRITE), "mprotect");
	n = count_vmas(row->mem.addr, row->mem.map_len);
	/* hugetlb VMAs are never merged */
	if (n != (row->flags & M_HUGETLB ? 3 : 1))
		fail("setup: %d VMAs after mprotect() of a part and back", n);
}

/* One small page of every other unit, inside of a huge page if there is one. */
static void mprotect_page(struct row *row)
{
	int prot = row->path->arg, i, n;
	char *page;

	for (n = 0; n < 2; n++, prot = PROT_READ | PROT_WRITE)
		for (i = 0; i < row->mem.nr; i += 2) {
			page = target(&row->mem, i) +
			       (row->mem.unit > page_size ? page_size : 0);
			fail_if(mprotect(page, page_size, prot), "mprotect");
		}
}

/*
 * Paths: unmapping, and faulting in again
 */

static void zap_and_read(struct row *row)
{
	zap(&row->mem);
	/* the first one is protected, and must not pass that on */
	touch_all(row);
	prove_units(row);
}

/*
 * Paths: KSM
 */

static void merge(struct row *row)
{
	ksm_merge(&row->mem, row->mem.nr, row->path->flags & P_KSM_ZERO);
	ksm_pause();
}

static void unmerge(struct row *row)
{
	ksm_unmerge(&row->mem, row->path->arg);
}

static void merge_unmerge(struct row *row)
{
	merge(row);
	step("unmerge");
	unmerge(row);
}

/*
 * Paths: migration. Where the argument is set, mprotect() follows, which
 * finds the entries as migration has left them.
 */

static void then_mprotect(struct row *row)
{
	if (!row->path->arg)
		return;
	step("mprotect after the path");
	mprotect_and_back(&row->mem, PROT_NONE);
}

static void migrate_move_pages(struct row *row)
{
	int home = node_of(target(&row->mem, 0));

	move_pages_to(&row->mem, away_from(home));
	move_pages_to(&row->mem, home);
	then_mprotect(row);
}

static void migrate_mbind(struct row *row)
{
	int home = node_of(target(&row->mem, 0));

	mbind_to(&row->mem, away_from(home));
	mbind_to(&row->mem, home);
	then_mprotect(row);
}

static void migrate_soft_offline(struct row *row)
{
	bool hugetlb = row->flags & M_HUGETLB;
	uint64_t before, after, poisoned;
	int i, n;

	/* A page that is put out of use must be given back. */
	if (access(UNPOISON, W_OK))
		skip("needs %s (CONFIG_HWPOISON_INJECT)", UNPOISON);
	for (i = 0; i < row->mem.nr; i++) {
		char *addr = hugetlb ? row->mem.addr + i * row->mem.unit :
				       target(&row->mem, i);

		if (!protected(row, i))
			continue;
		get_word(target(&row->mem, i));
		before = pfn_of(target(&row->mem, i));
		poisoned = pfn_of(addr);
		for (n = 0; madvise(addr, hugetlb ? row->mem.unit : page_size,
				    MADV_SOFT_OFFLINE); n++) {
			if (errno != EBUSY || n == 20)
				again("MADV_SOFT_OFFLINE of unit %d: %s", i,
				      strerror(errno));
			usleep(1000);
		}
		get_word(target(&row->mem, i));
		after = pfn_of(target(&row->mem, i));
		if (unpoison_memory(poisoned))
			fail("setup: cannot unpoison page %#llx",
			     (unsigned long long)poisoned);
		if (!after || after == before)
			again("MADV_SOFT_OFFLINE did not move unit %d", i);
	}
	then_mprotect(row);
}

/*
 * Compaction moves pages up, to free ones in page blocks that are partly in
 * use: have such blocks above the row's pages, by taking some room before and
 * after them, and freeing what is below, and the first half of each block that
 * is above. Use up the small free pieces at first: the row's pages would be
 * taken from these; and a large folio is split if it finds those above.
 */
enum { ROOM_BEFORE, ROOM_AFTER, FRAGMENTS, NR_SPARE };

static char *spare[NR_SPARE];

#define SPARE_MAX	(8UL << 20)

static size_t spare_len(const struct row *row)
{
	return row->try ? SPARE_MAX : SPARE_MAX / 2;
}

static void take_spare(const struct row *row, int n)
{
	size_t len = spare_len(row);

	spare[n] = mmap(NULL, len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (spare[n] == MAP_FAILED)
		again("no memory: %s", strerror(errno));
	madvise(spare[n], len, n != FRAGMENTS && row->flags & M_MTHP ?
				MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (madvise(spare[n], len, MADV_POPULATE_WRITE))
		again("no memory: %s", strerror(errno));
}

static void before_compact(const struct row *row)
{
	take_spare(row, FRAGMENTS);
	take_spare(row, ROOM_BEFORE);
}

static void free_spare(const struct row *row, uint64_t top)
{
	static uint64_t entry[SPARE_MAX / 4096];
	const size_t block = pmd_size / page_size;
	size_t i, start, nr = spare_len(row) / page_size;
	uint64_t pfn;
	int n;

	for (n = 0; n < NR_SPARE; n++) {
		if (!spare[n] ||
		    pread(pagemap_fd, entry, nr * 8,
			  (uintptr_t)spare[n] / page_size * 8) <= 0)
			continue;
		for (i = 0, start = 0; i <= nr; i++) {
			pfn = i < nr ? PAGEMAP_PFN(entry[i]) : 0;
			if (i < nr && (pfn < top || (n != FRAGMENTS &&
						     pfn % block < block / 2)))
				continue;
			if (i > start)
				madvise(spare[n] + start * page_size,
					(i - start) * page_size, MADV_DONTNEED);
			start = i + 1;
		}
	}
}

static void migrate_compact(struct row *row)
{
	uint64_t before[MAX_UNITS], top = 0;
	int i, moved = 0;
	char path[128];

	if (row->flags & M_MTHP && row->mem.folio == pmd_size)
		skip("no folio is large and smaller than a page block");
	take_spare(row, ROOM_AFTER);
	for (i = 0; i < row->mem.nr; i++) {
		before[i] = pfn_of(target(&row->mem, i));
		if (before[i] > top)
			top = before[i];
	}
	free_spare(row, top);
	snprintf(path, sizeof(path), NODES "node%d/compact", node_of(target(&row->mem, 0)));
	if (!write_text(path, "1") && !write_text("/proc/sys/vm/compact_memory", "1"))
		skip("no compaction: %s", strerror(errno));
	for (i = 0; i < row->mem.nr; i++) {
		get_word(target(&row->mem, i));
		if (protected(row, i) && pfn_of(target(&row->mem, i)) != before[i])
			moved++;
	}
	/* for want of a large free block, it splits and moves small pages */
	prove_units(row);
	if (moved < row->nr_protected)
		again("compaction moved %d of %d pages", moved, row->nr_protected);
	then_mprotect(row);
}

/*
 * Paths: swap, and what else an LRU has in store
 */

/* Protected units whose page is mapped, or is not */
static int count_mapped(const struct row *row, bool mapped)
{
	int i, n = 0;

	for (i = 0; i < row->mem.nr; i++)
		n += protected(row, i) && !pfn_of(target(&row->mem, i)) != mapped;
	return n;
}

static void page_out(struct row *row)
{
	int n, left = 1;

	if (!swap_is_on())
		skip("needs swap space");
	for (n = 0; n < 20 && left; n++) {
		/* what waits in another CPU's batch for the LRU is not looked at */
		if (n)
			write_text("/proc/sys/vm/compact_memory", "1");
		fail_if(madvise(row->mem.addr, row->mem.len, MADV_PAGEOUT),
			"MADV_PAGEOUT");
		left = count_mapped(row, true);
	}
	if (left)
		again("%d of %d pages were not paged out", left, row->nr_protected);
}

static void page_out_and_in(struct row *row)
{
	page_out(row);
	touch_all(row);
	if (count_mapped(row, false))
		again("not all pages are there again");
}

static void page_out_swapoff(struct row *row)
{
	int err;

	page_out(row);
	err = swap_off_and_on();
	if (err)
		again("swapoff: %s", strerror(err));
	/* the pages of a file are in the page cache then, and are not mapped */
	if (row->flags & M_ANON && count_mapped(row, false))
		fail("setup: not all pages are there after swapoff");
}

/* What is protected and a zero page may stay where it is. */
static void migrate_to_device(struct row *row)
{
	long nr = row->mem.len / page_size, moved;

	if (row->mode->unpop)
		touch_all(row);
	moved = move_to_device(row->mem.addr, row->mem.len);
	if (moved < 0)
		skip("no device of test_hmm");
	if (moved < nr && !row->mode->unpop)
		again("%ld of %ld pages went to the device", moved, nr);
	then_mprotect(row);
}

static void advise(struct row *row)
{
	fail_if(madvise(row->mem.addr, row->mem.len, row->path->arg), "madvise");
}

static void lock_and_unlock(struct row *row)
{
	if (mlock(row->mem.addr, row->mem.len))
		skip("mlock: %s", strerror(errno));
	fail_if(munlock(row->mem.addr, row->mem.len), "munlock");
}

static void clear_bits(struct row *row)
{
	if (row->path->arg == 4 && !softdirty_supported())
		skip("no soft-dirty tracking");
	fail_if(!write_text("/proc/self/clear_refs", row->path->arg == 4 ? "4" : "1"),
		"clear_refs");
}

/*
 * Paths: huge pages become small ones, and would become huge again
 */

static void split(struct row *row)
{
	const uint64_t compound = KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	int i, n, left = 1;
	char text[80];

	snprintf(text, sizeof(text), "%d,%#lx,%#lx,0", getpid(),
		 (unsigned long)row->mem.addr,
		 (unsigned long)row->mem.addr + row->mem.map_len);
	for (n = 0; n < 20 && left; n++) {
		if (!write_text(SPLIT, text))
			skip("needs %s", SPLIT);
		touch_all(row);
		for (i = 0, left = 0; i < row->mem.nr; i++)
			left += !!(page_flags(pfn_of(target(&row->mem, i))) & compound);
	}
	if (left)
		again("%d pages are still of a large folio", left);
}

/* Where something is protected, it is refused. */
static void split_and_collapse(struct row *row)
{
	char *at;

	mprotect_page(row);
	for (at = row->mem.addr; at < row->mem.addr + row->mem.len; at += pmd_size)
		if (madvise(at, pmd_size, MADV_COLLAPSE) && errno != EINVAL &&
		    errno != EAGAIN && errno != EBUSY)
			skip("MADV_COLLAPSE: %s", strerror(errno));
}

/*
 * Paths: fork(), and pins. The child has nothing protected, and lives on to the
 * end of the row where its pages are to stay shared.
 */

enum { CHILD_EXITS, CHILD_LIVES, CHILD_WRITES };

static pid_t start_child(const struct row *row, int what)
{
	pid_t parent = getpid(), pid = fork();
	int i;

	fail_if(pid < 0, "fork");
	if (pid)
		return pid;
	/* The row may have ended before this. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(1);
	for (i = 0; what == CHILD_WRITES && i < row->mem.nr; i++)
		put_word(target(&row->mem, i) + word_at(0), ~0ULL);
	while (what == CHILD_LIVES)
		pause();
	_exit(0);
}

static void fork_child(struct row *row)
{
	pid_t pid = start_child(row, row->path->arg);
	uint64_t until = now_ms() + WAIT_MS;
	int status, n = 0;

	while (row->path->arg != CHILD_LIVES && !n) {
		n = waitpid(pid, &status, WNOHANG);
		if (now_ms() > until)
			fail("hang: the child does not end in %d ms", WAIT_MS);
		usleep(1000);
	}
	if (n && status)
		fail("crash: the child ended with %#x", status);
}

static void pin_pages(struct row *row)
{
	struct pin_longterm_test pin = {
		.addr = (uintptr_t)row->mem.addr,
		.size = row->mem.len,
	};
	int fd = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		skip("needs CONFIG_GUP_TEST");
	/* Anonymous pages that are shared are copied for this. */
	if (row->path->arg)
		start_child(row, CHILD_LIVES);
	fail_if(ioctl(fd, PIN_LONGTERM_TEST_START, &pin), "PIN_LONGTERM_TEST_START");
}

/*
 * Paths: NUMA hinting faults
 */

/* What the check of a page involves besides the page */
static void access_elsewhere(int n)
{
	static uint64_t dummy;

	start_access((char *)&dummy, n % 2, 0);
	if (wait_for(-1, WAIT_MS) != CAME_DONE)
		fail("hang: an access elsewhere did not finish");
}

/*
 * On the other node, the fault finds a misplaced page and may migrate it; on
 * the node that it is used from, the fault only puts the entry back.
 */
static void numa_hint(struct row *row)
{
	must_be_on(&row->mem, nodes[row->path->flags & P_ON_OTHER ? 1 : 0],
		   "populating");
	pin(0);
	if (!row->path->arg) {
		/* reads take the faults, and the write finds what they have left */
		take_hints(&row->mem, access_elsewhere);
		return;
	}
	numa_arm(row->try, access_elsewhere);
	row->want_hint = true;
}

/*
 * The tables
 */

#define RW	(PROT_READ | PROT_WRITE)

static const char * const memories[] = {
	"anon", "shared-anon", "memfd", "memfd-private-cow", "memfd-private", "tmpfs",
	"anon-thp", "shmem-thp", "anon-mthp", "shmem-mthp",
	"hugetlb-shared", "hugetlb-private", "hugetlb-anon",
	"file", "file-private-cow", "file-private",
};

static const char * const modes[] = {
	"sync", "async", "unpop", "unpop-async", "scan", "rwp",
};

static const struct path paths[] = {
	{ "none" },
	{ "mprotect_none_rw", 0, PROT_NONE, .run = mprotect_there_and_back },
	{ "mprotect_read_rw", 0, PROT_READ, .run = mprotect_there_and_back },
	{ "mprotect_part_none_rw", 0, PROT_NONE, .run = mprotect_part },
	{ "mprotect_part_read_rw", 0, PROT_READ, .run = mprotect_part },
	/* this splits the PMD of a huge page as well */
	{ "mprotect_page_read_rw", P_SMALL, PROT_READ, .run = mprotect_page },
	/* mapped so, registered, then made writable and used, then protected */
	{ "mprotect_before_none", P_EARLY | P_PROT, PROT_NONE, .armed = mprotect_rw },
	{ "mprotect_before_read", P_EARLY | P_PROT, PROT_READ, .armed = mprotect_rw },
	/* made writable only after it was registered and protected */
	{ "mprotect_registered_none", P_PROT, PROT_NONE, .prepare = mprotect_set,
	  .run = mprotect_rw },
	{ "mprotect_registered_read", P_PROT, PROT_READ, .prepare = mprotect_set,
	  .run = mprotect_rw },

	{ "migrate_move_pages", P_PAGES | P_TWO_NODES, 0, .run = migrate_move_pages },
	{ "migrate_move_pages_mprotect", P_PAGES | P_TWO_NODES, 1, .run = migrate_move_pages },
	{ "migrate_mbind", P_PAGES | P_TWO_NODES, 0, .run = migrate_mbind },
	{ "migrate_mbind_mprotect", P_PAGES | P_TWO_NODES, 1, .run = migrate_mbind },
	{ "migrate_soft_offline", P_PAGES, 0, .run = migrate_soft_offline },
	{ "migrate_soft_offline_mprotect", P_PAGES, 1, .run = migrate_soft_offline },
	{ "migrate_compact", P_PAGES | P_COMPACT, 0, .run = migrate_compact },
	{ "migrate_compact_mprotect", P_PAGES | P_COMPACT, 1, .run = migrate_compact },

	{ "zap_read", P_PAGES | P_CACHED, 0, .run = zap_and_read },

	/* the write finds a swap entry, a page that a read brought in, or swapoff */
	{ "pageout", P_PAGES | P_LRU, 0, .run = page_out },
	{ "pageout_read", P_PAGES | P_LRU, 0, .run = page_out_and_in },
	{ "pageout_swapoff", P_PAGES | P_LRU, 0, .run = page_out_swapoff },
	{ "cold", P_LRU, MADV_COLD, .run = advise },
	{ "populate_read", 0, MADV_POPULATE_READ, .run = advise },
	{ "mlock", P_SHARED, 0, .run = lock_and_unlock },
	{ "clear_referenced", 0, 1, .run = clear_bits },
	{ "clear_soft_dirty", 0, 4, .run = clear_bits },

	/* without a page: of the zero page, which a read has mapped */
	{ "device", P_ANON, 0, .run = migrate_to_device },
	{ "device_mprotect", P_ANON, 1, .run = migrate_to_device },

	{ "split", P_PAGES | P_LARGE, 0, .run = split },
	{ "split_collapse", P_PAGES | P_PMD, PROT_READ, .run = split_and_collapse },

	{ "fork", 0, CHILD_EXITS, .run = fork_child },
	{ "fork_alive", 0, CHILD_LIVES, .run = fork_child },
	{ "fork_write", P_PRIVATE, CHILD_WRITES, .run = fork_child },
	/* long-term, for reading */
	{ "pin", 0, 0, .run = pin_pages },
	{ "pin_forked", 0, 1, .run = pin_pages },

	/* a read takes the hinting fault, on a misplaced page, on a local one */
	{ "numa_hint", P_PAGES | P_NUMA_HINT | P_ON_OTHER, 0, .run = numa_hint },
	{ "numa_hint_local", P_PAGES | P_NUMA_HINT, 0, .run = numa_hint },
	/* the write itself takes it */
	{ "numa_hint_write", P_PAGES | P_NUMA_HINT | P_ON_OTHER, 1, .run = numa_hint },
	{ "numa_hint_write_local", P_PAGES | P_NUMA_HINT, 1, .run = numa_hint },

	/* protected, then merged; and merged, then protected (first) */
	{ "ksm_merge", P_KSM, 0, .run = merge },
	{ "ksm_merge_first", P_KSM, 0, .armed = merge },
	/* of a large folio, it may be the split that finds the zero page */
	{ "ksm_zero", P_KSM | P_KSM_ZERO, 0, .run = merge },
	{ "ksm_zero_first", P_KSM | P_KSM_ZERO, 0, .armed = merge },
	{ "ksm_unmerge", P_KSM, 0, .run = merge_unmerge },
	{ "ksm_unmerge_all", P_KSM, 1, .run = merge_unmerge },
	{ "ksm_unmerge_first", P_KSM, 0, .armed = merge, .run = unmerge },
};

/* Why there can be no such row, NULL if there can */
static const char *impossible(const struct row_id *id)
{
	const struct path *path = id->of[0];
	const struct kind *kind = kind_named(id->word[1]);
	const struct mode *mode = mode_named(id->word[2]);
	bool cow = kind->flags & M_ANON && kind->flags & M_FD &&
		   !(kind->flags & M_HUGETLB);

	if (kind->flags & M_DISK && !mode->async)
		return "a file of a disk filesystem is registered for WP_ASYNC only";
	if (mode->rwp && path->flags & P_KSM && kind->flags & M_LARGE)
		return "read-write protection is looked at where KSM replaces small pages";
	if (mode->rwp && !(path->flags & P_KSM) && (path->run || path->armed))
		return "read-write protection is looked at with KSM, and alone";
	if (mode->unpop && cow)
		return "a page that was copied is not untouched";
	if (mode->unpop && kind->flags & M_ANON && kind->flags & M_LARGE)
		return "untouched anonymous memory has no large folio";
	if (path->flags & P_KSM) {
		if (!(kind->flags & M_ANON) || kind->flags & M_HUGETLB)
			return "KSM merges small anonymous pages only";
		if (mode->unpop)
			return "untouched memory has no page to be merged";
	}
	if (path->flags & P_PAGES && mode->unpop && kind->flags & M_ANON &&
	    !(kind->flags & M_HUGETLB))
		return "untouched anonymous memory has no page to be moved";
	if (path->flags & P_CACHED && kind->flags & M_ANON)
		return "an anonymous page takes its content with it";
	if (path->flags & P_SMALL && kind->flags & M_HUGETLB)
		return "a hugetlb page is never split";
	if (path->flags & P_LRU && kind->flags & M_HUGETLB)
		return "hugetlb is not on an LRU";
	if (path->flags & P_PRIVATE && !(kind->flags & M_PRIVATE))
		return "what a child writes to shared memory is written";
	if (path->flags & P_SHARED && kind->flags & M_PRIVATE)
		return "mlock() writes to private memory";
	if (path->flags & P_LARGE && !(kind->flags & M_LARGE))
		return "there is no large folio to be split";
	if (path->flags & P_ANON && !is_private_anon(kind))
		return "only private anonymous memory migrates to a device";
	if (path->flags & P_PMD && !(kind->flags & M_THP))
		return "no PMD maps it";
	if (path->flags & P_NUMA_HINT && kind->flags & M_HUGETLB)
		return "NUMA balancing does not look at hugetlb";
	if (path->flags & P_NUMA_HINT && kind->flags & M_DISK && !(kind->flags & M_ANON))
		return "NUMA balancing passes over dirty pages of a file";
	if (path->flags & P_COMPACT && kind->flags & (M_HUGETLB | M_THP))
		return "compaction moves nothing as large as a page block";
	return NULL;
}

/*
 * Running the rows
 */

/* Is there a need to read the protected pages before the path runs? */
static bool must_touch(const struct row *row)
{
	unsigned int flags = row->path->flags;

	if (row->mode->unpop)
		return flags & P_PAGES;
	if (row->mode->rwp)
		return false;
	/* older kernels leave markers where a file's PMD was: bring the pages back */
	return row->flags & M_THP && !(row->flags & M_ANON) &&
	       !(flags & P_PROT && !(flags & P_EARLY) &&
		 row->path->arg == PROT_NONE);
}

static void run_row(const struct row_id *id)
{
	const struct kind *kind = kind_named(id->word[1]);
	const struct mode *mode = mode_named(id->word[2]);
	struct row the_row = {
		.path = id->of[0], .mode = mode, .flags = kind->flags,
		.mem = { .kind = kind, .mode = mode }, .try = id->try,
	};
	struct row *row = &the_row;
	const struct path *path = row->path;

	if (path->flags & (P_TWO_NODES | P_NUMA_HINT))
		need_two_nodes();
	look_at(getpid());
	pin(path->flags & P_ON_OTHER ? 1 : 0);
	start_other();

	step("map");
	if (path->flags & P_COMPACT)
		before_compact(row);
	create(row);
	step("populate");
	if (!row->mode->unpop && !(path->flags & P_EARLY)) {
		populate(row);
		prove_units(row);
		prove_mapping(&row->mem);
	}
	if (path->prepare) {
		step("prepare");
		path->prepare(row);
	}
	step("register");
	arm(&row->mem, 0);
	if (path->armed) {
		step("path before protection");
		path->armed(row);
	}
	if (!row->mode->unpop && path->flags & P_EARLY) {
		step("populate");
		populate(row);
		prove_units(row);
		prove_mapping(&row->mem);
	}
	step("protect");
	protect(row);
	/* a PMD of anonymous memory stays one, unless KSM has split it */
	if (row->flags & M_THP && row->flags & M_ANON &&
	    !(path->armed && path->flags & P_KSM))
		prove_mapping(&row->mem);
	if (must_touch(row)) {
		step("touch");
		touch_all(row);
		prove_units(row);
	}
	if (path->run) {
		step("path");
		path->run(row);
	}
	step("check");
	check_all(row);
}

static void set_knobs(const struct row_id *id)
{
	const struct path *path = id->of[0];

	set_memory_knobs(kind_named(id->word[1]));
	set_numa_knobs(path->flags & P_NUMA_HINT);
	/* the less of what is freed waits for reuse, the more to compact to */
	if (path->flags & P_COMPACT)
		set_knob("/proc/sys/vm/percpu_pagelist_high_fraction", "100000");
	if (path->flags & P_KSM)
		set_ksm_knobs(path->flags & P_KSM_ZERO);
}

static bool loaded_hwpoison;

static void setup(void)
{
	find_machine();
	loaded_hwpoison = access(UNPOISON, W_OK) &&
			  !system("modprobe hwpoison_inject >/dev/null 2>&1");
}

static void cleanup(void)
{
	if (loaded_hwpoison && system("modprobe -r hwpoison_inject >/dev/null 2>&1"))
		ksft_print_msg("hwpoison_inject stays loaded\n");
}

static bool spoils(const struct row_id *id)
{
	const struct path *path = id->of[0];

	return path->run == migrate_soft_offline || path->run == page_out_swapoff;
}

static const struct test test = {
	.tables = { TABLE(paths), TABLE(memories), TABLE(modes) },
	.seconds = 20,
	.impossible = impossible,
	.spoils = spoils,
	.setup = setup,
	.set_knobs = set_knobs,
	.cleanup = cleanup,
	.run = run_row,
};

int main(int argc, char **argv)
{
	return run_test(&test, argc, argv);
}
