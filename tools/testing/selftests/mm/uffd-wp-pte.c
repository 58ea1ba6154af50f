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
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdnoreturn.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <linux/magic.h>
#include <linux/mempolicy.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#define WAIT_MS		5000	/* no single step takes longer */
#define ROW_MS		20000	/* nor a whole row */
#define MAX_TRIES	32	/* for a path that could not be proved to have run */
#define MAX_HANGS	8	/* then the rest is given up */
#define MAX_UNITS	32

#define MTHP_SIZE	(64UL << 10)
#define MTHP		THP "hugepages-64kB"

struct row;

/* Kinds of memory */
enum {
	M_PRIVATE	= BIT(0),	/* MAP_PRIVATE, else MAP_SHARED */
	M_ANON		= BIT(1),	/* what is mapped are anonymous pages */
	M_FD		= BIT(2),	/* mapped from a file */
	M_HUGETLB	= BIT(3),
	M_THP		= BIT(4),
	M_MTHP		= BIT(5),	/* large folio, mapped by PTEs */
	M_TMPFS		= BIT(6),
	M_BY_FD		= BIT(7),	/* content comes through the file */
};

struct memory {
	const char *name;
	unsigned int flags;
};

struct mode {
	const char *name;
	bool async, unpop, scan, rwp;
	uint64_t features;
};

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
	P_MAPPED_SO	= BIT(8),	/* first mapped with the protection in arg */
	P_CACHED	= BIT(9),	/* the content is not lost with the entry */
	P_SMALL		= BIT(10),	/* works on a part of a huge page */
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
	const struct memory *mem;
	const struct mode *mode;
	int try;

	char *addr;		/* of the part that is tested */
	size_t len;
	size_t map_len;		/* of the mapping, >= len */
	size_t unit;		/* what one protection, one write is for */
	size_t folio;
	int nr;			/* units in len */
	bool filled;		/* there is content, not zeros */
	bool split_thp;		/* M_MTHP without multi-size THP */
	int fd, uffd;

	bool want_hint;		/* each write must take a hinting fault */
	bool hinted[MAX_UNITS];	/* by folio */

	/* the verdict */
	int nr_protected, nr_lost;
	bool bad;
	char why[160];
};

/* What the process of a row leaves for its parent. */
enum outcome { DIED, PASS, FAIL, SKIP, AGAIN };

struct report {
	enum outcome outcome;
	char step[64];
	char text[256];
};

static struct report *report;
static uint64_t uffd_features;
static bool verbose;

/*
 * A row's process ends through one of these.
 */

static noreturn __printf(2, 0)
void end_row(enum outcome outcome, const char *fmt, va_list args)
{
	vsnprintf(report->text, sizeof(report->text), fmt, args);
	report->outcome = outcome;
	_exit(0);
}

static noreturn __printf(1, 2) void skip(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(SKIP, fmt, args);
}

/* The path did not happen this time: once more with fresh pages. */
static noreturn __printf(1, 2) void again(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(AGAIN, fmt, args);
}

static noreturn __printf(1, 2) void fail(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(FAIL, fmt, args);
}

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

static void step(const char *name)
{
	snprintf(report->step, sizeof(report->step), "%s", name);
}

/*
 * Layout and content of the tested range
 */

static bool protected(const struct row *row, int i)
{
	/* both kinds at either end, in the middle, and side by side */
	return row->nr > 4 ? i % 4 == 0 || i % 4 == 3 : i % 2 == 0;
}

/* The page of a unit that is written and, for KSM, merged. */
static size_t target_page(const struct row *row, int i)
{
	size_t pages = row->unit / page_size;

	return i * pages + (pages > 1 ? 5 + i : 0);
}

static char *target(const struct row *row, int i)
{
	return row->addr + target_page(row, i) * page_size;
}

static int folio_index(const struct row *row, int i)
{
	return i * row->unit / row->folio;
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
	size_t pages = row->unit / page_size;
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

	return row->mem->flags & M_HUGETLB ? 0 :
	       row->mem->flags & M_ANON ? ~word : word;
}

static void check_page(struct row *row, const char *when, int i, size_t page,
		       bool written)
{
	char *addr = row->addr + page * page_size;
	uint64_t got, want;
	int n;

	for (n = 0; n < 4; n++) {
		size_t at = n < 3 ? word_at(n) : write_at();

		want = n < 3 ? old_word(row, page) : written ? new_word(i) : 0;
		got = get_word(addr + at);
		if (got != want)
			bad(row, "content: %s unit %d, byte %zu is %#llx, not %#llx",
			    when, i, (size_t)(addr + at - row->addr),
			    (unsigned long long)got, (unsigned long long)want);
	}
}

/* What the unit holds, seen through the mapping and through the file */
static void check_content(struct row *row, const char *when, int i, bool written)
{
	size_t pages = row->unit / page_size, page = target_page(row, i);
	uint64_t got[2], want[2];

	check_page(row, when, i, page, written);
	if (pages > 1) {
		check_page(row, when, i, i * pages, false);
		check_page(row, when, i, (i + 1) * pages - 1, false);
	}
	if (!(row->mem->flags & M_FD))
		return;
	if (row->mem->flags & M_PRIVATE) {
		want[0] = file_word(row, page);
		want[1] = 0;
	} else {
		want[0] = old_word(row, page);
		want[1] = written ? new_word(i) : 0;
	}
	if (pread(row->fd, &got[0], 8, page * page_size) != 8 ||
	    pread(row->fd, &got[1], 8, page * page_size + write_at()) != 8)
		fail("setup: cannot read the file: %s", strerror(errno));
	if (got[0] != want[0] || got[1] != want[1])
		bad(row, "content: %s unit %d, the file has %#llx %#llx, not %#llx %#llx",
		    when, i, (unsigned long long)got[0], (unsigned long long)got[1],
		    (unsigned long long)want[0], (unsigned long long)want[1]);
}

static void fill(struct row *row, char *view)
{
	size_t page;
	int n;

	for (page = 0; page < row->len / page_size; page++)
		for (n = 0; n < 3; n++)
			put_word(view + page * page_size + word_at(n),
				 old_word(row, page));
}

static void fill_file(struct row *row)
{
	size_t page;
	int n;

	for (page = 0; page < row->len / page_size; page++) {
		uint64_t word = row->mem->flags & M_PRIVATE ?
				file_word(row, page) : old_word(row, page);

		for (n = 0; n < 3; n++)
			if (pwrite(row->fd, &word, 8, page * page_size + word_at(n)) != 8)
				fail("setup: cannot fill the file: %s", strerror(errno));
	}
}

