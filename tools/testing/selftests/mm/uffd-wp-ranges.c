// SPDX-License-Identifier: GPL-2.0
/*
 * What userfaultfd write protection makes of the ranges that it is given: empty
 * ones, a part of a huge page, several VMAs, ranges that wrap; of calls that
 * fail half-way; and of calls that others race with.
 *
 * A test is a row: a call x a range x a kind of memory. Each runs in a process of
 * its own, as a user without privileges. Half of a mapping is protected, the
 * call is made, and then pages all over it are written. The row passes if the call
 * returned the error that the table has for it, and the writes that raised an
 * event are those to pages that are protected now. A call that fails changes
 * nothing.
 *
 * A row that cannot prove that what its name says has happened is a SKIP.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#define NOBODY		65534
#define ROW_SECONDS	60
#define RACE_MS		2000	/* at least, and as many rounds */
#define RACE_ROUNDS	300
#define HANG_MS		5000
#define MAX_SAMPLES	256
#define MAX_VMAS	256	/* vm.max_map_count for the rows that get there */
#define CGROUP		"/sys/fs/cgroup/uffd-wp-ranges-%s/%s"	/* call, file */

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY	1
#endif

enum kind_flags {
	K_SHARED	= BIT(0),
	K_FD		= BIT(1),
	K_HUGETLB	= BIT(2),
	K_THP		= BIT(3),
};

static const struct kind {
	const char *name;
	unsigned int flags;
} kinds[] = {
	{ "anon", 0 },
	{ "memfd", K_SHARED | K_FD },
	{ "anon-thp", K_THP },
	{ "shmem-thp", K_SHARED | K_FD | K_THP },
	{ "hugetlb-shared", K_SHARED | K_FD | K_HUGETLB },
	{ "hugetlb-private", K_FD | K_HUGETLB },
};

/* The ranges, relative to a mapping of @len bytes that consists of @unit. */
enum range_id {
	R_WHOLE, R_ONE, R_MIDDLE, R_TWO_VMAS, R_BEYOND,
	R_EMPTY, R_UNALIGNED, R_LEN, R_PART, R_WRAPPED, NR_RANGES,
};

static const char * const range_names[] = {
	[R_WHOLE]	= "whole",
	[R_ONE]		= "one",		/* protected page */
	[R_MIDDLE]	= "middle",		/* across the PMDs of a THP */
	[R_TWO_VMAS]	= "two_vmas",
	[R_BEYOND]	= "beyond",		/* the end of the mapping */
	[R_EMPTY]	= "empty",
	[R_UNALIGNED]	= "unaligned",
	[R_LEN]		= "unaligned_len",
	[R_PART]	= "part",		/* of a hugetlb page */
	[R_WRAPPED]	= "wrapped",
};

/* What a call does to the pages of its range */
enum effect {
	KEEPS, PROTECTS, UNPROTECTS,
	MOVES,		/* all of it to another address, without protection */
	ENDS,		/* all protection */
};

struct row {
	const struct call *call;
	enum range_id range;
	const struct kind *kind;
	char *addr, *checked;
	char *to;		/* reserved for it to move to */
	char old;		/* what a page holds before it is written */
	size_t unit, len;
	size_t start, range_len;
	int nr, uffd;
	bool want[MAX_SAMPLES];
};

#define E_ALIGN	(-1)	/* EINVAL for hugetlb, 0 otherwise */

static const struct call {
	const char *name;
	int (*make)(struct row *row);
	enum effect effect;
	int errors[NR_RANGES];
	unsigned int needs;
} calls[];

static bool write_reported(struct row *row, char *p);
static void arm_async(struct row *row);
static void *write_one(void *p);

static char *why;	/* Shared with the parent. Empty: passed */

#define EXIT_FAIL	1
#define EXIT_SKIP	KSFT_SKIP

static __noreturn __printf(2, 3) void end_row(int status, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, 256, fmt, args);
	va_end(args);
	_exit(status);
}

#define fail(...)	end_row(EXIT_FAIL, __VA_ARGS__)
#define skip(...)	end_row(EXIT_SKIP, __VA_ARGS__)

/*
 * The calls. Each returns 0 or an errno.
 */

static int write_protect(struct row *row, unsigned long start, size_t len,
			 bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = start, .len = len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(row->uffd, UFFDIO_WRITEPROTECT, &wp) ? errno : 0;
}

static unsigned long from(const struct row *row)
{
	return (unsigned long)row->addr + row->start;
}

static int do_protect(struct row *row)
{
	return write_protect(row, from(row), row->range_len, true);
}

static int do_unprotect(struct row *row)
{
	return write_protect(row, from(row), row->range_len, false);
}

