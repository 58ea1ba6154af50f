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
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <linux/magic.h>
#include <linux/mempolicy.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#include "../kselftest.h"

/* What older headers lack. */
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM	(1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED	(1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC		(1 << 15)
#endif
#ifndef UFFD_FEATURE_RWP
#define UFFD_FEATURE_RWP		(1 << 17)
#endif
#ifndef UFFD_PAGEFAULT_FLAG_RWP
#define UFFD_PAGEFAULT_FLAG_RWP		(1 << 3)
#endif
#ifndef UFFDIO_REGISTER_MODE_RWP
#define UFFDIO_REGISTER_MODE_RWP	((__u64)1 << 3)
#endif
#ifndef UFFDIO_RWPROTECT
#define UFFDIO_RWPROTECT		_IOWR(UFFDIO, 0x09, struct uffdio_writeprotect)
#endif
#ifndef UFFDIO_RWPROTECT_MODE_RWP
#define UFFDIO_RWPROTECT_MODE_RWP	((__u64)1 << 0)
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE		101
#endif
#ifndef MFD_HUGETLB
#define MFD_HUGETLB			0x0004U
#endif

/* PAGEMAP_SCAN; not from linux/fs.h, which clashes with libc's headers. */
struct scan_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

struct scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};

#define SCAN_IOCTL		_IOWR('f', 16, struct scan_arg)
#define SCAN_WRITTEN		(1 << 1)

/* /proc/PID/pagemap and /proc/kpageflags */
#define PM_PFN			((1ULL << 55) - 1)
#define PM_UFFD_WP		(1ULL << 57)
#define PM_FILE			(1ULL << 61)
#define PM_PRESENT		(1ULL << 63)
#define KPF_ANON		(1ULL << 12)
#define KPF_COMPOUND_HEAD	(1ULL << 15)
#define KPF_COMPOUND_TAIL	(1ULL << 16)
#define KPF_HUGE		(1ULL << 17)
#define KPF_ZERO_PAGE		(1ULL << 24)

#define WAIT_MS		5000	/* no single step takes longer */
#define ROW_MS		20000	/* nor a whole row */
#define MAX_TRIES	4	/* for a path that could not be proved to have run */
#define MAX_HANGS	8	/* then the rest is given up */
#define MAX_UNITS	32

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define KSM		"/sys/kernel/mm/ksm/"
#define NODES		"/sys/devices/system/node/"
#define NUMAB		"/sys/kernel/debug/sched/numa_balancing/"
#define UNPOISON	"/sys/kernel/debug/hwpoison/unpoison-pfn"
#define MTHP_SIZE	(64UL << 10)

struct row;

/* Kinds of memory */
enum {
	M_PRIVATE	= 1 << 0,	/* MAP_PRIVATE, else MAP_SHARED */
	M_ANON		= 1 << 1,	/* what is mapped are anonymous pages */
	M_FD		= 1 << 2,	/* mapped from a file */
	M_HUGETLB	= 1 << 3,
	M_THP		= 1 << 4,
	M_MTHP		= 1 << 5,	/* large folio, mapped by PTEs */
	M_TMPFS		= 1 << 6,
	M_BY_FD		= 1 << 7,	/* content comes through the file */
};

struct memory {
	const char *name;
	unsigned int flags;
};

struct mode {
	const char *name;
	bool async, unpop, rwp;
	uint64_t features;
};

/* What a path needs */
enum {
	P_PAGES		= 1 << 0,	/* works on pages, not on empty entries */
	P_TWO_NODES	= 1 << 1,
	P_KSM		= 1 << 2,
	P_KSM_ZERO	= 1 << 3,
	P_NUMA_HINT	= 1 << 4,
	P_EARLY		= 1 << 5,	/* registered before it is populated */
	P_ON_OTHER	= 1 << 6,	/* populated on the other node */
	P_COMPACT	= 1 << 7,
};

struct path {
	const char *name;
	unsigned int flags;
	int arg;
	void (*prepare)(struct row *row);	/* before it is registered */
	void (*armed)(struct row *row);		/* registered, not protected */
	void (*run)(struct row *row);		/* protected */
	int map_prot;				/* -1: readable and writable */
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
static size_t page_size, huge_size, pmd_size;
static uint64_t uffd_features;
static int nr_nodes, nodes[2], node_cpu[2];
static int pagemap_fd, kpageflags_fd, vmstat_fd;
static bool verbose;

/*
 * Small helpers
 */

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

static ssize_t read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n, len = 0;

	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + len, size - 1 - len)) > 0)
		len += n;
	close(fd);
	if (n < 0)
		return -1;
	buf[len] = '\0';
	return len;
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text);
}