/* Read, so that there is an entry with a page and not only a marker. */
static void touch_all(struct row *row)
{
	size_t pages = row->unit / page_size, n;
	int i;

	for (i = 0; i < row->nr; i++) {
		get_word(target(row, i));
		if (pages == 1 || row->mem->flags & M_HUGETLB)
			continue;
		for (n = 0; n < 16; n++)
			get_word(row->addr + (i * pages + n) * page_size);
		get_word(row->addr + ((i + 1) * pages - 1) * page_size);
	}
}

/*
 * Mapping and populating
 */

static int tmpfs_file(void)
{
	static const char * const dirs[] = { "/tmp", "/dev/shm", "/run", "/var/tmp" };
	struct statfs fs;
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(dirs); i++) {
		if (statfs(dirs[i], &fs) || fs.f_type != TMPFS_MAGIC)
			continue;
		fd = open(dirs[i], O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
		if (fd >= 0)
			return fd;
	}
	skip("no writable tmpfs at /tmp, /dev/shm, /run or /var/tmp");
}

static char *map(struct row *row, char *at, size_t len, int prot)
{
	unsigned int flags = row->mem->flags;
	int share = flags & M_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
	char *addr;

	addr = mmap(at, len, prot,
		    share | (at ? MAP_FIXED : 0) | (row->fd < 0 ? MAP_ANONYMOUS : 0),
		    row->fd, 0);
	if (addr == MAP_FAILED && flags & M_HUGETLB)
		again("not enough huge pages: %s", strerror(errno));
	if (addr == MAP_FAILED)
		fail("setup: mmap of %s: %s", row->mem->name, strerror(errno));
	if (flags & (M_THP | M_MTHP) && madvise(addr, len, MADV_HUGEPAGE))
		skip("no transparent huge pages: %s", strerror(errno));
	return addr;
}

/* Room for @len at a multiple of @align, with a hole at both ends. */
static char *find_room(size_t len, size_t align)
{
	size_t all = len + 3 * align;
	char *addr = mmap(NULL, all, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		fail("setup: no address range for %zu bytes", all);
	munmap(addr, all);
	return (char *)(((uintptr_t)addr + 2 * align - 1) & ~(align - 1));
}

static size_t file_len(const struct row *row)
{
	return row->split_thp ? pmd_size : row->len;
}

static void create(struct row *row)
{
	unsigned int flags = row->mem->flags;
	size_t align = pmd_size > huge_size ? pmd_size : huge_size;
	int prot = PROT_READ | PROT_WRITE;

	row->unit = flags & M_HUGETLB ? huge_size : flags & M_THP ? pmd_size : page_size;
	row->split_thp = flags & M_MTHP && access(MTHP, F_OK);
	row->folio = row->split_thp ? pmd_size : flags & M_MTHP ? MTHP_SIZE : row->unit;
	row->nr = flags & M_MTHP ? 32 : row->unit > page_size ? 4 : 8;
	row->len = row->nr * row->unit;
	row->map_len = row->split_thp && flags & M_ANON ? pmd_size : row->len;
	row->filled = !row->mode->unpop || flags & M_BY_FD ||
		      (flags & (M_THP | M_MTHP) && !(flags & M_ANON));

	row->fd = -1;
	if (flags & M_TMPFS)
		row->fd = tmpfs_file();
	else if (flags & M_FD)
		row->fd = memfd_create("uffd-wp-pte",
				       flags & M_HUGETLB ? MFD_HUGETLB : 0);
	if (flags & M_FD && (row->fd < 0 || ftruncate(row->fd, file_len(row))))
		skip("no file for %s: %s", row->mem->name, strerror(errno));
	if (row->path->flags & P_MAPPED_SO &&
	    (row->mode->unpop || row->path->flags & P_EARLY))
		prot = row->path->arg;
	row->addr = find_room(row->map_len, align);
	/* where it cannot be mapped by a PMD */
	if (row->split_thp && !(flags & M_ANON))
		row->addr += MTHP_SIZE;
	map(row, row->addr, row->map_len, prot);
}

/*
 * A large folio of shmem must be in the page cache first: into a VMA that is
 * registered, the kernel puts small ones. Populating from another view works
 * for all, and leaves the tested one untouched. It needs the file.
 */
static void make_shmem_huge(struct row *row)
{
	char *view = map(row, find_room(file_len(row), pmd_size), file_len(row),
			 PROT_READ | PROT_WRITE);

	fill(row, view);
	if ((row->mem->flags & M_THP || row->split_thp) &&
	    smaps_bytes(view, file_len(row), "ShmemPmdMapped") != file_len(row))
		again("shmem gave no PMD-mapped folio");
	munmap(view, file_len(row));
}

static void populate_file(struct row *row)
{
	unsigned int flags = row->mem->flags;

	if (flags & (M_THP | M_MTHP) && !(flags & M_ANON))
		make_shmem_huge(row);
	else if (flags & M_BY_FD)
		fill_file(row);
}

static void populate(struct row *row)
{
	unsigned int flags = row->mem->flags;

	if (flags & M_BY_FD && flags & M_PRIVATE && !(flags & M_ANON))
		touch_all(row);
	else
		fill(row, row->addr);
	if (row->split_thp && flags & M_ANON &&
	    (mprotect(row->addr, page_size, PROT_READ) ||
	     mprotect(row->addr, page_size, PROT_READ | PROT_WRITE)))
		fail("setup: mprotect: %s", strerror(errno));
}

/* Is it what its name says? */
static void prove_kind(struct row *row)
{
	unsigned int flags = row->mem->flags;
	const uint64_t compound = KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	int i;

	for (i = 0; i < row->nr; i++) {
		uint64_t entry = pagemap_entry(target(row, i));
		uint64_t kpf;

		if (!(entry & PM_PRESENT) || !(entry & PM_PFN))
			again("unit %d is not present", i);
		kpf = page_flags(entry & PM_PFN);
		if (!!(flags & M_ANON) != !!(kpf & KPF_ANON))
			fail("setup: unit %d is %sanonymous", i,
			     flags & M_ANON ? "not " : "");
		if (!!(flags & M_HUGETLB) != !!(kpf & KPF_HUGE))
			fail("setup: unit %d is %shugetlb", i,
			     flags & M_HUGETLB ? "not " : "");
		if (flags & (M_THP | M_MTHP) && !(kpf & compound))
			again("unit %d is not of a large folio", i);
		if (!(flags & (M_THP | M_MTHP | M_HUGETLB)) && kpf & compound)
			again("unit %d is of a large folio", i);
	}
	if (flags & M_MTHP &&
	    (smaps_bytes(row->addr, row->map_len, "AnonHugePages") ||
	     smaps_bytes(row->addr, row->map_len, "ShmemPmdMapped")))
		again("mapped by a PMD, not by PTEs");
}

static void prove_pmd(struct row *row)
{
	const char *key = row->mem->flags & M_ANON ? "AnonHugePages" :
						     "ShmemPmdMapped";

	if (row->mem->flags & M_THP &&
	    smaps_bytes(row->addr, row->map_len, key) != row->map_len)
		again("not mapped by PMDs");
}

/*
 * userfaultfd
 */

static int uffd_open(uint64_t features, uint64_t *all)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0)
		return -1;
	if (ioctl(uffd, UFFDIO_API, &api)) {
		close(uffd);
		return -1;
	}
	if (all)
		*all = api.features;
	return uffd;
}