static int register_wp(struct row *row, unsigned long start, size_t len)
{
	struct uffdio_register reg = {
		.range = { .start = start, .len = len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(row->uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
}

static int do_register(struct row *row)
{
	return register_wp(row, from(row), row->range_len);
}

static int do_unregister(struct row *row)
{
	struct uffdio_range range = {
		.start = from(row), .len = row->range_len,
	};

	return ioctl(row->uffd, UFFDIO_UNREGISTER, &range) ? errno : 0;
}

static int do_mprotect(struct row *row)
{
	char *p = row->addr + row->start;

	if (mprotect(p, row->range_len, PROT_READ))
		return errno;
	return mprotect(p, row->range_len, PROT_READ | PROT_WRITE) ? errno : 0;
}

static int do_dontneed(struct row *row)
{
	/* Private pages are lost, the protection is there still. */
	return madvise(row->addr + row->start, row->range_len,
		       MADV_DONTNEED) ? errno : 0;
}

static char *reserve(size_t size, size_t align)
{
	char *p = mmap(NULL, size + align, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail("setup: mmap: %s", strerror(errno));
	return (char *)(((uintptr_t)p + align - 1) & ~(align - 1));
}

static int move_to(struct row *row, size_t old_len, size_t new_len, int flags)
{
	char *to = row->to ? row->to : reserve(new_len, pmd_size);

	to = mremap(row->addr + row->start, old_len, new_len,
		    MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);
	if (to == MAP_FAILED)
		return errno;
	row->checked = to;
	return 0;
}

static int do_move(struct row *row)
{
	return move_to(row, row->range_len, row->range_len, 0);
}

static int do_grow(struct row *row)
{
	return move_to(row, row->range_len, row->range_len + row->len, 0);
}

static int do_dontunmap(struct row *row)
{
	return move_to(row, row->range_len, row->range_len,
		       MREMAP_DONTUNMAP);
}

/* A second mapping of the same pages; the old one stays as it is. */
static int do_duplicate(struct row *row)
{
	int err = move_to(row, 0, row->len, 0);

	row->checked = row->addr;
	return err;
}

static int do_shrink(struct row *row)
{
	char *p = mremap(row->addr, row->len, row->len / 2, 0);

	if (p == MAP_FAILED)
		return errno;
	row->nr /= 2;
	return 0;
}

static int do_close(struct row *row)
{
	close(row->uffd);
	row->uffd = -1;
	return 0;
}

/* Each such row has one of its own, with nothing left by others. */
static const char *in_cgroup(const struct row *row, const char *file)
{
	static char path[128];

	snprintf(path, sizeof(path), CGROUP, row->call->name, file);
	return path;
}

static int memory_max_fd = -1;	/* With the cgroup full, open() fails. */

static void limit_memory(const char *limit)
{
	if (write(memory_max_fd, limit, strlen(limit)) < 0)
		fail("setup: memory.max: %s", strerror(errno));
}

/* From now on, this process gets only what the kernel has put by for it. */
static void fill_cgroup(const struct row *row)
{
	char now[32];

	snprintf(now, sizeof(now), "%ld",
		 read_long(in_cgroup(row, "memory.current")) - 64 * 1024);
	limit_memory(now);
}

/*
 * No page table can be had for the last of the pages: the new address is such
 * that PTEs have to be moved one by one.
 */
static int do_move_no_memory(struct row *row)
{
	char *to = reserve(row->len + 2 * pmd_size, pmd_size) + row->unit;

	fill_cgroup(row);
	to = mremap(row->addr, row->len, row->len,
		    MREMAP_MAYMOVE | MREMAP_FIXED, to);
	return to == MAP_FAILED ? errno : 0;
}

/* Untouched memory is protected by markers, which need page tables. */
static int do_protect_no_memory(struct row *row)
{
	size_t len = 512 * pmd_size;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int err;

	if (p == MAP_FAILED || register_wp(row, (uintptr_t)p, len))
		fail("setup: second mapping: %s", strerror(errno));
	fill_cgroup(row);
	err = write_protect(row, (uintptr_t)p, len, true);
	limit_memory("max");
	if (write_protect(row, (uintptr_t)p, len, true))
		fail("error: it fails again with memory to be had");
	row->old = 0;
	row->checked = p;
	if (!write_reported(row, p) || !write_reported(row, p + len - page_size))
		fail("lost: a write after it was protected again");
	row->old = 'o';
	row->checked = row->addr;
	return err;
}

/* PAGEMAP_SCAN in small pieces: all that it protects, it has to report. */
static int scan_all(struct row *row, char *p, size_t len, long max_pages)
{
	struct scan_region region;
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = SCAN_WP_MATCHING,
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + len,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.max_pages = max_pages,
		.category_mask = SCAN_WRITTEN,
		.return_mask = SCAN_WRITTEN,
	};
	size_t found = 0;
	bool full = row->call->needs;
	int n;

	while (arg.start < arg.end) {
		n = ioctl(pagemap_fd, SCAN_IOCTL, &arg);
		if (n < 0 && (errno != ENOMEM || !full))
			fail("error: PAGEMAP_SCAN: %s", strerror(errno));
		if (n > 0)
			found += region.end - region.start;
		/* Whatever it is that is missing, from here on it is there. */
		if (full && (n < 0 || arg.walk_end < arg.end)) {
			limit_memory("max");
			full = false;
		}
		if (n >= 0 && arg.walk_end <= arg.start)
			fail("error: walk_end is %#llx, it goes on at %#llx",
			     arg.walk_end, arg.start);
		arg.start = arg.walk_end;
	}
	if (full)
		skip("there was memory enough");
	if (found != len)
		fail("lost: %zu of %zu bytes are reported as written", found, len);
	arg.start = (uintptr_t)p;
	arg.flags = 0;
	arg.max_pages = 0;
	if (ioctl(pagemap_fd, SCAN_IOCTL, &arg))
		fail("spurious: written after all was protected, at %#llx",
		     region.start - (uintptr_t)p);
	write_one(p + len / 2);
	if (!scan_written(p + len / 2) || scan_written(p + len / 2 - page_size))
		fail("lost: one page is written, and another one reported");
	return 0;
}

static int do_scan_pieces(struct row *row)
{
	close(row->uffd);
	arm_async(row);
	if (register_wp(row, (uintptr_t)row->addr, row->len))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	return scan_all(row, row->addr, row->len, 100);
}

static int do_scan_no_memory(struct row *row)
{
	size_t len = 512 * pmd_size;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	close(row->uffd);
	arm_async(row);
	if (p == MAP_FAILED || register_wp(row, (uintptr_t)p, len))
		fail("setup: second mapping: %s", strerror(errno));
	fill_cgroup(row);
	return scan_all(row, p, len, 0);
}

/*
 * There is no VMA to be had: a call that needs to split one fails.
 */

static int without_vmas(struct row *row, int (*make)(struct row *row))
{
	static char *pages[2 * MAX_VMAS];
	int err, nr = 0;

	/* Neighbours that differ are not merged. */
	do {
		pages[nr] = mmap(NULL, page_size, nr & 1 ? PROT_READ : PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	} while (pages[nr] != MAP_FAILED && ++nr < (int)ARRAY_SIZE(pages));
	if (nr == ARRAY_SIZE(pages) || errno != ENOMEM)
		fail("setup: vm.max_map_count does not stop it");
	err = make(row);
	while (nr)
		munmap(pages[--nr], page_size);
	return err;
}

static int do_unregister_no_vmas(struct row *row)
{
	return without_vmas(row, do_unregister);
}

static int do_mprotect_no_vmas(struct row *row)
{
	return without_vmas(row, do_mprotect);
}

static int do_move_no_vmas(struct row *row)
{
	row->to = reserve(row->range_len, pmd_size);
	return without_vmas(row, do_move);
}

/*
 * Somebody waits for an event of the range, and the range goes.
 */

static void *write_one(void *p)
{
	__atomic_store_n((char *)p, 'n', __ATOMIC_RELAXED);
	return NULL;
}

/* What there is to do may have to be done by turns: do not wait for ever. */
static void join(pthread_t thread, const char *what)
{
	uint64_t until = now_ms() + HANG_MS;

	while (pthread_tryjoin_np(thread, NULL)) {
		if (now_ms() > until)
			fail("hang: %s", what);
		sched_yield();
	}
}

static int while_waited_for(struct row *row, int (*make)(struct row *row))
{
	struct pollfd poll_fd = { .fd = row->uffd, .events = POLLIN };
	pthread_t writer;
	int err;

	if (pthread_create(&writer, NULL, write_one, row->addr + row->len / 2))
		fail("setup: pthread_create");
	if (poll(&poll_fd, 1, HANG_MS) != 1)
		fail("lost: the write did not raise an event");
	err = make(row);
	join(writer, "the write that waits is not woken");
	return err;
}

static int do_unregister_waited_for(struct row *row)
{
	return while_waited_for(row, do_unregister);
}

static int do_close_waited_for(struct row *row)
{
	return while_waited_for(row, do_close);
}

/*
 * Races
 */

static struct {
	char *page;
	int round;	/* that has begun, and that the other side has done */
	int done;
	bool stop;
} race;

static void *write_each_round(void *arg)
{
	int round = 0;

	while (!__atomic_load_n(&race.stop, __ATOMIC_ACQUIRE)) {
		if (__atomic_load_n(&race.round, __ATOMIC_ACQUIRE) == round)
			continue;
		write_one(race.page);
		__atomic_store_n(&race.done, ++round, __ATOMIC_RELEASE);
	}
	return arg;
}

/*
 * The protection of a page is lifted while another thread writes to it. Nobody
 * reads events, so a writer that goes to sleep after that sleeps for ever. The
 * page is the zero page: it is not writable when it is not protected either.
 */
static int do_unprotect_race(struct row *row)
{
	uint64_t until = now_ms() + RACE_MS, hang;
	pthread_t writer;
	int round, wait;

	race.page = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (race.page == MAP_FAILED ||
	    register_wp(row, (uintptr_t)race.page, page_size) ||
	    pthread_create(&writer, NULL, write_each_round, NULL))
		fail("setup: second mapping: %s", strerror(errno));
	for (round = 1; now_ms() < until || round < RACE_ROUNDS; round++) {
		madvise(race.page, page_size, MADV_DONTNEED);
		if (__atomic_load_n(race.page, __ATOMIC_RELAXED))
			fail("content: not zero after MADV_DONTNEED");
		if (write_protect(row, (uintptr_t)race.page, page_size, true))
			fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(errno));
		__atomic_store_n(&race.round, round, __ATOMIC_RELEASE);
		for (wait = round % 64 * 64; wait; wait--)
			__atomic_load_n(&race.done, __ATOMIC_RELAXED);
		if (write_protect(row, (uintptr_t)race.page, page_size, false))
			fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(errno));
		hang = now_ms() + HANG_MS;
		while (__atomic_load_n(&race.done, __ATOMIC_ACQUIRE) != round)
			if (now_ms() > hang)
				fail("hang: the writer of round %d is not woken",
				     round);
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	join(writer, "the writer does not end");
	munmap(race.page, page_size);
	return 0;
}

static void *move_to_and_fro(void *arg)
{
	struct row *row = arg;
	void *pages[MAX_SAMPLES];
	int target[MAX_SAMPLES], status[MAX_SAMPLES];
	int i, n;

	for (i = 0; i < row->nr; i++)
		pages[i] = row->addr + row->len / row->nr * i;
	for (n = 0; !__atomic_load_n(&race.stop, __ATOMIC_ACQUIRE); n++) {
		for (i = 0; i < row->nr; i++)
			target[i] = nodes[n & 1];
		syscall(__NR_move_pages, 0, (long)row->nr, pages, target,
			status, 2 /* MPOL_MF_MOVE */);
		for (i = 0; i < row->nr; i++)
			if (status[i] == target[i])
				__atomic_fetch_add(&race.done, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *read_each_round(void *arg)
{
	struct row *row = arg;
	int round = 0;
	size_t at;

	while (!__atomic_load_n(&race.stop, __ATOMIC_ACQUIRE)) {
		if (__atomic_load_n(&race.round, __ATOMIC_ACQUIRE) == round)
			continue;
		for (at = 0; at < row->len; at += page_size)
			__atomic_load_n(row->addr + at, __ATOMIC_RELAXED);
		__atomic_store_n(&race.done, ++round, __ATOMIC_RELEASE);
	}
	return NULL;
}

/*
 * Markers are read while the range is unregistered. A bit that stays behind is
 * taken for a protection when it is registered again.
 */
static int do_read_race(struct row *row)
{
	uint64_t until = now_ms() + RACE_MS;
	pthread_t reader;
	int round, wait;
	size_t at;

	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0 ||
	    pthread_create(&reader, NULL, read_each_round, row))
		fail("setup: pagemap: %s", strerror(errno));
	for (round = 1; now_ms() < until || round < RACE_ROUNDS; round++) {
		if (madvise(row->addr, row->len, MADV_DONTNEED) ||
		    register_wp(row, (uintptr_t)row->addr, row->len) ||
		    write_protect(row, (uintptr_t)row->addr, row->len, true))
			fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
		__atomic_store_n(&race.round, round, __ATOMIC_RELEASE);
		for (wait = round % 64 * 64; wait; wait--)
			__atomic_load_n(&race.done, __ATOMIC_RELAXED);
		if (do_unregister(row))
			fail("setup: UFFDIO_UNREGISTER: %s", strerror(errno));
		while (__atomic_load_n(&race.done, __ATOMIC_ACQUIRE) != round)
			sched_yield();
		for (at = 0; at < row->len; at += page_size)
			if (pagemap_entry(row->addr + at) & PM_UFFD_WP)
				fail("stale: round %d, a page is marked, and not registered",
				     round);
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	join(reader, "the reader does not end");
	return 0;
}

/* This userfaultfd has no events: PAGEMAP_SCAN says what was written. */
static void arm_async(struct row *row)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC,
	};

	row->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK |
			    UFFD_USER_MODE_ONLY);
	if (row->uffd < 0 || ioctl(row->uffd, UFFDIO_API, &api))
		skip("no WP_ASYNC: %s", strerror(errno));
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		fail("setup: pagemap: %s", strerror(errno));
}

/* Pages are protected by PAGEMAP_SCAN while they are migrated. Nobody writes. */
static int do_scan_race(struct row *row)
{
	uint64_t until = now_ms() + RACE_MS;
	long nr_lost = 0, nr = 0;
	pthread_t mover;
	int i;

	if (nr_nodes < 2)
		skip("needs two nodes with memory");
	close(row->uffd);
	arm_async(row);
	if (register_wp(row, (uintptr_t)row->addr, row->len) ||
	    pthread_create(&mover, NULL, move_to_and_fro, row))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	while (now_ms() < until ||
	       __atomic_load_n(&race.done, __ATOMIC_RELAXED) < RACE_ROUNDS) {
		if (write_protect(row, (uintptr_t)row->addr, row->len, false) ||
		    scan_protect(row->addr, row->len) < 0)
			fail("setup: PAGEMAP_SCAN: %s", strerror(errno));
		for (i = 0; i < row->nr; i++, nr++)
			nr_lost += scan_written(row->addr +
						row->len / row->nr * i) != 0;
	}
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	join(mover, "move_pages() does not end");
	if (nr_lost)
		fail("spurious: %ld of %ld pages are reported as written",
		     nr_lost, nr);
	return 0;
}

#define ALL_EINVAL	{ [R_EMPTY] = EINVAL, [R_UNALIGNED] = EINVAL,	\
			  [R_LEN] = EINVAL, [R_PART] = E_ALIGN,		\
			  [R_WRAPPED] = EINVAL }
/* No such row: the call has one range only, or the range means nothing to it. */
#define NONE		(-2)
#define ONE_RANGE	{ [R_ONE ... NR_RANGES - 1] = NONE }
#define OOM		{ [R_WHOLE] = ENOMEM, [R_ONE ... NR_RANGES - 1] = NONE }
#define NO_VMAS		{ [R_WHOLE ... NR_RANGES - 1] = NONE,		\
			  [R_ONE] = ENOMEM, [R_MIDDLE] = ENOMEM,	\
			  [R_BEYOND] = ENOMEM }

/* What a call needs beyond a range */
enum needs {
	N_CGROUP	= BIT(0),	/* that is full when it is made */
	N_VMAS		= BIT(1),	/* a low vm.max_map_count */
};

static const struct call calls[] = {
	{ "protect", do_protect, PROTECTS, ALL_EINVAL },
	{ "unprotect", do_unprotect, UNPROTECTS, ALL_EINVAL },
	{ "register", do_register, KEEPS, ALL_EINVAL },
	{ "unregister", do_unregister, UNPROTECTS, ALL_EINVAL },
	{ "mprotect", do_mprotect, KEEPS,
	  { [R_UNALIGNED] = EINVAL, [R_BEYOND] = NONE, [R_LEN] = NONE,
	    [R_PART] = E_ALIGN, [R_WRAPPED] = ENOMEM } },
	{ "dontneed", do_dontneed, KEEPS,
	  { [R_UNALIGNED] = EINVAL, [R_BEYOND] = ENOMEM, [R_LEN] = NONE,
	    [R_PART] = NONE, [R_WRAPPED] = EINVAL } },
	{ "mremap_move", do_move, MOVES, ONE_RANGE },
	{ "mremap_grow", do_grow, MOVES, ONE_RANGE },
	{ "mremap_dontunmap", do_dontunmap, MOVES, ONE_RANGE },
	{ "mremap_duplicate", do_duplicate, KEEPS, ONE_RANGE },
	{ "mremap_shrink", do_shrink, KEEPS, ONE_RANGE },
	{ "close", do_close, ENDS, ONE_RANGE },
	{ "mremap_no_memory", do_move_no_memory, KEEPS, OOM, N_CGROUP },
	{ "protect_no_memory", do_protect_no_memory, KEEPS, OOM, N_CGROUP },
	{ "scan_no_memory", do_scan_no_memory, ENDS, ONE_RANGE, N_CGROUP },
	{ "scan_pieces", do_scan_pieces, ENDS, ONE_RANGE },
	{ "unregister_no_vmas", do_unregister_no_vmas, KEEPS, NO_VMAS, N_VMAS },
	{ "mprotect_no_vmas", do_mprotect_no_vmas, KEEPS, NO_VMAS, N_VMAS },
	{ "mremap_no_vmas", do_move_no_vmas, KEEPS, NO_VMAS, N_VMAS },
	{ "unregister_waited_for", do_unregister_waited_for, ENDS, ONE_RANGE },
	{ "close_waited_for", do_close_waited_for, ENDS, ONE_RANGE },
	{ "unprotect_race", do_unprotect_race, KEEPS, ONE_RANGE },
	{ "read_race", do_read_race, ENDS, ONE_RANGE },
	{ "scan_race", do_scan_race, ENDS, ONE_RANGE },
};

/* Why there is no such row, NULL if there is one */
static const char *impossible(const struct call *call, enum range_id range,
			      const struct kind *kind)
{
	if (call->errors[range] == NONE)
		return "the call has no such range";
	if (call->make == do_duplicate && !(kind->flags & K_SHARED))
		return "a private mapping cannot be duplicated";
	if ((call->make == do_dontneed || call->make == do_read_race) &&
	    !(kind->flags & K_FD))
		return "the pages are gone, and their protection";
	if (call->make == do_scan_race && kind->flags & (K_THP | K_HUGETLB) &&
	    kind->flags & K_SHARED)
		return "too few of them are migrated in time";
	if (call->make == do_scan_pieces && kind->flags & K_HUGETLB)
		return "PAGEMAP_SCAN does not report a part of a huge page";
	if ((call->make == do_duplicate || call->make == do_dontunmap) &&
	    kind->flags & K_HUGETLB)
		return "mremap() refuses that for hugetlb";
	if ((call->make == do_grow || call->make == do_shrink) &&
	    kind->flags & K_HUGETLB)
		return "hugetlb cannot be grown, and is too small to be shrunk";
	if ((call->needs & N_CGROUP ||
	     call->make == do_unprotect_race) && strcmp(kind->name, "anon"))
		return "it brings its own memory";
	if ((call->make == do_move_no_vmas || call->make == do_mprotect_no_vmas) &&
	    range == R_BEYOND)
		return "the call wants a mapping all along";
	return NULL;
}

/*
 * A row
 */

static char *sample(const struct row *row, char *base, int i)
{
	return base + row->len / row->nr * i;
}

static void map_memory(struct row *row)
{
	unsigned int flags = row->kind->flags;
	size_t align = flags & K_HUGETLB ? huge_size : pmd_size;
	int i, fd = -1;

	row->unit = flags & K_HUGETLB ? huge_size : page_size;
	row->nr = 8;
	row->len = flags & K_THP ? 4 * pmd_size : 8 * row->unit;
	row->old = 'o';
	if (flags & K_HUGETLB) {
		row->nr = 4;
		row->len = 4 * row->unit;
	}
	/* So many page tables that some of them cannot be had. */
	if (row->call->make == do_move_no_memory) {
		row->nr = MAX_SAMPLES;
		row->len = MAX_SAMPLES * pmd_size;
	}
	if (flags & K_FD) {
		fd = memfd_create("uffd-wp-ranges",
				  flags & K_HUGETLB ? MFD_HUGETLB : 0);
		if (fd < 0 || ftruncate(fd, 2 * row->len))
			fail("setup: memfd: %s", strerror(errno));
	}
	row->addr = reserve(3 * row->len, align);
	if (mmap(row->addr, row->len, PROT_READ | PROT_WRITE, MAP_FIXED |
		 (flags & K_SHARED ? MAP_SHARED : MAP_PRIVATE) |
		 (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0) == MAP_FAILED)
		fail("setup: mmap: %s", strerror(errno));
	munmap(row->addr + row->len, row->len);
	if (madvise(row->addr, row->len,
		    flags & K_THP ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
	    flags & K_THP)
		fail("setup: MADV_HUGEPAGE: %s", strerror(errno));
	for (i = 0; i < row->nr; i++)
		*sample(row, row->addr, i) = 'o';
	if (flags & K_THP &&
	    smaps_bytes(row->addr, row->len, flags & K_SHARED ?
			"ShmemPmdMapped" : "AnonHugePages") != row->len)
		fail("setup: no huge pages");
	row->checked = row->addr;
}

static void choose_range(struct row *row)
{
	/* One that is protected already, unless that is what the call does. */
	size_t one = row->call->effect == PROTECTS ? 0 : row->len / 2;

	row->start = 0;
	row->range_len = row->len;
	switch (row->range) {
	case R_ONE:
		row->start = one;
		row->range_len = row->unit;
		break;
	case R_MIDDLE:
		row->start = (one ? one : row->len / 4 * 3) - row->unit;
		row->range_len = 2 * row->unit;
		break;
	case R_TWO_VMAS:
		if (madvise(row->addr + row->len / 2, row->len / 2,
			    MADV_DONTFORK))
			fail("setup: MADV_DONTFORK: %s", strerror(errno));
		break;
	case R_BEYOND:
		row->start = row->len / 2;
		break;
	case R_EMPTY:
		row->range_len = 0;
		break;
	case R_UNALIGNED:
		row->start = 1;
		break;
	case R_LEN:
		row->range_len--;
		break;
	case R_PART:
		row->start = one;
		row->range_len = page_size;
		break;
	case R_WRAPPED:
		row->start = row->len / 2;
		row->range_len = -page_size;
		break;
	default:
		break;
	}
}

static void arm(struct row *row)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)row->addr, .len = row->len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	/* The middle half, unless the first pages are those that matter. */
	int skip = row->call->make == do_move_no_memory ? 0 : row->nr / 4;
	size_t step = row->len / row->nr;
	int i, err;

	row->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK |
			    UFFD_USER_MODE_ONLY);
	if (row->uffd < 0 || ioctl(row->uffd, UFFDIO_API, &api) ||
	    ioctl(row->uffd, UFFDIO_REGISTER, &reg))
		fail("setup: userfaultfd: %s", strerror(errno));
	err = write_protect(row, (uintptr_t)row->addr + step * skip,
			    row->len - 2 * step * skip, true);
	if (err)
		fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(err));
	for (i = 0; i < row->nr; i++)
		row->want[i] = i >= skip && i < row->nr - skip;
	/* Huge pages of files are mapped by PTEs when they are protected. */
	if (row->kind->flags & K_THP && !(row->kind->flags & K_SHARED) &&
	    smaps_bytes(row->addr, row->len, "AnonHugePages") != row->len)
		fail("setup: no huge pages after they were protected");
}

