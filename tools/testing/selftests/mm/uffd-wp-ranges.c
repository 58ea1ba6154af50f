// SPDX-License-Identifier: GPL-2.0
/*
 * What userfaultfd write protection makes of the ranges that it is given: empty
 * ones, a part of a huge page, several VMAs, ranges that wrap, and calls that
 * fail half-way.
 *
 * A test is a row: a call x a range x a kind of memory. Each runs in a process of
 * its own, as a user without privileges. Half of a mapping is protected, the
 * call is made, and then every page is written. The row passes if the call
 * returned the error that the table has for it, and the writes that raised an
 * event are those to pages that are protected now. A call that fails changes
 * nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#define NOBODY		65534
#define ROW_SECONDS	20
#define MAX_SAMPLES	256
#define CGROUP		"/sys/fs/cgroup/uffd-wp-ranges"

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
} calls[];

static char *why;	/* Shared with the parent. Empty: passed */

static __noreturn __printf(1, 2) void fail(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, 256, fmt, args);
	va_end(args);
	_exit(1);
}

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

static int do_register(struct row *row)
{
	struct uffdio_register reg = {
		.range = { .start = from(row), .len = row->range_len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(row->uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
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
	/* Only in a shared mapping, protection outlives the entries. */
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
	char *to = reserve(new_len, pmd_size);

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

static int memory_max_fd = -1;	/* With the cgroup full, open() fails. */

static void limit_memory(const char *limit)
{
	if (write(memory_max_fd, limit, strlen(limit)) < 0)
		fail("setup: memory.max: %s", strerror(errno));
}

/* From now on, this process gets only what the kernel has put by for it. */
static void fill_cgroup(void)
{
	char now[32];

	snprintf(now, sizeof(now), "%ld",
		 read_long(CGROUP "/memory.current") - 64 * 1024);
	limit_memory(now);
}

/*
 * No page table can be had for the last of the pages: the new address is such
 * that PTEs have to be moved one by one.
 */
static int do_move_no_memory(struct row *row)
{
	char *to = reserve(row->len + 2 * pmd_size, pmd_size) + row->unit;

	fill_cgroup();
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
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)p, .len = len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (p == MAP_FAILED || ioctl(row->uffd, UFFDIO_REGISTER, &reg))
		fail("setup: second mapping: %s", strerror(errno));
	fill_cgroup();
	return write_protect(row, (uintptr_t)p, len, true);
}

#define ALL_EINVAL	{ [R_EMPTY] = EINVAL, [R_UNALIGNED] = EINVAL,	\
			  [R_LEN] = EINVAL, [R_PART] = E_ALIGN,		\
			  [R_WRAPPED] = EINVAL }
/* No such row: the call has one range only, or the range means nothing to it. */
#define NONE		(-2)
#define ONE_RANGE	{ [R_ONE ... NR_RANGES - 1] = NONE }
#define OOM		{ [R_WHOLE] = ENOMEM, [R_ONE ... NR_RANGES - 1] = NONE }

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
	{ "mremap_no_memory", do_move_no_memory, KEEPS, OOM },
	{ "protect_no_memory", do_protect_no_memory, KEEPS, OOM },
};

static bool needs_cgroup(const struct call *call)
{
	return call->make == do_move_no_memory ||
	       call->make == do_protect_no_memory;
}

/* Why there is no such row, NULL if there is one */
static const char *impossible(const struct call *call, enum range_id range,
			      const struct kind *kind)
{
	if (call->errors[range] == NONE)
		return "the call has no such range";
	if (call->make == do_duplicate && !(kind->flags & K_SHARED))
		return "a private mapping cannot be duplicated";
	if (call->make == do_dontneed && !(kind->flags & K_SHARED))
		return "the pages are gone, and their protection";
	if ((call->make == do_duplicate || call->make == do_dontunmap) &&
	    kind->flags & K_HUGETLB)
		return "mremap() refuses that for hugetlb";
	if ((call->make == do_grow || call->make == do_shrink) &&
	    kind->flags & K_HUGETLB)
		return "hugetlb cannot be grown, and is too small to be shrunk";
	if (needs_cgroup(call) && strcmp(kind->name, "anon"))
		return "one kind of memory is enough";
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
	row->len = flags & K_THP ? 2 * pmd_size : 8 * row->unit;
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
	row->start = 0;
	row->range_len = row->len;
	switch (row->range) {
	case R_ONE:
		row->start = row->len / 2;
		row->range_len = row->unit;
		break;
	case R_MIDDLE:
		row->start = row->len / 2 - row->unit;
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
		row->start = row->len / 2;
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

static void *write_one(void *p)
{
	__atomic_store_n((char *)p, 'n', __ATOMIC_RELAXED);
	return NULL;
}

/* Writes to the page; did that raise an event? */
static bool write_reported(struct row *row, char *p)
{
	struct pollfd poll_fd = { .fd = row->uffd, .events = POLLIN };
	struct uffd_msg msg;
	bool reported = false;
	uint64_t until = now_ms() + 5000;
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
		if (*p != 'o')
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

	if (needs_cgroup(row->call)) {
		memory_max_fd = open(CGROUP "/memory.max", O_WRONLY);
		if (memory_max_fd < 0 ||
		    !write_file("/proc/self/oom_score_adj", "-1000") ||
		    !write_file(CGROUP "/memory.swap.max", "0") ||
		    !write_file(CGROUP "/cgroup.procs", "0") ||
		    mlockall(MCL_CURRENT))
			fail("setup: no memory cgroup: %s", strerror(errno));
	} else if (setresgid(NOBODY, NOBODY, NOBODY) ||
		   setresuid(NOBODY, NOBODY, NOBODY)) {
		fail("setup: setresuid: %s", strerror(errno));
	}
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
	if (needs_cgroup(row->call))
		limit_memory("max");
	if (err != want)
		fail("error: %s, not %s", err ? strerror(err) : "success",
		     want ? strerror(want) : "success");
	expect(row, err);
	for (i = 0; i < row->nr; i++) {
		bool reported = write_reported(row, row->checked + step * i);

		nr_lost += row->want[i] && !reported;
		nr_spurious += !row->want[i] && reported;
	}
	if (nr_lost)
		fail("lost: %d of %d writes", nr_lost, row->nr);
	if (nr_spurious)
		fail("spurious: %d of %d writes", nr_spurious, row->nr);
	_exit(0);
}

static void do_row(struct row *row, const char *name)
{
	uint64_t until;
	int status;
	pid_t pid;

	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", name);
	fflush(stdout);
	why[0] = '\0';
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
	if (pid < 0)
		snprintf(why, 256, "setup: fork: %s", strerror(errno));
	else if (!why[0] && status)
		snprintf(why, 256, "crash: status %#x", status);
	if (why[0])
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
	mkdir(CGROUP, 0755);

	ksft_set_plan(nr);
	each_row(do_row);

	rmdir(CGROUP);
	restore_knobs();
	ksft_finished();
}