static const struct {
	uint64_t bit;
	const char *name;
} feature_names[] = {
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED" },
	{ UFFD_FEATURE_WP_ASYNC, "WP_ASYNC" },
	{ UFFD_FEATURE_RWP, "RWP" },
};

static uint64_t row_features(const struct row *row)
{
	uint64_t features = row->mode->features;

	/* also for private mappings of a file */
	if (row->mem->flags & (M_FD | M_HUGETLB) || !(row->mem->flags & M_PRIVATE))
		features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	return features;
}

static void check_features(const struct row *row)
{
	uint64_t missing = row_features(row) & ~uffd_features;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(feature_names); i++)
		if (missing & feature_names[i].bit)
			skip("the kernel lacks UFFD_FEATURE_%s", feature_names[i].name);
}

static void arm(struct row *row)
{
	struct uffdio_register reg = {
		.range.start = (uintptr_t)row->addr,
		.range.len = row->map_len,
		.mode = row->mode->rwp ? UFFDIO_REGISTER_MODE_RWP :
					 UFFDIO_REGISTER_MODE_WP,
	};

	row->uffd = uffd_open(row_features(row), NULL);
	if (row->uffd < 0)
		fail("setup: userfaultfd: %s", strerror(errno));
	if (ioctl(row->uffd, UFFDIO_REGISTER, &reg))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
}

static void set_protection(struct row *row, int first, int count, bool on)
{
	struct uffdio_writeprotect arg = {
		.range.start = (uintptr_t)row->addr + first * row->unit,
		.range.len = count * row->unit,
	};
	int err;

	if (row->mode->scan && on) {
		err = scan_protect(row->addr + first * row->unit,
				   count * row->unit) < 0;
	} else if (row->mode->rwp) {
		arg.mode = on ? UFFDIO_RWPROTECT_MODE_RWP : 0;
		err = ioctl(row->uffd, UFFDIO_RWPROTECT, &arg);
	} else {
		arg.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
		err = ioctl(row->uffd, UFFDIO_WRITEPROTECT, &arg);
	}
	if (err)
		fail("setup: to %sprotect units %d-%d: %s", on ? "" : "un", first,
		     first + count - 1, strerror(errno));
}

static void protect(struct row *row)
{
	int i, n;

	for (i = 0; i < row->nr; i += n) {
		for (n = 1; i + n < row->nr; n++)
			if (protected(row, i + n) != protected(row, i))
				break;
		if (!protected(row, i))
			continue;
		set_protection(row, i, n, true);
		row->nr_protected += n;
	}
}

/*
 * The other thread: it does the accesses, and may block in them.
 */

static struct {
	pthread_t thread;
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
	if (other.go < 0 || other.done < 0 ||
	    pthread_create(&other.thread, NULL, other_thread, NULL))
		fail("setup: cannot start a thread");
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
	cpu_set_t set;

	if (!nr_nodes)
		return;
	CPU_ZERO(&set);
	CPU_SET(node_cpu[node], &set);
	sched_setaffinity(0, sizeof(set), &set);
	if (other.tid)
		sched_setaffinity(other.tid, sizeof(set), &set);
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
	size_t align = row->mem->flags & M_HUGETLB ? huge_size : page_size;
	uint64_t want, flags;
	struct uffd_msg msg;

	if (read(row->uffd, &msg, sizeof(msg)) != sizeof(msg)) {
		bad(row, "event: unit %d: it could not be read: %s", i, strerror(errno));
		return;
	}
	if (msg.event != UFFD_EVENT_PAGEFAULT) {
		bad(row, "event: unit %d: it is of kind %#x, not a page fault", i,
		    msg.event);
		return;
	}
	want = (uintptr_t)(target(row, i) + write_at()) & ~(align - 1);
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
		switch (wait_for(row->uffd, WAIT_MS)) {
		case CAME_DONE:
			return;
		case CAME_NOTHING:
			fail("hang: unit %d: the %s goes on %d ms after it was resolved%s%s",
			     i, doing, WAIT_MS, row->bad ? "; and " : "",
			     row->bad ? row->why : "");
		case CAME_EVENT:
			bad(row, "event: unit %d: one more after it was resolved", i);
			if (++extra > 3 ||
			    read(row->uffd, &msg, sizeof(msg)) != sizeof(msg))
				fail("%s", row->why);
			set_protection(row, i, 1, false);
		}
	}
}

/* An access that must go through without an event */
static void check_free(struct row *row, int i, const char *whose)
{
	struct uffd_msg msg;

	start_access(target(row, i) + write_at(), false, new_word(i));
	switch (wait_for(row->uffd, WAIT_MS)) {
	case CAME_DONE:
		break;
	case CAME_NOTHING:
		fail("hang: unit %d: the write to %s did not finish in %d ms", i,
		     whose, WAIT_MS);
	case CAME_EVENT:
		bad(row, "spurious: unit %d: an event for a write to %s", i, whose);
		if (read(row->uffd, &msg, sizeof(msg)) != sizeof(msg))
			fail("%s", row->why);
		set_protection(row, i, 1, false);
		wait_end(row, i, "write");
	}
	check_content(row, "after the write,", i, true);
}

/* Counts only hinting faults of the access, see numa_arm(). */
static void note_hint(struct row *row, int i, long long before)
{
	if (row->want_hint && vm_counter("numa_hint_faults") > before)
		row->hinted[folio_index(row, i)] = true;
}

static void check_sync(struct row *row, int i)
{
	bool is_read = row->mode->rwp && i % 2;
	long long hints = row->want_hint ? vm_counter("numa_hint_faults") : 0;
	struct pollfd fd = { .fd = row->uffd, .events = POLLIN };
	enum came came;

	start_access(target(row, i) + (is_read ? 0 : write_at()), is_read, new_word(i));
	came = wait_for(row->uffd, WAIT_MS);
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
	set_protection(row, i, 1, false);
	wait_end(row, i, what(is_read));
	if (is_read && other.word != old_word(row, target_page(row, i)))
		bad(row, "content: unit %d: the read got %#llx", i,
		    (unsigned long long)other.word);
	check_content(row, "after it was resolved,", i, !is_read);
	check_free(row, i, "a page that was resolved");
}