static bool in_range(const struct row *row, int i)
{
	size_t at = row->len / row->nr * i;

	return at >= row->start && at - row->start < row->range_len;
}

static void expect(struct row *row, int err)
{
	enum effect effect = row->call->effect;
	int i;

	for (i = 0; i < row->nr && !err; i++) {
		if (effect == PROTECTS && in_range(row, i))
			row->want[i] = true;
		else if ((effect == UNPROTECTS && in_range(row, i)) ||
			 effect == MOVES || effect == ENDS)
			row->want[i] = false;
	}
}

/* Writes to the page; did that raise an event? */
static bool write_reported(struct row *row, char *p)
{
	struct pollfd poll_fd = { .fd = row->uffd, .events = POLLIN };
	struct uffd_msg msg;
	bool reported = false;
	uint64_t until = now_ms() + HANG_MS;
	pthread_t writer;

	if (pthread_create(&writer, NULL, write_one, p))
		fail("setup: pthread_create");
	while (pthread_tryjoin_np(writer, NULL)) {
		if (now_ms() > until)
			fail("hang: the write at %td does not return",
			     p - row->checked);
		if (row->uffd < 0 || poll(&poll_fd, 1, 1) <= 0 ||
		    read(row->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (*p != row->old)
			fail("content: written before the event was resolved");
		if (msg.event != UFFD_EVENT_PAGEFAULT || reported ||
		    !(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) ||
		    msg.arg.pagefault.address / row->unit !=
		    (uintptr_t)p / row->unit)
			fail("event: wrong, or one too many, at %td",
			     p - row->checked);
		reported = true;
		write_protect(row, (uintptr_t)p & ~(row->unit - 1), row->unit,
			      false);
	}
	if (*p != 'n')
		fail("content: not written at %td", p - row->checked);
	return reported;
}

static void run_row(struct row *row)
{
	int i, err, want, nr_lost = 0, nr_spurious = 0;
	size_t step;

	if (row->call->needs & N_CGROUP) {
		memory_max_fd = open(in_cgroup(row, "memory.max"), O_WRONLY);
		if (memory_max_fd < 0 ||
		    !write_file("/proc/self/oom_score_adj", "-1000") ||
		    !write_file(in_cgroup(row, "memory.swap.max"), "0") ||
		    !write_file(in_cgroup(row, "cgroup.procs"), "0") ||
		    mlockall(MCL_CURRENT))
			fail("setup: no memory cgroup: %s", strerror(errno));
	}
	if (setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		fail("setup: setresuid: %s", strerror(errno));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Dropping privileges makes /proc/self somebody else's. */
	prctl(PR_SET_DUMPABLE, 1);

	map_memory(row);
	arm(row);
	choose_range(row);
	want = row->call->errors[row->range];
	if (want == E_ALIGN)
		want = row->kind->flags & K_HUGETLB ? EINVAL : 0;
	step = row->len / row->nr;
	err = row->call->make(row);
	if (row->call->needs & N_CGROUP)
		limit_memory("max");
	if (err != want)
		fail("error: %s, not %s", err ? strerror(err) : "success",
		     want ? strerror(want) : "success");
	expect(row, err);
	for (i = 0; i < row->nr; i++) {
		/* ENOMEM: there was more to drop than what is mapped */
		bool dropped = row->call->make == do_dontneed &&
			       (!err || err == ENOMEM) && in_range(row, i) &&
			       !(row->kind->flags & K_SHARED);
		bool reported;

		row->old = dropped ? 0 : 'o';
		reported = write_reported(row, row->checked + step * i);

		nr_lost += row->want[i] && !reported;
		nr_spurious += !row->want[i] && reported;
	}
	if (nr_lost)
		fail("lost: %d of %d writes", nr_lost, row->nr);
	if (nr_spurious)
		fail("spurious: %d of %d writes", nr_spurious, row->nr);
	_exit(0);
}

#define STR_(n)	#n
#define STR(n)	STR_(n)

static char max_map_count[32];

static void do_row(struct row *row, const char *name)
{
	uint64_t until;
	int status;
	pid_t pid;

	set_knob("/proc/sys/vm/max_map_count",
		 row->call->needs & N_VMAS ? STR(MAX_VMAS) : max_map_count);
	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", name);
	fflush(stdout);
	why[0] = '\0';
	if (row->call->needs & N_CGROUP)
		mkdir(in_cgroup(row, ""), 0755);
	pid = fork();
	if (!pid)
		run_row(row);
	until = now_ms() + ROW_SECONDS * 1000;
	while (pid > 0 && !waitpid(pid, &status, WNOHANG)) {
		if (now_ms() > until) {
			kill(pid, SIGKILL);
			snprintf(why, 256, "hang: not finished in %d s", ROW_SECONDS);
			until = UINT64_MAX;
		}
		usleep(1000);
	}
	if (row->call->needs & N_CGROUP)
		rmdir(in_cgroup(row, ""));
	if (pid < 0)
		snprintf(why, 256, "setup: fork: %s", strerror(errno));
	else if (!why[0] && status)
		snprintf(why, 256, "crash: status %#x", status);
	if (pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIP)
		ksft_test_result_skip("%s # %s\n", name, why);
	else if (why[0])
		ksft_test_result_fail("%s # %s\n", name, why);
	else
		ksft_test_result_pass("%s\n", name);
}

static const char *selection;

typedef void (*row_fn)(struct row *row, const char *name);

static unsigned int each_row(row_fn fn)
{
	unsigned int c, r, k, nr = 0;
	char name[96];

	for (c = 0; c < ARRAY_SIZE(calls); c++)
		for (r = 0; r < NR_RANGES; r++)
			for (k = 0; k < ARRAY_SIZE(kinds); k++) {
				struct row row = {
					.call = &calls[c], .range = r,
					.kind = &kinds[k],
				};

				snprintf(name, sizeof(name), "%s %s %s",
					 calls[c].name, kinds[k].name,
					 range_names[r]);
				if (impossible(&calls[c], r, &kinds[k]) ||
				    (selection && !strstr(name, selection)))
					continue;
				nr++;
				if (fn)
					fn(&row, name);
			}
	return nr;
}

static void list_row(struct row *row, const char *name)
{
	printf("%s\n", name);
}

int main(int argc, char **argv)
{
	char value[32];
	unsigned int nr;

	if (argc > 1 && !strcmp(argv[1], "-l")) {
		each_row(list_row);
		return 0;
	}
	selection = argc > 1 ? argv[1] : NULL;
	nr = each_row(NULL);
	if (!nr) {
		fprintf(stderr, "%s: there is no row \"%s\"; -l lists them\n",
			argv[0], selection);
		return 2;
	}

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root, to set the knobs and to drop privileges\n");
	find_sizes();
	find_nodes();
	snprintf(max_map_count, sizeof(max_map_count), "%ld",
		 read_long("/proc/sys/vm/max_map_count"));
	why = mmap(NULL, 256, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (why == MAP_FAILED)
		ksft_exit_fail_msg("mmap: %s\n", strerror(errno));
	set_knob(THP "enabled", "madvise");
	set_knob(THP "shmem_enabled", "advise");
	snprintf(value, sizeof(value), "%ld",
		 read_long("/proc/sys/vm/nr_hugepages") + 8);
	set_knob("/proc/sys/vm/nr_hugepages", value);
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");

	ksft_set_plan(nr);
	each_row(do_row);

	restore_knobs();
	ksft_finished();
}