static long read_long(const char *path)
{
	char buf[32];

	return read_file(path, buf, sizeof(buf)) > 0 ? atol(buf) : -1;
}

/* The number after @key in a file of "key value" lines, -1 if there is none. */
static long long field(const char *text, const char *key)
{
	const char *at = text;

	while ((at = strstr(at, key))) {
		if (at == text || at[-1] == '\n')
			return atoll(at + strlen(key) + strspn(at + strlen(key), " :\t"));
		at++;
	}
	return -1;
}

/*
 * A row's process ends through one of these.
 */

static void __attribute__((noreturn, format(printf, 2, 0)))
end_row(enum outcome outcome, const char *fmt, va_list args)
{
	vsnprintf(report->text, sizeof(report->text), fmt, args);
	report->outcome = outcome;
	_exit(0);
}

static void __attribute__((noreturn, format(printf, 1, 2)))
skip(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(SKIP, fmt, args);
}

/* The path did not happen this time: once more with fresh pages. */
static void __attribute__((noreturn, format(printf, 1, 2)))
again(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(AGAIN, fmt, args);
}

static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(FAIL, fmt, args);
}

/* Not the end: what else is wrong may tell more. The first one is kept. */
static void __attribute__((format(printf, 2, 3)))
bad(struct row *row, const char *fmt, ...)
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
 * Knobs in /proc, /sys and debugfs: saved when first set, put back at exit.
 */

struct knob {
	char path[128];
	char saved[64];
	char now[64];
};

static struct knob knobs[64];
static int nr_knobs;
static pid_t main_pid;

static bool set_knob(const char *path, const char *value)
{
	char buf[256], *from, *to;
	struct knob *knob;
	int i;

	for (i = 0; i < nr_knobs; i++)
		if (!strcmp(knobs[i].path, path))
			break;
	knob = &knobs[i];
	if (i == nr_knobs) {
		if (i == ARRAY_SIZE(knobs) || read_file(path, buf, sizeof(buf)) < 0)
			return false;
		from = strchr(buf, '[');
		to = from ? strchr(from, ']') : strchr(buf, '\n');
		from = from ? from + 1 : buf;
		if (to)
			*to = '\0';
		snprintf(knob->path, sizeof(knob->path), "%s", path);
		snprintf(knob->saved, sizeof(knob->saved), "%.63s", from);
		snprintf(knob->now, sizeof(knob->now), "%.63s", from);
		nr_knobs++;
	}
	if (!strcmp(knob->now, value))
		return true;
	if (!write_file(path, value))
		return false;
	snprintf(knob->now, sizeof(knob->now), "%s", value);
	return true;
}

static void restore_knobs(void)
{
	if (getpid() != main_pid)
		return;
	while (nr_knobs) {
		nr_knobs--;
		write_file(knobs[nr_knobs].path, knobs[nr_knobs].saved);
	}
}

static void on_signal(int sig)
{
	restore_knobs();
	signal(sig, SIG_DFL);
	raise(sig);
}

/*
 * What a page is and where
 */

static uint64_t pagemap(const char *addr)
{
	uint64_t entry;

	if (pread(pagemap_fd, &entry, 8, (uintptr_t)addr / page_size * 8) != 8)
		fail("setup: cannot read pagemap: %s", strerror(errno));
	return entry;
}

static uint64_t pfn_of(const char *addr)
{
	uint64_t entry = pagemap(addr);

	return entry & PM_PRESENT ? entry & PM_PFN : 0;
}

static uint64_t page_flags(uint64_t pfn)
{
	uint64_t flags;

	if (pread(kpageflags_fd, &flags, 8, pfn * 8) != 8)
		fail("setup: cannot read kpageflags: %s", strerror(errno));
	return flags;
}

static bool reported_written(const char *addr)
{
	struct scan_region region;
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + page_size,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = SCAN_WRITTEN,
		.return_mask = SCAN_WRITTEN,
	};
	int n = ioctl(pagemap_fd, SCAN_IOCTL, &arg);

	if (n < 0)
		fail("setup: PAGEMAP_SCAN: %s", strerror(errno));
	return n > 0;
}

static int node_of(char *addr)
{
	void *page = (void *)((uintptr_t)addr & ~(page_size - 1));
	int status = -1;

	if (syscall(__NR_move_pages, 0, 1UL, &page, NULL, &status, 0))
		return -1;
	return status;
}