static bool still_protected(const struct row *row, int i)
{
	return pagemap_entry(target(row, i)) & PM_UFFD_WP &&
	       !scan_written(target(row, i));
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
	start_access(target(row, i) + write_at(), false, new_word(i));
	came = wait_for(row->uffd, WAIT_MS);
	note_hint(row, i, hints);
	if (came == CAME_NOTHING)
		fail("hang: unit %d: the write did not finish in %d ms", i, WAIT_MS);
	if (came == CAME_EVENT)
		fail("spurious: unit %d: an event although nobody is to be told", i);
	check_content(row, "after the write,", i, true);
	if (!scan_written(target(row, i))) {
		if (!row->nr_lost++ && !row->bad)
			snprintf(row->why, sizeof(row->why),
				 "not reported as written after the write");
	} else if (pagemap_entry(target(row, i)) & PM_UFFD_WP) {
		bad(row, "event: unit %d: written, but pagemap still has it as protected",
		    i);
	}
}

static void check_units(struct row *row, bool prot)
{
	int i;

	for (i = 0; i < row->nr; i++) {
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
	struct pollfd fd = { .fd = row->uffd, .events = POLLIN };
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
	for (i = 0; row->want_hint && i < row->nr; i++)
		if (protected(row, i) && !row->hinted[folio_index(row, i)])
			again("the write to unit %d took no hinting fault", i);
}

/*
 * Paths: mprotect()
 */

static void protect_vma(struct row *row, int prot)
{
	if (mprotect(row->addr, row->map_len, prot))
		fail("setup: mprotect: %s", strerror(errno));
}

static void mprotect_set(struct row *row)
{
	protect_vma(row, row->path->arg);
}

static void mprotect_rw(struct row *row)
{
	protect_vma(row, PROT_READ | PROT_WRITE);
}

static void mprotect_there_and_back(struct row *row)
{
	protect_vma(row, row->path->arg);
	protect_vma(row, PROT_READ | PROT_WRITE);
}

static void mprotect_part(struct row *row)
{
	char *part = row->addr + row->nr / 4 * row->unit;
	size_t len = row->nr / 2 * row->unit;
	int n;

	if (mprotect(part, len, row->path->arg))
		fail("setup: mprotect: %s", strerror(errno));
	n = count_vmas(row->addr, row->map_len);
	if (n != 3)
		fail("setup: %d VMAs after mprotect() of a part, not 3", n);
	if (mprotect(part, len, PROT_READ | PROT_WRITE))
		fail("setup: mprotect: %s", strerror(errno));
	n = count_vmas(row->addr, row->map_len);
	/* hugetlb VMAs are never merged */
	if (n != (row->mem->flags & M_HUGETLB ? 3 : 1))
		fail("setup: %d VMAs after mprotect() of a part and back", n);
}

/* One small page of every other unit, inside of a huge page if there is one. */
static void mprotect_page(struct row *row)
{
	int prot = row->path->arg, i, n;
	char *page;

	for (n = 0; n < 2; n++, prot = PROT_READ | PROT_WRITE)
		for (i = 0; i < row->nr; i += 2) {
			page = target(row, i) + (row->unit > page_size ? page_size : 0);
			if (mprotect(page, page_size, prot))
				fail("setup: mprotect: %s", strerror(errno));
		}
}

/*
 * Paths: unmapping, and faulting in again
 */

static void zap_and_read(struct row *row)
{
	int i;

	if (madvise(row->addr, row->len, MADV_DONTNEED))
		fail("setup: MADV_DONTNEED: %s", strerror(errno));
	for (i = 0; i < row->nr; i++)
		if (pagemap_entry(target(row, i)) & PM_PRESENT)
			skip("unit %d is still mapped", i);
	/* the first one is protected, and must not pass that on */
	touch_all(row);
	for (i = 0; i < row->nr; i++)
		if (!(pagemap_entry(target(row, i)) & PM_PRESENT))
			skip("unit %d is not mapped again", i);
}

/*
 * Paths: KSM
 */

static bool ksm_merged(struct row *row)
{
	uint64_t first = pfn_of(target(row, 0));
	int i;

	if (!first)
		return false;
	if (row->path->flags & P_KSM_ZERO && !(page_flags(first) & KPF_ZERO_PAGE))
		return false;
	for (i = 1; i < row->nr; i++)
		if (pfn_of(target(row, i)) != first)
			return false;
	return true;
}

static bool ksm_unmerged(struct row *row)
{
	int i, j;

	for (i = 0; i < row->nr; i++)
		for (j = 0; j < i; j++)
			if (pfn_of(target(row, i)) == pfn_of(target(row, j)))
				return false;
	return true;
}

static void ksm_merge(struct row *row)
{
	uint64_t until = now_ms() + WAIT_MS;

	if (ksm_merged(row))
		fail("setup: merged before KSM ran");
	if (madvise(row->addr, row->map_len, MADV_MERGEABLE))
		skip("no KSM: %s", strerror(errno));
	if (!write_file(KSM "run", "1"))
		skip("cannot start KSM: %s", strerror(errno));
	while (!ksm_merged(row)) {
		if (now_ms() > until && row->try)
			skip("KSM did not merge the pages in %d ms", WAIT_MS);
		if (now_ms() > until)
			again("KSM did not merge the pages");
		usleep(500);
	}
	write_file(KSM "run", "0");
}

/* by MADV_UNMERGEABLE, or of all processes at once */
static void ksm_unmerge(struct row *row)
{
	if (!row->path->arg) {
		if (madvise(row->addr, row->map_len, MADV_UNMERGEABLE))
			fail("setup: MADV_UNMERGEABLE: %s", strerror(errno));
	} else if (!write_file(KSM "run", "2")) {
		fail("setup: cannot unmerge: %s", strerror(errno));
	}
	if (!ksm_unmerged(row))
		fail("setup: the pages are still merged");
}

static void ksm_merge_unmerge(struct row *row)
{
	ksm_merge(row);
	step("unmerge");
	ksm_unmerge(row);
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
	protect_vma(row, PROT_NONE);
	protect_vma(row, PROT_READ | PROT_WRITE);
}

static void must_be_on(struct row *row, int node, const char *who)
{
	int i, got;

	for (i = 0; i < row->nr; i++) {
		got = node_of(target(row, i));
		if (got != node)
			again("%s left unit %d on node %d", who, i, got);
	}
}

static void move_pages_to(struct row *row, int node)
{
	int i, status, n;
	void *page;

	for (i = 0; i < row->nr; i++) {
		/* one page is enough for its whole folio */
		if (i && folio_index(row, i) == folio_index(row, i - 1))
			continue;
		page = target(row, i);
		for (n = 0; n < 10; n++) {
			if (syscall(__NR_move_pages, 0, 1UL, &page, &node,
				    &status, MPOL_MF_MOVE) < 0)
				skip("move_pages: %s", strerror(errno));
			if (status == node)
				break;
			usleep(1000);
		}
	}
	must_be_on(row, node, "move_pages()");
}

static int node_away_from(int node)
{
	return node == nodes[0] ? nodes[1] : nodes[0];
}

static void migrate_move_pages(struct row *row)
{
	int home = node_of(target(row, 0));

	move_pages_to(row, node_away_from(home));
	move_pages_to(row, home);
	then_mprotect(row);
}

static void mbind_to(struct row *row, int node)
{
	unsigned long mask[16] = { 0 };
	const unsigned int bits = 8 * sizeof(long);

	mask[node / bits] = 1UL << node % bits;
	if (syscall(__NR_mbind, row->addr, row->map_len, MPOL_BIND, mask,
		    8 * sizeof(mask), MPOL_MF_MOVE | MPOL_MF_STRICT))
		again("mbind: %s", strerror(errno));
	must_be_on(row, node, "mbind()");
}

static void migrate_mbind(struct row *row)
{
	int home = node_of(target(row, 0));

	mbind_to(row, node_away_from(home));
	mbind_to(row, home);
	then_mprotect(row);
}

static void migrate_soft_offline(struct row *row)
{
	bool hugetlb = row->mem->flags & M_HUGETLB;
	uint64_t before, after, poisoned;
	char text[32];
	int i, n;

	/* A page that is put out of use must be given back. */
	if (access(UNPOISON, W_OK))
		skip("needs %s (CONFIG_HWPOISON_INJECT)", UNPOISON);
	for (i = 0; i < row->nr; i++) {
		char *addr = hugetlb ? row->addr + i * row->unit : target(row, i);

		if (!protected(row, i))
			continue;
		get_word(target(row, i));
		before = pfn_of(target(row, i));
		poisoned = pfn_of(addr);
		for (n = 0; madvise(addr, hugetlb ? row->unit : page_size,
				    MADV_SOFT_OFFLINE); n++) {
			if (errno != EBUSY || n == 20)
				again("MADV_SOFT_OFFLINE of unit %d: %s", i,
				      strerror(errno));
			usleep(1000);
		}
		get_word(target(row, i));
		after = pfn_of(target(row, i));
		snprintf(text, sizeof(text), "%#llx", (unsigned long long)poisoned);
		if (!write_file(UNPOISON, text))
			fail("setup: cannot unpoison page %s: %s", text, strerror(errno));
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
	madvise(spare[n], len, n != FRAGMENTS && row->mem->flags & M_MTHP ?
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
			pfn = i < nr ? entry[i] & PM_PFN : 0;
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

	if (row->split_thp)
		skip("no folio is large and smaller than a page block");
	take_spare(row, ROOM_AFTER);
	for (i = 0; i < row->nr; i++) {
		before[i] = pfn_of(target(row, i));
		if (before[i] > top)
			top = before[i];
	}
	free_spare(row, top);
	snprintf(path, sizeof(path), NODES "node%d/compact", node_of(target(row, 0)));
	if (!write_file(path, "1") && !write_file("/proc/sys/vm/compact_memory", "1"))
		skip("no compaction: %s", strerror(errno));
	for (i = 0; i < row->nr; i++) {
		get_word(target(row, i));
		if (protected(row, i) && pfn_of(target(row, i)) != before[i])
			moved++;
	}
	/* for want of a large free block, it splits and moves small pages */
	prove_kind(row);
	if (moved < row->nr_protected)
		again("compaction moved %d of %d pages", moved, row->nr_protected);
	then_mprotect(row);
}

/*
 * Paths: NUMA hinting faults
 */

static long long numa_scans(void)
{
	static char buf[16 << 10];

	if (read_file("/proc/self/sched", buf, sizeof(buf)) < 0)
		return -1;
	return field(buf, "mm->numa_scan_seq");
}

/*
 * Have the scanner make the entries inaccessible, then stop it: from here on
 * each numa_hint_faults that is counted during an access is of that access.
 */
static void numa_arm(struct row *row, int more)
{
	long long start = numa_scans(), hints;
	uint64_t until = now_ms() + (start < 0 ? 300 : 1500);
	static uint64_t dummy;
	int n, quiet = 0;

	if (!write_file(NUMAB_ON, "1"))
		skip("no NUMA balancing: %s", strerror(errno));
	/* The first scan does not pass over new VMAs, later ones may. */
	while (now_ms() < until && (start < 0 || numa_scans() <= start + more))
		;
	if (!write_file(NUMAB_ON, "0"))
		fail("setup: cannot stop NUMA balancing: %s", strerror(errno));

	/* Take the hints of all the rest that an access involves. */
	for (n = 0; n < 50 && quiet < 3; n++) {
		hints = vm_counter("numa_hint_faults");
		start_access((char *)&dummy, n % 2, 0);
		if (wait_for(row->uffd, WAIT_MS) != CAME_DONE)
			fail("hang: an access elsewhere did not finish");
		quiet = vm_counter("numa_hint_faults") == hints ? quiet + 1 : 0;
	}
}

static bool all_hinted(const struct row *row)
{
	int i;

	for (i = 0; i < row->nr; i++)
		if (protected(row, i) && !row->hinted[folio_index(row, i)])
			return false;
	return true;
}

/* Reads take the hinting faults, and the write finds what they have left. */
static void numa_read(struct row *row)
{
	long long hints;
	int i, n;

	for (n = 0; n < 4 && !all_hinted(row); n++) {
		numa_arm(row, n);
		for (i = 0; i < row->nr; i++) {
			hints = vm_counter("numa_hint_faults");
			get_word(target(row, i));
			if (protected(row, i) && vm_counter("numa_hint_faults") > hints)
				row->hinted[folio_index(row, i)] = true;
		}
	}
	if (!all_hinted(row))
		again("not every page took a hinting fault");
}

static void numa_write(struct row *row)
{
	numa_arm(row, row->try);
	row->want_hint = true;
}

/*
 * On the other node, the fault finds a misplaced page and may migrate it; on
 * the node that it is used from, the fault only puts the entry back.
 */
static void numa_hint(struct row *row)
{
	must_be_on(row, nodes[row->path->flags & P_ON_OTHER ? 1 : 0], "populating");
	pin(0);
	if (row->path->arg)
		numa_write(row);
	else
		numa_read(row);
}

/*
 * The tables
 */

#define RW	(PROT_READ | PROT_WRITE)

static const struct memory memories[] = {
	{ "anon",		M_PRIVATE | M_ANON },
	{ "shared-anon",	0 },
	{ "memfd-shared",	M_FD },
	{ "memfd-private-cow",	M_PRIVATE | M_ANON | M_FD | M_BY_FD },
	{ "memfd-private",	M_PRIVATE | M_FD | M_BY_FD },
	{ "tmpfs",		M_FD | M_TMPFS | M_BY_FD },
	{ "anon-thp",		M_PRIVATE | M_ANON | M_THP },
	{ "shmem-thp",		M_FD | M_THP },
	{ "anon-mthp",		M_PRIVATE | M_ANON | M_MTHP },
	{ "shmem-mthp",		M_FD | M_MTHP },
	{ "hugetlb-shared",	M_FD | M_HUGETLB },
	{ "hugetlb-private",	M_PRIVATE | M_FD | M_HUGETLB | M_ANON },
};

static const struct mode modes[] = {
	{ .name = "sync", .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP },
	{ .name = "async", .async = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC },
	{ .name = "unpop", .unpop = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED },
	{ .name = "unpop-async", .async = true, .unpop = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC },
	/* protected by PAGEMAP_SCAN */
	{ .name = "scan", .async = true, .scan = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC },
	{ .name = "rwp", .rwp = true, .features = UFFD_FEATURE_RWP },
};

static const struct path paths[] = {
	{ .name = "none" },
	{ .name = "mprotect_none_rw", .arg = PROT_NONE, .run = mprotect_there_and_back },
	{ .name = "mprotect_read_rw", .arg = PROT_READ, .run = mprotect_there_and_back },
	{ .name = "mprotect_part_none_rw", .arg = PROT_NONE, .run = mprotect_part },
	{ .name = "mprotect_part_read_rw", .arg = PROT_READ, .run = mprotect_part },
	/* this splits the PMD of a huge page as well */
	{ .name = "mprotect_page_read_rw", .flags = P_SMALL, .arg = PROT_READ,
	  .run = mprotect_page },
	/* mapped so, registered, then made writable and used, then protected */
	{ .name = "mprotect_before_none", .flags = P_EARLY | P_MAPPED_SO,
	  .arg = PROT_NONE, .armed = mprotect_rw },
	{ .name = "mprotect_before_read", .flags = P_EARLY | P_MAPPED_SO,
	  .arg = PROT_READ, .armed = mprotect_rw },
	/* made writable only after it was registered and protected */
	{ .name = "mprotect_registered_none", .flags = P_MAPPED_SO,
	  .arg = PROT_NONE, .prepare = mprotect_set, .run = mprotect_rw },
	{ .name = "mprotect_registered_read", .flags = P_MAPPED_SO,
	  .arg = PROT_READ, .prepare = mprotect_set, .run = mprotect_rw },

	{ .name = "migrate_move_pages", .flags = P_PAGES | P_TWO_NODES,
	  .run = migrate_move_pages },
	{ .name = "migrate_move_pages_mprotect", .flags = P_PAGES | P_TWO_NODES,
	  .arg = 1, .run = migrate_move_pages },
	{ .name = "migrate_mbind", .flags = P_PAGES | P_TWO_NODES,
	  .run = migrate_mbind },
	{ .name = "migrate_mbind_mprotect", .flags = P_PAGES | P_TWO_NODES,
	  .arg = 1, .run = migrate_mbind },
	{ .name = "migrate_soft_offline", .flags = P_PAGES,
	  .run = migrate_soft_offline },
	{ .name = "migrate_soft_offline_mprotect", .flags = P_PAGES,
	  .arg = 1, .run = migrate_soft_offline },
	{ .name = "migrate_compact", .flags = P_PAGES | P_COMPACT,
	  .run = migrate_compact },
	{ .name = "migrate_compact_mprotect", .flags = P_PAGES | P_COMPACT,
	  .arg = 1, .run = migrate_compact },

	{ .name = "zap_read", .flags = P_PAGES | P_CACHED, .run = zap_and_read },

	/* a read takes the hinting fault, on a misplaced page, on a local one */
	{ .name = "numa_hint", .flags = P_PAGES | P_NUMA_HINT | P_ON_OTHER,
	  .run = numa_hint },
	{ .name = "numa_hint_local", .flags = P_PAGES | P_NUMA_HINT,
	  .run = numa_hint },
	/* the write itself takes it */
	{ .name = "numa_hint_write", .flags = P_PAGES | P_NUMA_HINT | P_ON_OTHER,
	  .arg = 1, .run = numa_hint },
	{ .name = "numa_hint_write_local", .flags = P_PAGES | P_NUMA_HINT,
	  .arg = 1, .run = numa_hint },

	/* protected, then merged; and merged, then protected (first) */
	{ .name = "ksm_merge", .flags = P_KSM, .run = ksm_merge },
	{ .name = "ksm_merge_first", .flags = P_KSM, .armed = ksm_merge },
	/* of a large folio, it may be the split that finds the zero page */
	{ .name = "ksm_zero", .flags = P_KSM | P_KSM_ZERO, .run = ksm_merge },
	{ .name = "ksm_zero_first", .flags = P_KSM | P_KSM_ZERO, .armed = ksm_merge },
	{ .name = "ksm_unmerge", .flags = P_KSM, .run = ksm_merge_unmerge },
	{ .name = "ksm_unmerge_all", .flags = P_KSM, .arg = 1,
	  .run = ksm_merge_unmerge },
	{ .name = "ksm_unmerge_first", .flags = P_KSM, .armed = ksm_merge,
	  .run = ksm_unmerge },
};

/* Why there can be no such row, NULL if there can */
static const char *impossible(const struct path *path, const struct memory *mem,
			      const struct mode *mode)
{
	bool cow = mem->flags & M_ANON && mem->flags & M_FD &&
		   !(mem->flags & M_HUGETLB);

	if (mode->rwp && path->flags & P_KSM && mem->flags & (M_THP | M_MTHP))
		return "read-write protection is looked at where KSM replaces small pages";
	if (mode->rwp && !(path->flags & P_KSM) && (path->run || path->armed))
		return "read-write protection is looked at with KSM, and alone";
	if (mode->unpop && cow)
		return "a page that was copied is not untouched";
	if (mode->unpop && mem->flags & M_ANON && mem->flags & (M_THP | M_MTHP))
		return "untouched anonymous memory has no large folio";
	if (path->flags & P_KSM) {
		if (!(mem->flags & M_ANON) || mem->flags & M_HUGETLB)
			return "KSM merges small anonymous pages only";
		if (mode->unpop)
			return "untouched memory has no page to be merged";
	}
	if (path->flags & P_PAGES && mode->unpop && mem->flags & M_ANON &&
	    !(mem->flags & M_HUGETLB))
		return "untouched anonymous memory has no page to be moved";
	if (path->flags & P_CACHED && mem->flags & M_ANON)
		return "an anonymous page takes its content with it";
	if (path->flags & P_SMALL && mem->flags & M_HUGETLB)
		return "a hugetlb page is never split";
	if (path->flags & P_NUMA_HINT && mem->flags & M_HUGETLB)
		return "NUMA balancing does not look at hugetlb";
	if (path->flags & P_COMPACT && mem->flags & (M_HUGETLB | M_THP))
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
	return row->mem->flags & M_THP && !(row->mem->flags & M_ANON) &&
	       !(flags & P_MAPPED_SO && !(flags & P_EARLY) &&
		 row->path->arg == PROT_NONE);
}

static void run_row(struct row *row)
{
	const struct path *path = row->path;

	step("start");
	check_features(row);
	if (path->flags & (P_TWO_NODES | P_NUMA_HINT) && nr_nodes < 2)
		skip("needs two nodes with memory and a CPU");
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		fail("setup: no /proc/self/pagemap: %s", strerror(errno));
	pin(path->flags & P_ON_OTHER ? 1 : 0);
	start_other();

	step("map");
	if (path->flags & P_COMPACT)
		before_compact(row);
	create(row);
	step("populate");
	populate_file(row);
	if (!row->mode->unpop && !(path->flags & P_EARLY)) {
		populate(row);
		prove_kind(row);
		prove_pmd(row);
	}
	if (path->prepare) {
		step("prepare");
		path->prepare(row);
	}
	step("register");
	arm(row);
	if (path->armed) {
		step("path before protection");
		path->armed(row);
	}
	if (!row->mode->unpop && path->flags & P_EARLY) {
		step("populate");
		populate(row);
		prove_kind(row);
		prove_pmd(row);
	}
	step("protect");
	protect(row);
	/* a PMD of anonymous memory stays one, unless KSM has split it */
	if (row->mem->flags & M_THP && row->mem->flags & M_ANON &&
	    !(path->armed && path->flags & P_KSM))
		prove_pmd(row);
	if (must_touch(row)) {
		step("touch");
		touch_all(row);
		prove_kind(row);
	}
	if (path->run) {
		step("path");
		path->run(row);
	}
	step("check");
	check_all(row);
	report->outcome = PASS;
	_exit(0);
}

static void set_thp(const struct row *row)
{
	bool pmd = row->mem->flags & M_THP, pte = row->mem->flags & M_MTHP;
	char path[128];

	/* older kernels have only these two */
	set_knob(THP "enabled", pmd || pte ? "madvise" : "never");
	set_knob(THP "shmem_enabled", pmd || pte ? "advise" : "never");
	snprintf(path, sizeof(path), THP "hugepages-%zukB/enabled", pmd_size >> 10);
	set_knob(path, pmd ? "madvise" : "never");
	snprintf(path, sizeof(path), THP "hugepages-%zukB/shmem_enabled", pmd_size >> 10);
	set_knob(path, pmd ? "advise" : "never");
	set_knob(MTHP "/enabled", pte ? "madvise" : "never");
	set_knob(MTHP "/shmem_enabled", pte ? "advise" : "never");
}

/* Enough free huge pages on each node to hold the row and to move it */
static void set_hugetlb(void)
{
	char dir[64], path[128], value[32];
	long nr, nr_free;
	int i;

	for (i = 0; i < nr_nodes || !i; i++) {
		snprintf(dir, sizeof(dir), NODES "node%d/hugepages", nodes[i]);
		if (!nr_nodes)
			snprintf(dir, sizeof(dir), "/sys/kernel/mm/hugepages");
		snprintf(path, sizeof(path), "%s/hugepages-%zukB/free_hugepages",
			 dir, huge_size >> 10);
		nr_free = read_long(path);
		snprintf(path, sizeof(path), "%s/hugepages-%zukB/nr_hugepages",
			 dir, huge_size >> 10);
		nr = read_long(path);
		if (nr < 0 || nr_free >= 8)
			continue;
		snprintf(value, sizeof(value), "%ld", nr + 8 - nr_free);
		/* the kernel changes it too, when a page is taken out of use */
		set_knob(path, value);
		if (read_long(path) == nr)
			write_file(path, value);
	}
}

static void set_knobs(const struct row *row)
{
	set_thp(row);
	if (row->mem->flags & M_HUGETLB)
		set_hugetlb();
	set_knob(NUMAB_ON, "0");
	/* the less of what is freed waits for reuse, the more to compact to */
	if (row->path->flags & P_COMPACT)
		set_knob("/proc/sys/vm/percpu_pagelist_high_fraction", "100000");
	if (row->path->flags & P_NUMA_HINT) {
		set_knob(NUMAB "scan_delay_ms", "1");
		set_knob(NUMAB "scan_period_min_ms", "1");
		set_knob(NUMAB "scan_size_mb", "16");
	}
	if (row->path->flags & P_KSM) {
		set_knob(KSM "run", "0");
		set_knob(KSM "advisor_mode", "none");
		set_knob(KSM "smart_scan", "0");
		set_knob(KSM "sleep_millisecs", "0");
		set_knob(KSM "pages_to_scan", "5000");
		set_knob(KSM "use_zero_pages",
			 row->path->flags & P_KSM_ZERO ? "1" : "0");
	}
}

/* Returns false if the process could not even be killed. */
static bool wait_row(pid_t pid, int *status)
{
	struct timespec limit = { .tv_sec = ROW_MS / 1000 };
	uint64_t until = now_ms() + ROW_MS;
	bool killed = false;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (;;) {
		if (waitpid(pid, status, WNOHANG) == pid)
			return true;
		sigtimedwait(&set, NULL, &limit);
		if (now_ms() < until)
			continue;
		if (killed)
			return waitpid(pid, status, WNOHANG) == pid;
		kill(pid, SIGKILL);
		killed = true;
		until = now_ms() + WAIT_MS;
		limit.tv_sec = WAIT_MS / 1000;
	}
}

static void try_row(struct row *row)
{
	int status = 0;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	set_knobs(row);
	pid = fork();
	if (pid < 0) {
		report->outcome = FAIL;
		snprintf(report->text, sizeof(report->text), "setup: fork: %s",
			 strerror(errno));
		return;
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_row(row);
	}
	if (!wait_row(pid, &status)) {
		report->outcome = FAIL;
		snprintf(report->text, sizeof(report->text),
			 "hang: in step '%s', and it cannot be killed", report->step);
	} else if (report->outcome == DIED && WIFSIGNALED(status) &&
		   WTERMSIG(status) == SIGKILL) {
		report->outcome = FAIL;
		snprintf(report->text, sizeof(report->text),
			 "hang: not finished in %d ms, in step '%s'", ROW_MS,
			 report->step);
	} else if (report->outcome == DIED) {
		report->outcome = FAIL;
		snprintf(report->text, sizeof(report->text),
			 "crash: %s %d in step '%s'",
			 WIFSIGNALED(status) ? "signal" : "exit",
			 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
			 report->step);
	}
	if (row->path->flags & P_KSM)
		write_file(KSM "run", "0");
	if (row->path->flags & P_NUMA_HINT)
		write_file(NUMAB_ON, "0");
}

struct row_id {
	const struct path *path;
	const struct memory *mem;
	const struct mode *mode;
	const char *why_not;
	char name[96];
};

static void do_row(const struct row_id *id)
{
	static int hangs;
	uint64_t start = now_ms();
	int try;

	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", id->name);
	fflush(stdout);
	for (try = 0; try < MAX_TRIES; try++) {
		struct row row = {
			.path = id->path, .mem = id->mem, .mode = id->mode,
			.try = try,
		};

		if (hangs >= MAX_HANGS) {
			report->outcome = FAIL;
			snprintf(report->text, sizeof(report->text),
				 "hang: not run, %d rows before it hung", hangs);
			break;
		}
		try_row(&row);
		if (report->outcome != AGAIN || now_ms() - start > ROW_MS)
			break;
		if (verbose)
			ksft_print_msg("%s: once more: %s\n", id->name, report->text);
	}

	switch (report->outcome) {
	case PASS:
		ksft_test_result_pass("%s\n", id->name);
		break;
	case SKIP:
	case AGAIN:
		ksft_inc_xskip_cnt();
		printf("ok %u %s # SKIP %s\n", ksft_test_num(), id->name, report->text);
		break;
	default:
		if (!strncmp(report->text, "hang:", 5))
			hangs++;
		ksft_test_result_fail("%s # %s\n", id->name, report->text);
		break;
	}
	if (verbose)
		ksft_print_msg("%s took %d ms\n", id->name, (int)(now_ms() - start));
}

/*
 * Selecting rows: by exact name, or else by a part of it
 */

static struct {
	const char *text;
	bool exact, row, impossible;	/* what it is the name of, or in */
} selection[64];
static unsigned int nr_selected;

static void add_selection(char *arg)
{
	char *one;

	for (one = strtok(arg, ","); one; one = strtok(NULL, ","))
		if (nr_selected < ARRAY_SIZE(selection))
			selection[nr_selected++].text = one;
}

static bool selects(unsigned int i, const char *name)
{
	return selection[i].exact ? !strcmp(name, selection[i].text) :
				    !!strstr(name, selection[i].text);
}

static bool selected(const char *name)
{
	unsigned int i;

	for (i = 0; i < nr_selected; i++)
		if (selects(i, name))
			return true;
	return !nr_selected;
}

typedef void (*row_fn)(const struct row_id *id);

static void all_rows(row_fn fn)
{
	unsigned int p, m, o;

	for (p = 0; p < ARRAY_SIZE(paths); p++)
		for (m = 0; m < ARRAY_SIZE(memories); m++)
			for (o = 0; o < ARRAY_SIZE(modes); o++) {
				struct row_id id = {
					.path = &paths[p],
					.mem = &memories[m],
					.mode = &modes[o],
				};

				id.why_not = impossible(id.path, id.mem, id.mode);
				snprintf(id.name, sizeof(id.name), "%s %s %s",
					 id.path->name, id.mem->name, id.mode->name);
				if (selected(id.name))
					fn(&id);
			}
}

static unsigned int nr_rows;

static void find_exact(const struct row_id *id)
{
	unsigned int i;

	for (i = 0; i < nr_selected; i++)
		if (!strcmp(id->name, selection[i].text))
			selection[i].exact = true;
}

static void count_row(const struct row_id *id)
{
	unsigned int i;

	if (!id->why_not)
		nr_rows++;
	for (i = 0; i < nr_selected; i++) {
		if (!selects(i, id->name))
			continue;
		if (id->why_not)
			selection[i].impossible = true;
		else
			selection[i].row = true;
	}
}

static void list_row(const struct row_id *id)
{
	if (id->why_not)
		printf("n/a %s: %s\n", id->name, id->why_not);
	else
		printf("%s\n", id->name);
}

static void run_one(const struct row_id *id)
{
	if (!id->why_not)
		do_row(id);
}

/*
 * Start
 */

static pid_t main_pid;
static bool loaded_hwpoison;

static void load_hwpoison(void)
{
	if (access(UNPOISON, W_OK) &&
	    !system("modprobe hwpoison_inject >/dev/null 2>&1"))
		loaded_hwpoison = true;
}

static void put_back(void)
{
	if (getpid() != main_pid)
		return;
	restore_knobs();
	if (loaded_hwpoison && system("modprobe -r hwpoison_inject >/dev/null 2>&1"))
		ksft_print_msg("hwpoison_inject stays loaded\n");
}

static void on_signal(int sig)
{
	put_back();
	signal(sig, SIG_DFL);
	raise(sig);
}

static const char help[] =
	"usage: %s [-l] [-v] [-h] [-t TEXT] [TEXT...]\n"
	"  Runs the rows (\"path memory mode\") whose name is or contains TEXT, else all.\n"
	"  Several TEXTs may be given, also in one argument with commas.\n"
	"  -l  list the rows, and the combinations that cannot be, with the reason\n"
	"  -v  say how long each row took, and what had to be tried again\n"
	"  -h  this text\n";

int main(int argc, char **argv)
{
	bool list = false;
	unsigned int i;
	sigset_t set;
	int opt, fd;

	opterr = 0;
	while ((opt = getopt(argc, argv, "hlvt:")) != -1) {
		switch (opt) {
		case 'h':
			printf(help, argv[0]);
			return 0;
		case 'l':
			list = true;
			break;
		case 'v':
			verbose = true;
			break;
		case 't':
			add_selection(optarg);
			break;
		default:
			fprintf(stderr, "%s: unknown or incomplete option -%c, see -h\n",
				argv[0], optopt);
			return 2;
		}
	}
	for (; optind < argc; optind++)
		add_selection(argv[optind]);
	all_rows(find_exact);
	all_rows(count_row);
	for (i = 0; i < nr_selected; i++) {
		if (selection[i].row || (list && selection[i].impossible))
			continue;
		fprintf(stderr, "%s: there %s no row \"%s\", see -l\n", argv[0],
			selection[i].impossible ? "can be" : "is", selection[i].text);
		return 2;
	}
	if (list) {
		all_rows(list_row);
		return 0;
	}

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root, for pagemap and the knobs in /sys\n");
	fd = uffd_open(0, &uffd_features);
	if (fd < 0)
		ksft_exit_skip("no userfaultfd: %s\n", strerror(errno));
	close(fd);
	find_sizes();
	find_nodes();
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	vmstat_fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (kpageflags_fd < 0 || vmstat_fd < 0 || report == MAP_FAILED)
		ksft_exit_skip("needs /proc/kpageflags and /proc/vmstat\n");

	main_pid = getpid();
	atexit(put_back);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	load_hwpoison();
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);

	ksft_set_plan(nr_rows);
	all_rows(run_one);
	if (ksft_get_fail_cnt())
		ksft_exit_fail();
	ksft_exit_pass();
}