static int count_vmas(const struct row *row)
{
	static char buf[64 << 10];
	unsigned long start, end;
	char *line = buf;
	int n = 0;

	if (read_file("/proc/self/maps", buf, sizeof(buf)) < 0)
		fail("setup: cannot read /proc/self/maps: %s", strerror(errno));
	while (line && sscanf(line, "%lx-%lx", &start, &end) == 2) {
		if (start < (uintptr_t)row->addr + row->map_len &&
		    end > (uintptr_t)row->addr)
			n++;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return n;
}

/* Bytes of the tested mapping that smaps has under @key. */
static size_t smaps_bytes(const char *addr, size_t len, const char *key)
{
	static char buf[256 << 10];
	unsigned long start, end, kb;
	char *line = buf;
	bool inside = false;
	size_t sum = 0;

	if (read_file("/proc/self/smaps", buf, sizeof(buf)) < 0)
		fail("setup: cannot read /proc/self/smaps: %s", strerror(errno));
	while (line) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start < (uintptr_t)addr + len &&
				 end > (uintptr_t)addr;
		else if (inside && !strncmp(line, key, strlen(key)) &&
			 sscanf(line + strlen(key), ": %lu kB", &kb) == 1)
			sum += kb << 10;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return sum;
}

static long long vmstat(const char *key)
{
	static char buf[32 << 10];
	ssize_t n = pread(vmstat_fd, buf, sizeof(buf) - 1, 0);

	if (n <= 0)
		fail("setup: cannot read /proc/vmstat");
	buf[n] = '\0';
	return field(buf, key);
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

#define WORD(page, at)	(*(volatile uint64_t *)((page) + (at)))

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
		got = WORD(addr, at);
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
			WORD(view, page * page_size + word_at(n)) =
				old_word(row, page);
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

static uint64_t sink;

static void touch(const char *addr)
{
	sink += *(const volatile uint64_t *)addr;
}

/* Read, so that there is an entry with a page and not only a marker. */
static void touch_all(struct row *row)
{
	size_t pages = row->unit / page_size, n;
	int i;

	for (i = 0; i < row->nr; i++) {
		touch(target(row, i));
		if (pages == 1 || row->mem->flags & M_HUGETLB)
			continue;
		for (n = 0; n < 16; n++)
			touch(row->addr + (i * pages + n) * page_size);
		touch(row->addr + ((i + 1) * pages - 1) * page_size);
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
	if (addr == MAP_FAILED)
		fail("setup: mmap of %s: %s", row->mem->name, strerror(errno));
	if (flags & (M_THP | M_MTHP) && madvise(addr, len, MADV_HUGEPAGE))
		skip("no transparent huge pages: %s", strerror(errno));
	return addr;
}

/* Room for @len at a multiple of @align, with a hole at both ends. */
static char *room(size_t len, size_t align)
{
	size_t all = len + 3 * align;
	char *addr = mmap(NULL, all, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		fail("setup: no room for %zu bytes", all);
	munmap(addr, all);
	return (char *)(((uintptr_t)addr + 2 * align - 1) & ~(align - 1));
}

static void create(struct row *row)
{
	unsigned int flags = row->mem->flags;
	size_t align = pmd_size > huge_size ? pmd_size : huge_size;
	int prot = row->path->map_prot;

	row->unit = flags & M_HUGETLB ? huge_size : flags & M_THP ? pmd_size : page_size;
	row->folio = flags & M_MTHP ? MTHP_SIZE : row->unit;
	row->nr = flags & M_MTHP ? 32 : row->unit > page_size ? 4 : 8;
	row->len = row->nr * row->unit;
	row->map_len = row->len;
	row->filled = !row->mode->unpop || flags & M_BY_FD ||
		      (flags & (M_THP | M_MTHP) && !(flags & M_ANON));

	row->fd = -1;
	if (flags & M_TMPFS)
		row->fd = tmpfs_file();
	else if (flags & M_FD)
		row->fd = memfd_create("uffd-wp-pte",
				       flags & M_HUGETLB ? MFD_HUGETLB : 0);
	if (flags & M_FD && (row->fd < 0 || ftruncate(row->fd, row->map_len)))
		skip("no file for %s: %s", row->mem->name, strerror(errno));
	if (prot < 0 || (!row->mode->unpop && !(row->path->flags & P_EARLY)))
		prot = PROT_READ | PROT_WRITE;
	row->addr = map(row, room(row->map_len, align), row->map_len, prot);
}

/*
 * A large folio of shmem must be in the page cache first: into a VMA that is
 * registered, the kernel puts small ones. Populating from another view works
 * for all, and leaves the tested one untouched. It needs the file.
 */
static void make_shmem_huge(struct row *row)
{
	size_t align = pmd_size > huge_size ? pmd_size : huge_size;
	char *view = map(row, room(row->map_len, align), row->map_len,
			 PROT_READ | PROT_WRITE);

	fill(row, view);
	if (row->mem->flags & M_THP &&
	    smaps_bytes(view, row->map_len, "ShmemPmdMapped") != row->map_len)
		again("shmem gave no PMD-mapped folio");
	munmap(view, row->map_len);
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
	if (row->mem->flags & M_BY_FD && !(row->mem->flags & M_ANON) &&
	    row->mem->flags & M_PRIVATE)
		touch_all(row);
	else
		fill(row, row->addr);
}

/* Is it what its name says? */
static void prove_kind(struct row *row)
{
	unsigned int flags = row->mem->flags;
	const uint64_t compound = KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	int i;

	for (i = 0; i < row->nr; i++) {
		uint64_t entry = pagemap(target(row, i));
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

	if (row->mode->rwp) {
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
			other.word = *(volatile uint64_t *)other.addr;
		else
			*(volatile uint64_t *)other.addr = other.word;
		n = 1;
		if (write(other.done, &n, 8) != 8)
			break;
	}
	return arg;
}

/* What came first within the time: an event, or the end of the access */
enum came { NOTHING, EVENT, DONE };

static enum came wait_for(int uffd, int ms)
{
	struct pollfd fds[2] = {
		{ .fd = uffd, .events = POLLIN },
		{ .fd = other.done, .events = POLLIN },
	};
	uint64_t n;

	if (poll(fds, 2, ms) <= 0)
		return NOTHING;
	if (fds[0].revents)
		return EVENT;
	if (read(other.done, &n, 8) != 8)
		fail("setup: lost the other thread");
	return DONE;
}

static void start_other(void)
{
	other.go = eventfd(0, EFD_CLOEXEC);
	other.done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (other.go < 0 || other.done < 0 ||
	    pthread_create(&other.thread, NULL, other_thread, NULL))
		fail("setup: cannot start a thread");
	if (wait_for(-1, WAIT_MS) != DONE)
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

static void finish(struct row *row, int i, const char *doing)
{
	int extra = 0;
	struct uffd_msg msg;

	for (;;) {
		switch (wait_for(row->uffd, WAIT_MS)) {
		case DONE:
			return;
		case NOTHING:
			fail("hang: unit %d: the %s did not finish in %d ms after it was resolved",
			     i, doing, WAIT_MS);
		case EVENT:
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
	case DONE:
		break;
	case NOTHING:
		fail("hang: unit %d: the write to %s did not finish in %d ms", i,
		     whose, WAIT_MS);
	case EVENT:
		bad(row, "spurious: unit %d: an event for a write to %s", i, whose);
		if (read(row->uffd, &msg, sizeof(msg)) != sizeof(msg))
			fail("%s", row->why);
		set_protection(row, i, 1, false);
		finish(row, i, "write");
	}
	check_content(row, "after the write,", i, true);
}

/* Counts only hinting faults of the access, see numa_arm(). */
static void note_hint(struct row *row, int i, long long before)
{
	if (row->want_hint && vmstat("numa_hint_faults") > before)
		row->hinted[folio_index(row, i)] = true;
}

static void check_sync(struct row *row, int i)
{
	bool is_read = row->mode->rwp && i % 2;
	long long hints = row->want_hint ? vmstat("numa_hint_faults") : 0;
	struct pollfd fd = { .fd = row->uffd, .events = POLLIN };
	enum came came;

	start_access(target(row, i) + (is_read ? 0 : write_at()), is_read, new_word(i));
	came = wait_for(row->uffd, WAIT_MS);
	note_hint(row, i, hints);
	if (came == NOTHING)
		fail("hang: unit %d: the %s neither finished nor raised an event in %d ms",
		     i, what(is_read), WAIT_MS);
	if (came == DONE) {
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
	if (wait_for(-1, 0) == DONE)
		fail("content: unit %d: the %s did not wait for its event to be resolved",
		     i, what(is_read));
	set_protection(row, i, 1, false);
	finish(row, i, what(is_read));
	if (is_read && other.word != old_word(row, target_page(row, i)))
		bad(row, "content: unit %d: the read got %#llx", i,
		    (unsigned long long)other.word);
	check_content(row, "after it was resolved,", i, !is_read);
	check_free(row, i, "a page that was resolved");
}

static bool still_protected(const struct row *row, int i)
{
	return pagemap(target(row, i)) & PM_UFFD_WP &&
	       !reported_written(target(row, i));
}

static void check_async(struct row *row, int i)
{
	long long hints = row->want_hint ? vmstat("numa_hint_faults") : 0;
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
	if (came == NOTHING)
		fail("hang: unit %d: the write did not finish in %d ms", i, WAIT_MS);
	if (came == EVENT)
		fail("spurious: unit %d: an event although nobody is to be told", i);
	check_content(row, "after the write,", i, true);
	if (!reported_written(target(row, i))) {
		if (!row->nr_lost++ && !row->bad)
			snprintf(row->why, sizeof(row->why),
				 "not reported as written after the write");
	} else if (pagemap(target(row, i)) & PM_UFFD_WP) {
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
	n = count_vmas(row);
	if (n != 3)
		fail("setup: %d VMAs after mprotect() of a part, not 3", n);
	if (mprotect(part, len, PROT_READ | PROT_WRITE))
		fail("setup: mprotect: %s", strerror(errno));
	n = count_vmas(row);
	/* hugetlb VMAs are never merged */
	if (n != (row->mem->flags & M_HUGETLB ? 3 : 1))
		fail("setup: %d VMAs after mprotect() of a part and back", n);
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
		if (now_ms() > until)
			again("KSM did not merge the pages in %d ms", WAIT_MS);
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
		touch(target(row, i));
		before = pfn_of(target(row, i));
		poisoned = pfn_of(addr);
		for (n = 0; madvise(addr, hugetlb ? row->unit : page_size,
				    MADV_SOFT_OFFLINE); n++) {
			if (errno != EBUSY || n == 20)
				again("MADV_SOFT_OFFLINE of unit %d: %s", i,
				      strerror(errno));
			usleep(1000);
		}
		touch(target(row, i));
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
 * Compaction moves pages to the end of their zone, and what was freed there
 * is handed out first: take that out of the way, for as long as the row runs.
 */
static void use_up_fragments(const struct row *row)
{
	size_t len = 4UL << (20 + row->try);

	mmap(NULL, len, PROT_READ | PROT_WRITE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
}

static void migrate_compact(struct row *row)
{
	uint64_t before[MAX_UNITS];
	int i, moved = 0;
	char path[128];

	for (i = 0; i < row->nr; i++) {
		touch(target(row, i));
		before[i] = pfn_of(target(row, i));
	}
	snprintf(path, sizeof(path), NODES "node%d/compact", node_of(target(row, 0)));
	if (!write_file(path, "1") && !write_file("/proc/sys/vm/compact_memory", "1"))
		skip("no compaction: %s", strerror(errno));
	for (i = 0; i < row->nr; i++) {
		touch(target(row, i));
		if (protected(row, i) && pfn_of(target(row, i)) != before[i])
			moved++;
	}
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
static void numa_arm(struct row *row)
{
	long long start = numa_scans(), hints;
	uint64_t until = now_ms() + (start < 0 ? 300 : 1500);
	static uint64_t dummy;
	int n, quiet = 0;

	if (!write_file("/proc/sys/kernel/numa_balancing", "1"))
		skip("no NUMA balancing: %s", strerror(errno));
	/* A new VMA is passed over once; and a scan may be half done now. */
	while (now_ms() < until && (start < 0 || numa_scans() < start + 4))
		;
	if (!write_file("/proc/sys/kernel/numa_balancing", "0"))
		fail("setup: cannot stop NUMA balancing: %s", strerror(errno));

	/* Take the hints of all the rest that an access involves. */
	for (n = 0; n < 50 && quiet < 3; n++) {
		hints = vmstat("numa_hint_faults");
		start_access((char *)&dummy, n % 2, 0);
		if (wait_for(row->uffd, WAIT_MS) != DONE)
			fail("hang: an access elsewhere did not finish");
		quiet = vmstat("numa_hint_faults") == hints ? quiet + 1 : 0;
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
		numa_arm(row);
		for (i = 0; i < row->nr; i++) {
			hints = vmstat("numa_hint_faults");
			touch(target(row, i));
			if (protected(row, i) && vmstat("numa_hint_faults") > hints)
				row->hinted[folio_index(row, i)] = true;
		}
	}
	if (!all_hinted(row))
		again("not every page took a hinting fault");
}

static void numa_write(struct row *row)
{
	numa_arm(row);
	row->want_hint = true;
}

/* On the other node, the fault finds a misplaced page and may migrate it. */
static void numa_hint(struct row *row)
{
	must_be_on(row, nodes[1], "populating");
	pin(0);
	if (row->path->arg)
		numa_write(row);
	else
		numa_read(row);
}

/* On the node that it is used from, the fault only puts the entry back. */
static void numa_hint_local(struct row *row)
{
	must_be_on(row, nodes[0], "populating");
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
	{ .name = "rwp", .rwp = true, .features = UFFD_FEATURE_RWP },
};

static const struct path paths[] = {
	{ "mprotect_none_rw", 0, PROT_NONE, NULL, NULL, mprotect_there_and_back, -1 },
	{ "mprotect_read_rw", 0, PROT_READ, NULL, NULL, mprotect_there_and_back, -1 },
	{ "mprotect_part_none_rw", 0, PROT_NONE, NULL, NULL, mprotect_part, -1 },
	{ "mprotect_part_read_rw", 0, PROT_READ, NULL, NULL, mprotect_part, -1 },
	/* mapped so, registered, then made writable and used, then protected */
	{ "mprotect_before_none", P_EARLY, 0, NULL, mprotect_rw, NULL, PROT_NONE },
	{ "mprotect_before_read", P_EARLY, 0, NULL, mprotect_rw, NULL, PROT_READ },
	/* made writable only after it is registered and protected */
	{ "mprotect_registered_none", 0, PROT_NONE, mprotect_set, NULL, mprotect_rw,
	  PROT_NONE },
	{ "mprotect_registered_read", 0, PROT_READ, mprotect_set, NULL, mprotect_rw,
	  PROT_READ },

	{ "migrate_move_pages", P_PAGES | P_TWO_NODES, 0, NULL, NULL,
	  migrate_move_pages, -1 },
	{ "migrate_move_pages_mprotect", P_PAGES | P_TWO_NODES, 1, NULL, NULL,
	  migrate_move_pages, -1 },
	{ "migrate_mbind", P_PAGES | P_TWO_NODES, 0, NULL, NULL, migrate_mbind, -1 },
	{ "migrate_mbind_mprotect", P_PAGES | P_TWO_NODES, 1, NULL, NULL,
	  migrate_mbind, -1 },
	{ "migrate_soft_offline", P_PAGES, 0, NULL, NULL, migrate_soft_offline, -1 },
	{ "migrate_soft_offline_mprotect", P_PAGES, 1, NULL, NULL,
	  migrate_soft_offline, -1 },
	{ "migrate_compact", P_PAGES | P_COMPACT, 0, NULL, NULL, migrate_compact, -1 },
	{ "migrate_compact_mprotect", P_PAGES | P_COMPACT, 1, NULL, NULL,
	  migrate_compact, -1 },

	{ "numa_hint", P_PAGES | P_TWO_NODES | P_NUMA_HINT | P_ON_OTHER, 0, NULL,
	  NULL, numa_hint, -1 },
	{ "numa_hint_local", P_PAGES | P_TWO_NODES | P_NUMA_HINT, 0, NULL, NULL,
	  numa_hint_local, -1 },
	{ "numa_hint_write", P_PAGES | P_TWO_NODES | P_NUMA_HINT | P_ON_OTHER, 1,
	  NULL, NULL, numa_hint, -1 },
	{ "numa_hint_write_local", P_PAGES | P_TWO_NODES | P_NUMA_HINT, 1, NULL, NULL,
	  numa_hint_local, -1 },

	{ "ksm_merge", P_KSM, 0, NULL, NULL, ksm_merge, -1 },
	{ "ksm_merge_first", P_KSM, 0, NULL, ksm_merge, NULL, -1 },
	{ "ksm_zero", P_KSM | P_KSM_ZERO, 0, NULL, NULL, ksm_merge, -1 },
	{ "ksm_zero_first", P_KSM | P_KSM_ZERO, 0, NULL, ksm_merge, NULL, -1 },
	{ "ksm_unmerge", P_KSM, 0, NULL, NULL, ksm_merge_unmerge, -1 },
	{ "ksm_unmerge_all", P_KSM, 1, NULL, NULL, ksm_merge_unmerge, -1 },
	{ "ksm_unmerge_first", P_KSM, 0, NULL, ksm_merge, ksm_unmerge, -1 },
};

/* Why there can be no such row, NULL if there can */
static const char *impossible(const struct path *path, const struct memory *mem,
			      const struct mode *mode)
{
	bool cow = mem->flags & M_ANON && mem->flags & M_FD &&
		   !(mem->flags & M_HUGETLB);

	if (mode->rwp && (!(path->flags & P_KSM) ||
			  mem->flags & (M_THP | M_MTHP)))
		return "read-write protection is looked at where KSM replaces small pages";
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
	if (path->flags & P_EARLY && mem->flags & M_ANON && mem->flags & M_MTHP)
		return "a registered VMA is not populated with such folios";
	if (path->flags & P_NUMA_HINT && mem->flags & M_HUGETLB)
		return "NUMA balancing does not look at hugetlb";
	if (path->flags & P_COMPACT && mem->flags & (M_HUGETLB | M_THP))
		return "compaction moves nothing as large as a page block";
	return NULL;
}

/*
 * Running the rows
 */

static void run_row(struct row *row)
{
	const struct path *path = row->path;

	step("start");
	check_features(row);
	if (path->flags & P_TWO_NODES && nr_nodes < 2)
		skip("needs two nodes with memory and a CPU");
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		fail("setup: no /proc/self/pagemap: %s", strerror(errno));
	pin(path->flags & P_ON_OTHER ? 1 : 0);
	start_other();

	step("map");
	if (path->flags & P_COMPACT)
		use_up_fragments(row);
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
	/* protecting a file's PMD leaves markers: bring the pages back */
	if (row->mode->unpop ? path->flags & P_PAGES :
	    row->mem->flags & M_THP && !(row->mem->flags & M_ANON) &&
	    !(path->arg == PROT_NONE && path->prepare)) {
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
	snprintf(path, sizeof(path), THP "hugepages-%lukB/enabled", MTHP_SIZE >> 10);
	set_knob(path, pte ? "madvise" : "never");
	snprintf(path, sizeof(path), THP "hugepages-%lukB/shmem_enabled", MTHP_SIZE >> 10);
	set_knob(path, pte ? "advise" : "never");
}

/* Enough free huge pages on each node to hold the row and to move it */
static void set_hugetlb(void)
{
	char path[128], value[32];
	long nr, nr_free;
	int i;

	for (i = 0; i < nr_nodes; i++) {
		snprintf(path, sizeof(path),
			 NODES "node%d/hugepages/hugepages-%zukB/free_hugepages",
			 nodes[i], huge_size >> 10);
		nr_free = read_long(path);
		snprintf(path, sizeof(path),
			 NODES "node%d/hugepages/hugepages-%zukB/nr_hugepages",
			 nodes[i], huge_size >> 10);
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
	set_knob("/proc/sys/kernel/numa_balancing", "0");
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

static void row_name(char *buf, size_t size, const struct path *path,
		     const struct memory *mem, const struct mode *mode)
{
	snprintf(buf, size, "%s %s %s", path->name, mem->name, mode->name);
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
		write_file("/proc/sys/kernel/numa_balancing", "0");
}

static int do_row(const struct path *path, const struct memory *mem,
		  const struct mode *mode)
{
	static int hangs;
	uint64_t start = now_ms();
	char name[96];
	int try;

	row_name(name, sizeof(name), path, mem, mode);
	for (try = 0; try < MAX_TRIES; try++) {
		struct row row = {
			.path = path, .mem = mem, .mode = mode, .try = try,
		};

		if (hangs >= MAX_HANGS) {
			report->outcome = FAIL;
			snprintf(report->text, sizeof(report->text),
				 "hang: not run, %d rows before it hung", hangs);
			break;
		}
		try_row(&row);
		if (report->outcome != AGAIN)
			break;
		if (verbose)
			ksft_print_msg("%s: once more: %s\n", name, report->text);
	}

	switch (report->outcome) {
	case PASS:
		ksft_test_result_pass("%s\n", name);
		break;
	case SKIP:
	case AGAIN:
		ksft_inc_xskip_cnt();
		printf("ok %u %s # SKIP %s\n", ksft_test_num(), name, report->text);
		break;
	default:
		if (!strncmp(report->text, "hang:", 5))
			hangs++;
		ksft_test_result_fail("%s # %s\n", name, report->text);
		break;
	}
	if (verbose)
		ksft_print_msg("%s took %d ms\n", name, (int)(now_ms() - start));
	return report->outcome == FAIL;
}

/*
 * Selecting rows: by exact name, or else by a part of it
 */

static char *selection[64];
static bool selection_exact[64];
static int nr_selected;

static void add_selection(char *arg)
{
	char *one;

	for (one = strtok(arg, ","); one; one = strtok(NULL, ","))
		if (nr_selected < (int)ARRAY_SIZE(selection))
			selection[nr_selected++] = one;
}

static bool selected(const char *name)
{
	int i;

	for (i = 0; i < nr_selected; i++)
		if (selection_exact[i] ? !strcmp(name, selection[i]) :
					 !!strstr(name, selection[i]))
			return true;
	return !nr_selected;
}

static void for_each_row(void (*fn)(const struct path *path, const struct memory *mem,
				    const struct mode *mode, const char *name,
				    const char *why_not))
{
	unsigned int p, m, o;
	char name[96];

	for (p = 0; p < ARRAY_SIZE(paths); p++)
		for (m = 0; m < ARRAY_SIZE(memories); m++)
			for (o = 0; o < ARRAY_SIZE(modes); o++) {
				row_name(name, sizeof(name), &paths[p],
					 &memories[m], &modes[o]);
				if (selected(name))
					fn(&paths[p], &memories[m], &modes[o], name,
					   impossible(&paths[p], &memories[m],
						      &modes[o]));
			}
}

static unsigned int nr_rows, nr_listed;

static void find_exact(const struct path *path __always_unused,
		       const struct memory *mem __always_unused,
		       const struct mode *mode __always_unused, const char *name,
		       const char *why_not __always_unused)
{
	int i;

	for (i = 0; i < nr_selected; i++)
		if (!strcmp(name, selection[i]))
			selection_exact[i] = true;
}

static void count_row(const struct path *path __always_unused,
		      const struct memory *mem __always_unused,
		      const struct mode *mode __always_unused,
		      const char *name __always_unused, const char *why_not)
{
	nr_listed++;
	if (!why_not)
		nr_rows++;
}

static void list_row(const struct path *path __always_unused,
		     const struct memory *mem __always_unused,
		     const struct mode *mode __always_unused, const char *name,
		     const char *why_not)
{
	if (why_not)
		printf("n/a %s: %s\n", name, why_not);
	else
		printf("%s\n", name);
}

static void run_one(const struct path *path, const struct memory *mem,
		    const struct mode *mode, const char *name __always_unused,
		    const char *why_not)
{
	if (!why_not)
		do_row(path, mem, mode);
}

/*
 * Start
 */

static int first_number(const char *path)
{
	return read_long(path);
}

/* The first two nodes that have both memory and a CPU */
static void find_nodes(void)
{
	char path[128], buf[64];
	int node;

	for (node = 0; node < 1024 && nr_nodes < 2; node++) {
		snprintf(path, sizeof(path), NODES "node%d/cpulist", node);
		if (read_file(path, buf, sizeof(buf)) < 0 || buf[0] == '\n')
			continue;
		node_cpu[nr_nodes] = first_number(path);
		nodes[nr_nodes++] = node;
	}
}

static void find_sizes(void)
{
	static char buf[8 << 10];

	page_size = sysconf(_SC_PAGESIZE);
	if (read_file("/proc/meminfo", buf, sizeof(buf)) > 0 &&
	    field(buf, "Hugepagesize") > 0)
		huge_size = field(buf, "Hugepagesize") << 10;
	pmd_size = read_long(THP "hpage_pmd_size");
	if ((ssize_t)pmd_size <= 0)
		pmd_size = page_size * (page_size / sizeof(void *));
	if (!huge_size)
		huge_size = pmd_size;
}

static void usage(FILE *out, const char *self)
{
	fprintf(out,
		"usage: %s [-l] [-v] [-h] [-t TEXT] [TEXT...]\n"
		"  Runs the rows (\"path memory mode\") whose name is or contains TEXT, else all.\n"
		"  Several TEXTs may be given, also in one argument with commas.\n"
		"  -l  list the rows, and the combinations that cannot be, with the reason\n"
		"  -v  say how long each row took, and what had to be tried again\n"
		"  -h  this text\n", self);
}

int main(int argc, char **argv)
{
	bool list = false;
	sigset_t set;
	int opt, fd;

	while ((opt = getopt(argc, argv, "hlvt:")) != -1) {
		switch (opt) {
		case 'h':
			usage(stdout, argv[0]);
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
			usage(stderr, argv[0]);
			return 2;
		}
	}
	for (; optind < argc; optind++)
		add_selection(argv[optind]);
	for_each_row(find_exact);
	for_each_row(count_row);
	if (list ? !nr_listed : !nr_rows) {
		fprintf(stderr, "%s: no row is selected, see -l\n", argv[0]);
		return 2;
	}
	if (list) {
		for_each_row(list_row);
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
	atexit(restore_knobs);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);

	ksft_set_plan(nr_rows);
	for_each_row(run_one);
	if (ksft_get_fail_cnt())
		ksft_exit_fail();
	ksft_exit_pass();
}
