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
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/mman.h>

#include "uffd-wp-memory.h"
#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define NOBODY		65534
#define RACE_MS		2000	/* and as many rounds as these, */
#define RACE_ROUNDS	300
#define RACE_MOVES	150	/* of folios */
#define MAX_RACE_MS	20000	/* unless it takes too long */
#define HANG_MS		5000
#define MAX_SAMPLES	256
#define MAX_VMAS	"256"	/* vm.max_map_count for the rows that get there */
#define CGROUP		"/sys/fs/cgroup/uffd-wp-ranges-%s/%s"	/* call, file */

static const char * const memories[] = {
	"anon", "memfd", "anon-thp", "shmem-thp", "hugetlb-shared", "hugetlb-private",
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
	struct memory mem;
	unsigned int flags;	/* of the kind of memory */
	char *checked;
	char *to;		/* reserved for it to move to */
	char old;		/* what a page holds before it is written */
	bool zeroed;		/* the pages of the range are new */
	size_t start, range_len;
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
static void *write_one(void *p);

/*
 * The calls. Each returns 0 or an errno.
 */

/* The pages that are written: the first one of each unit */
static char *sample(const struct row *row, int i)
{
	return row->checked + row->mem.unit * i;
}

static char *from(const struct row *row)
{
	return row->mem.addr + row->start;
}

static int do_protect(struct row *row)
{
	return protect_range(row->mem.uffd, from(row), row->range_len, true);
}

static int do_unprotect(struct row *row)
{
	return protect_range(row->mem.uffd, from(row), row->range_len, false);
}

static int do_register(struct row *row)
{
	return register_range(row->mem.uffd, from(row), row->range_len,
			      UFFDIO_REGISTER_MODE_WP);
}

static int do_unregister(struct row *row)
{
	return -uffd_unregister(row->mem.uffd, from(row), row->range_len);
}

static int do_mprotect(struct row *row)
{
	if (mprotect(from(row), row->range_len, PROT_READ) ||
	    mprotect(from(row), row->range_len, PROT_READ | PROT_WRITE))
		return errno;
	return 0;
}

static int do_dontneed(struct row *row)
{
	/* Private pages are lost, the protection is there still. */
	return madvise(from(row), row->range_len, MADV_DONTNEED) ? errno : 0;
}

static int do_free(struct row *row)
{
	size_t at;

	if (madvise(from(row), row->range_len, MADV_FREE) ||
	    madvise(from(row), row->range_len, MADV_PAGEOUT))
		return errno;
	/* The protection goes when reclaim drops the pages. */
	look_at(getpid());
	for (at = 0; at < row->range_len; at += page_size)
		if (pagemap_entry(from(row) + at) & (PM_PRESENT | PM_SWAP))
			again("the page at %#zx is not dropped", at);
	return 0;
}

static int move_to(struct row *row, size_t old_len, size_t new_len, int flags)
{
	char *to = row->to ? row->to : reserve(new_len);

	to = mremap(from(row), old_len, new_len,
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
	return move_to(row, row->range_len, row->range_len + row->mem.len, 0);
}

static int do_dontunmap(struct row *row)
{
	return move_to(row, row->range_len, row->range_len,
		       MREMAP_DONTUNMAP);
}

/* A second mapping of the same pages; the old one stays as it is. */
static int do_duplicate(struct row *row)
{
	int err = move_to(row, 0, row->mem.len, 0);

	row->checked = row->mem.addr;
	return err;
}

static int do_shrink(struct row *row)
{
	char *p = mremap(row->mem.addr, row->mem.len, row->mem.len / 2, 0);

	if (p == MAP_FAILED)
		return errno;
	row->mem.nr /= 2;
	return 0;
}

static int do_close(struct row *row)
{
	close(row->mem.uffd);
	row->mem.uffd = -1;
	return 0;
}

/* Each such row has one of its own, with nothing left by others. */
static const char *in_cgroup(const struct call *call, const char *file)
{
	static char path[128];

	snprintf(path, sizeof(path), CGROUP, call->name, file);
	return path;
}

/* With the cgroup full, open() fails. */
static int memory_max_fd = -1, memory_current_fd = -1;

static void limit_memory(const char *limit)
{
	fail_if(write(memory_max_fd, limit, strlen(limit)) < 0, "memory.max");
}

static void limit_memory_to_current(long more)
{
	char text[32] = "";

	if (pread(memory_current_fd, text, sizeof(text) - 1, 0) <= 0)
		fail("setup: memory.current: %s", strerror(errno));
	snprintf(text, sizeof(text), "%ld", atol(text) + more);
	limit_memory(text);
}

/* First what the kernel has put by for this process goes. Some page tables more fit in. */
static void fill_cgroup(void)
{
	limit_memory_to_current(-64 * 1024);
	limit_memory_to_current(32 * page_size);
}

/*
 * No page table can be had for the last of the pages: the new address is such
 * that PTEs have to be moved one by one.
 */
static int do_move_no_memory(struct row *row)
{
	char *to = reserve(row->mem.len + 2 * pmd_size) + page_size;

	fill_cgroup();
	to = mremap(row->mem.addr, row->mem.len, row->mem.len,
		    MREMAP_MAYMOVE | MREMAP_FIXED, to);
	return to == MAP_FAILED ? errno : 0;
}

/* Shared memory that is registered too, and so much that page tables run out */
static char *second_mapping(struct row *row, size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED ||
	    register_range(row->mem.uffd, p, len, UFFDIO_REGISTER_MODE_WP))
		fail("setup: second mapping: %s", strerror(errno));
	return p;
}

/* Untouched memory is protected by markers, which need page tables. */
static int do_protect_no_memory(struct row *row)
{
	size_t len = 512 * pmd_size;
	char *p = second_mapping(row, len);
	int err;

	fill_cgroup();
	err = protect_range(row->mem.uffd, p, len, true);
	limit_memory("max");
	if (protect_range(row->mem.uffd, p, len, true))
		fail("error: it fails again with memory to be had");
	row->old = 0;
	row->checked = p;
	if (!write_reported(row, p) || !write_reported(row, p + len - page_size))
		fail("lost: a write after it was protected again");
	row->old = 'o';
	row->checked = row->mem.addr;
	return err;
}

/* PAGEMAP_SCAN in small pieces: all that it protects, it has to report. */
static int scan_all(struct row *row, char *p, size_t len, long max_pages)
{
	struct page_region region;
	struct pm_scan_arg arg = scan_arg(p, len, PM_SCAN_WP_MATCHING, &region, 1);
	size_t found = 0;
	bool full = row->call->needs;
	int n;

	arg.max_pages = max_pages;
	while (arg.start < arg.end) {
		n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
		fail_if(n < 0 && (errno != ENOMEM || !full), "PAGEMAP_SCAN");
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
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg))
		fail("spurious: written after all was protected, at %#llx",
		     region.start - (uintptr_t)p);
	write_one(p + len / 2);
	if (!scan_written(p + len / 2) || scan_written(p + len / 2 - page_size))
		fail("lost: one page is written, and another one reported");
	return 0;
}

/* From now on there are no events: PAGEMAP_SCAN says what was written. */
static void arm_async(struct row *row)
{
	close(row->mem.uffd);
	row->mem.uffd = open_uffd(UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				  UFFD_FEATURE_WP_ASYNC, UFFD_USER_MODE_ONLY);
	look_at(getpid());
}

static int register_all(struct row *row)
{
	return register_range(row->mem.uffd, row->mem.addr, row->mem.len,
			      UFFDIO_REGISTER_MODE_WP);
}

static int do_scan_pieces(struct row *row)
{
	arm_async(row);
	fail_if(register_all(row), "UFFDIO_REGISTER");
	/* Of hugetlb a page and a half: a half cannot be protected. */
	return scan_all(row, row->mem.addr, row->mem.len,
			row->flags & M_HUGETLB ? huge_size / page_size * 3 / 2 : 100);
}

/* More ranges than the kernel has room for in one walk */
static int do_scan_many(struct row *row)
{
	static struct page_region regions[1200];
	const int nr = ARRAY_SIZE(regions) / 2;
	struct pm_scan_arg arg;
	char *p;
	int i, n;

	arm_async(row);
	p = second_mapping(row, 2 * nr * page_size);
	arg = scan_arg(p, 2 * nr * page_size, 0, regions, ARRAY_SIZE(regions));
	if (scan_protect(p, 2 * nr * page_size) < 0)
		return errno;
	for (i = 0; i < nr; i++)
		write_one(p + 2 * i * page_size);
	n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	if (n < 0)
		return errno;
	if (n != nr)
		fail("lost: %d of %d pages are reported as written", n, nr);
	if (arg.walk_end != arg.end)
		fail("error: walk_end is page %llu of %d",
		     (arg.walk_end - arg.start) / page_size, 2 * nr);
	return 0;
}

static int do_scan_no_memory(struct row *row)
{
	size_t len = 512 * pmd_size;
	char *p;

	arm_async(row);
	p = second_mapping(row, len);
	fill_cgroup();
	return scan_all(row, p, len, 0);
}

/* Memory of the same kind that nobody has touched */
static struct memory fresh_memory(const struct row *row, size_t len)
{
	struct memory mem = {
		.kind = row->mem.kind, .mode = row->mem.mode, .len = len,
	};

	map_memory(&mem, PROT_READ | PROT_WRITE);
	return mem;
}

/* RWP protects huge pages of shmem by PTEs: more page tables than can be had. */
static int do_rwprotect_no_memory(struct row *row)
{
	struct memory mem = fresh_memory(row, 64 * pmd_size);
	int fd = open_uffd(UFFD_FEATURE_RWP, UFFD_USER_MODE_ONLY);
	size_t at;
	int err;

	for (at = 0; at < mem.len; at += pmd_size)
		mem.addr[at] = 'o';
	prove_mapping(&mem);
	if (register_range(fd, mem.addr, mem.len, UFFDIO_REGISTER_MODE_RWP))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	fill_cgroup();
	err = rwprotect_range(fd, mem.addr, mem.len, true);
	limit_memory("max");
	return err;
}

/* What does not match is left alone: no page is both written and swapped out. */
static int do_scan_no_vector(struct row *row)
{
	struct pm_scan_arg arg;
	int i;

	arm_async(row);
	if (register_all(row))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	arg = scan_arg(row->mem.addr, row->mem.len, PM_SCAN_WP_MATCHING, NULL, 0);
	arg.category_mask |= PAGE_IS_SWAPPED;
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) < 0)
		return errno;
	for (i = 0; i < row->mem.nr; i++)
		if (!scan_written(sample(row, i)))
			fail("lost: page %d does not match, and its write is forgotten", i);
	if (scan_protect(row->mem.addr, row->mem.len) < 0)
		return errno;
	for (i = 0; i < row->mem.nr; i++)
		if (scan_written(sample(row, i)))
			fail("spurious: page %d matches, and is not protected", i);
	return 0;
}

/* What was written, and then dropped, was written. */
static int do_scan_dropped(struct row *row)
{
	bool anon = is_private_anon(row->mem.kind);
	int i;

	arm_async(row);
	if (register_all(row))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	if (scan_protect(row->mem.addr, row->mem.len) < 0)
		return errno;
	for (i = 0; i < row->mem.nr; i += 2)
		write_one(sample(row, i));
	if (madvise(row->mem.addr, row->mem.len, MADV_DONTNEED))
		return errno;
	for (i = 0; i < row->mem.nr; i++) {
		/* Dropping a private anonymous page is a write, too. */
		bool want = anon || !(i & 1);

		if (scan_written(sample(row, i)) != want)
			fail(want ? "lost: page %d was written, and dropped" :
				    "spurious: page %d was not written", i);
	}
	if (scan_protect(row->mem.addr, row->mem.len) < 0)
		return errno;
	for (i = 0; i < row->mem.nr; i++)
		if (scan_written(sample(row, i)))
			fail("spurious: page %d is not protected again", i);
	write_one(sample(row, 0));
	if (!scan_written(sample(row, 0)))
		fail("lost: page 0 was written after that");
	return 0;
}

/* Where there is no page table yet: what does not fit is not protected either. */
static int do_scan_untouched(struct row *row)
{
	uintptr_t far = 1UL << 30, len = row->mem.len;
	struct page_region region;
	struct pm_scan_arg arg;
	char *p;
	int n;

	arm_async(row);
	p = (char *)(((uintptr_t)reserve(2 * far) + far) & ~(far - 1));
	p = mmap(p, len, PROT_READ | PROT_WRITE,
		 MAP_FIXED | MAP_NORESERVE |
		 (row->flags & M_PRIVATE ? MAP_PRIVATE : MAP_SHARED) |
		 (row->mem.fd < 0 ? MAP_ANONYMOUS : 0), row->mem.fd, 0);
	if (p == MAP_FAILED ||
	    register_range(row->mem.uffd, p, len, UFFDIO_REGISTER_MODE_WP))
		fail("setup: second mapping: %s", strerror(errno));
	arg = scan_arg(p, len, PM_SCAN_WP_MATCHING, &region, 1);
	arg.max_pages = 1;
	n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	/* A part of a page of hugetlb cannot be protected. */
	if (n < 0 && (errno != EINVAL || !(row->flags & M_HUGETLB)))
		return errno;
	arg = scan_arg(p, len, 0, &region, 1);
	arg.return_mask |= PAGE_IS_HUGE;
	if (n > 0)
		arg.start += page_size;
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) != 1 ||
	    region.start != arg.start || region.end != arg.end)
		fail("lost: not all that was not reported before is reported as written");
	if (!(region.categories & PAGE_IS_HUGE) != !(row->flags & M_HUGETLB))
		fail("error: what was not touched is %sPAGE_IS_HUGE",
		     row->flags & M_HUGETLB ? "not " : "");
	if (scan_protect(p, len) < 0)
		return errno;
	arg.start = (uintptr_t)p;
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg))
		fail("spurious: written after all was protected, at %#llx",
		     region.start - (uintptr_t)p);
	return 0;
}

static char *move_destination(int fd, size_t len)
{
	char *to = mmap(NULL, len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (to == MAP_FAILED ||
	    register_range(fd, to, len, UFFDIO_REGISTER_MODE_MISSING))
		fail("setup: destination: %s", strerror(errno));
	return to;
}

/* It can protect whole pages of hugetlb only, and must not say that it did more. */
static int do_scan_part(struct row *row)
{
	struct page_region region;
	struct pm_scan_arg arg = scan_arg(row->mem.addr, row->mem.len,
					  PM_SCAN_WP_MATCHING, &region, 1);

	arm_async(row);
	fail_if(register_all(row), "UFFDIO_REGISTER");
	arg.max_pages = 1;
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) != -1 || errno != EINVAL)
		fail("error: max_pages is less than a page, and walk_end is %#llx",
		     arg.walk_end - arg.start);
	arg.max_pages = 0;
	arg.start += page_size;
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) != -1 || errno != EINVAL)
		fail("error: it starts in the middle of a page, and walk_end is %#llx",
		     arg.walk_end - arg.start);
	/* What is not written may be so when the next call goes on there. */
	if (scan_protect(row->mem.addr, row->mem.len) < 0)
		return errno;
	arg.start = (uintptr_t)row->mem.addr;
	arg.category_mask = PAGE_IS_PRESENT;
	arg.max_pages = huge_size / page_size * 3 / 2;
	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) != 1 ||
	    arg.walk_end != arg.start + huge_size)
		fail("error: max_pages is a page and a half, and walk_end is %#llx",
		     arg.walk_end - arg.start);
	return 0;
}

static long long ksm_number(pid_t pid, const char *key)
{
	char path[64], text[1024];

	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", pid);
	return read_text(path, text, sizeof(text)) < 0 ? -1 : field(text, key);
}

/* In the child: the page must neither move nor get lost. */
static __noreturn void read_from_device(const struct memory *mem, pid_t parent)
{
	long moved;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(KSFT_FAIL);
	raise(SIGSTOP);
	moved = move_to_device(mem->addr, page_size);
	if (moved < 0)
		_exit(KSFT_SKIP);
	alarm(HANG_MS / 1000);
	touch(mem->addr);
	_exit(moved || *mem->addr != 's' ? KSFT_FAIL : KSFT_PASS);
}

/*
 * KSM knows that the parent had the page, which has dropped it, and has not been at
 * the child: by rmap, the child's entry cannot be found.
 */
static int do_ksm_to_device(struct row *row)
{
	struct memory mem = fresh_memory(row, 3 * page_size);
	pid_t parent = getpid(), pid;
	int i, status;

	memset(mem.addr, 's', 2 * page_size);
	strcpy(mem.addr + 2 * page_size, "another");
	if (madvise(mem.addr, mem.len, MADV_MERGEABLE) || !write_text(KSM "run", "1"))
		skip("no KSM: %s", strerror(errno));
	for (i = 0; ksm_number(parent, "ksm_merging_pages") < 2; i++) {
		if (i == HANG_MS)
			again("KSM did not merge");
		usleep(1000);
	}
	write_text(KSM "run", "0");

	pid = fork();
	if (!pid)
		read_from_device(&mem, parent);
	fail_if(pid < 0 || waitpid(pid, &status, WUNTRACED) != pid, "fork");
	fail_if(madvise(mem.addr, 2 * page_size, MADV_DONTNEED), "MADV_DONTNEED");
	/* Page by page: a new time to sleep ends its sleep. */
	for (i = 0; ksm_number(parent, "ksm_rmap_items") > 1; i++) {
		if (i == 100)
			again("KSM has not been at the parent");
		write_text(KSM "sleep_millisecs", i & 1 ? "50000" : "60000");
		write_text(KSM "run", "1");
		usleep(10000);
		write_text(KSM "run", "0");
	}
	if (ksm_number(pid, "ksm_rmap_items"))
		again("KSM has been at the child");

	kill(pid, SIGCONT);
	fail_if(waitpid(pid, &status, 0) != pid, "waitpid");
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		fail("hang: a read of the page does not return");
	if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
		skip("no device of test_hmm");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail("content: the page has moved, or is another one (%#x)", status);
	return 0;
}

/* To where nothing is registered for write protection */
static int do_move_swapped(struct row *row)
{
	int fd = open_uffd(UFFD_FEATURE_MOVE, UFFD_USER_MODE_ONLY);
	char *to = move_destination(fd, row->mem.len);
	struct uffdio_move move = {
		.src = (uintptr_t)row->mem.addr,
		.dst = (uintptr_t)to,
		.len = row->mem.len,
	};
	size_t at;

	madvise(row->mem.addr, row->mem.len, MADV_PAGEOUT);
	look_at(getpid());
	for (at = 0; at < row->mem.len; at += page_size)
		if (!(pagemap_entry(row->mem.addr + at) & PM_SWAP))
			again("the page at %#zx is not swapped out", at);
	if (ioctl(fd, UFFDIO_MOVE, &move))
		return errno;
	row->checked = to;
	for (at = 0; at < row->mem.len; at += page_size)
		if (pagemap_entry(to + at) & PM_UFFD_WP)
			fail("spurious: the page at %#zx has the uffd bit there", at);
	return 0;
}

/* A page of a huge page that somebody else refers to, so that it cannot be split */
static int do_move_held(struct row *row)
{
	int fds[2], err, fd = open_uffd(UFFD_FEATURE_MOVE, UFFD_USER_MODE_ONLY);
	char *to = move_destination(fd, page_size);
	struct iovec held = {
		.iov_base = row->mem.addr + row->mem.len / 2, .iov_len = 1,
	};
	struct uffdio_move move = {
		.src = (uintptr_t)held.iov_base,
		.dst = (uintptr_t)to,
		.len = page_size,
	};

	if (pipe(fds) || vmsplice(fds[1], &held, 1, 0) != 1)
		fail("setup: vmsplice(): %s", strerror(errno));
	err = ioctl(fd, UFFDIO_MOVE, &move) ? errno : 0;
	close(fds[0]);
	close(fds[1]);
	close(fd);
	return err;
}

/* A scan that is not told to protect does not, however often it is made. */
static int do_scan_only(struct row *row)
{
	int i, round;

	arm_async(row);
	if (register_all(row) || protect_range(row->mem.uffd, row->mem.addr,
					       row->mem.len / 2, true))
		fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(errno));
	write_one(sample(row, 0));
	for (round = 0; round < 2; round++)
		for (i = 0; i < row->mem.nr; i++) {
			bool want = !i || i >= row->mem.nr / 2;

			if (scan_written(sample(row, i)) != want)
				fail(want ? "lost: page %d is not reported by scan %d" :
					    "spurious: page %d is reported by scan %d",
				     i, round + 1);
		}
	return 0;
}

/* Memory that is registered for MISSING as well, and protected: it is the row's now. */
static struct memory protect_untouched(struct row *row)
{
	struct memory mem = fresh_memory(row, row->mem.len);

	close(row->mem.uffd);
	row->mem.uffd = open_uffd(UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				  UFFD_FEATURE_WP_UNPOPULATED, UFFD_USER_MODE_ONLY);
	if (register_range(row->mem.uffd, mem.addr, mem.len,
			   UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING) ||
	    protect_range(row->mem.uffd, mem.addr, mem.len, true))
		fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(errno));
	row->checked = mem.addr;
	return mem;
}

static int fill_protected(struct row *row, uint64_t mode)
{
	struct memory mem = protect_untouched(row);
	struct uffdio_copy copy = {
		.src = (uintptr_t)row->mem.addr,
		.dst = (uintptr_t)mem.addr,
		.len = mem.len,
		.mode = mode,
	};

	return ioctl(row->mem.uffd, UFFDIO_COPY, &copy) ? errno : 0;
}

/* The mode of UFFDIO_COPY says what the page is, not the marker that was there. */
static int do_copy(struct row *row)
{
	return fill_protected(row, 0);
}

static int do_copy_wp(struct row *row)
{
	return fill_protected(row, UFFDIO_COPY_MODE_WP);
}

/* There is no such mode: the marker says that the page is protected. */
static int do_zeropage(struct row *row)
{
	struct memory mem = protect_untouched(row);
	struct uffdio_zeropage zeropage = {
		.range = { .start = (uintptr_t)mem.addr, .len = mem.len },
	};

	row->zeroed = true;
	return ioctl(row->mem.uffd, UFFDIO_ZEROPAGE, &zeropage) ? errno : 0;
}

/* Asks the kernel, which says EFAULT where a read of ours would be SIGBUS. */
static bool readable(const char *p)
{
	int fds[2];
	bool ok;

	fail_if(pipe(fds), "pipe()");
	ok = write(fds[1], p, 1) == 1;
	close(fds[0]);
	close(fds[1]);
	return ok;
}

/* A page that is poisoned can be neither protected nor resolved. */
static int do_poison(struct row *row)
{
	struct memory mem = fresh_memory(row, row->mem.len);
	int on, fd = open_uffd(UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_POISON |
			       UFFD_FEATURE_WP_ASYNC, UFFD_USER_MODE_ONLY);
	struct uffdio_poison poison = {
		.range = { .start = (uintptr_t)mem.addr, .len = row->mem.page },
	};

	if (register_range(fd, mem.addr, mem.len, UFFDIO_REGISTER_MODE_WP))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_POISON, &poison))
		return errno;
	look_at(getpid());
	for (on = 1; on >= 0; on--) {
		if (protect_range(fd, mem.addr, mem.len, on))
			return errno;
		if (readable(mem.addr))
			fail("content: the poisoned page can be read");
	}
	if (protect_range(fd, mem.addr, mem.len, true))
		return errno;
	write_one(mem.addr + mem.len / 2);
	if (!scan_written(mem.addr + mem.len / 2))
		fail("lost: the write to a page that is not poisoned");
	if (!readable(mem.addr + mem.len / 2))
		fail("content: a page that is not poisoned cannot be read");
	return 0;
}

/*
 * Guards. Those of files are put over what is protected, those of private pages drop
 * it.
 */

static void guards_hang(int signal)
{
	fail("hang: MADV_GUARD_INSTALL does not return");
}

static int put_guards(struct row *row)
{
	size_t at;
	int err;

	look_at(getpid());
	signal(SIGALRM, guards_hang);
	alarm(HANG_MS / 1000);
	err = madvise(from(row), row->range_len, MADV_GUARD_INSTALL) ? errno : 0;
	alarm(0);
	if (err)
		return err;
	for (at = 0; at < row->range_len; at += page_size)
		if (!(pagemap_entry(from(row) + at) & PM_GUARD_REGION))
			fail("error: the page at %#zx has no guard", at);
	row->zeroed = row->flags & M_PRIVATE;
	return 0;
}

static int under_guards(struct row *row, int (*one)(struct row *row),
			int (*two)(struct row *row))
{
	int err = put_guards(row);

	if (!err && one)
		err = one(row);
	if (!err && two)
		err = two(row);
	if (!err && madvise(from(row), row->range_len, MADV_GUARD_REMOVE))
		err = errno;
	return err;
}

static int do_guard(struct row *row)
{
	return under_guards(row, NULL, NULL);
}

static int do_guard_protect(struct row *row)
{
	return under_guards(row, do_protect, NULL);
}

static int do_guard_unprotect(struct row *row)
{
	return under_guards(row, do_protect, do_unprotect);
}

static int register_again(struct row *row)
{
	int err = do_unregister(row);

	return err ? err : do_register(row);
}

static int do_guard_unregister(struct row *row)
{
	return under_guards(row, do_protect, register_again);
}

/*
 * Memory errors: the second page of a huge page goes bad. Somebody refers to another
 * one, so that it cannot be split, and stays.
 */

static void survive(int signal)
{
}

static char *poison_huge_page(char *huge)
{
	struct iovec held = { .iov_base = huge + pmd_size / 2, .iov_len = 1 };
	char *bad = huge + page_size;
	int fds[2];

	if (pipe(fds) || vmsplice(fds[1], &held, 1, 0) != 1)
		fail("setup: vmsplice(): %s", strerror(errno));
	signal(SIGBUS, survive);
	if (!madvise(bad, page_size, MADV_HWPOISON))
		again("the huge page was split");
	if (errno != EHWPOISON)
		skip("MADV_HWPOISON: %s", strerror(errno));
	signal(SIGBUS, SIG_DFL);
	if (madvise(huge, pmd_size, MADV_DONTNEED))
		fail("setup: MADV_DONTNEED: %s", strerror(errno));
	return bad;
}

/* Who finds the error when reading does not take the protection of the others. */
static int do_poisoned(struct row *row)
{
	char *huge = row->mem.addr + row->mem.len / 2;
	char *bad = poison_huge_page(huge);

	touch(huge + pmd_size / 2);
	if (readable(bad))
		fail("content: the poisoned page can be read");
	return 0;
}

/* Mapping a page does not map a bad one next to it. Nothing is registered here. */
static int do_poisoned_next_to(struct row *row)
{
	struct memory mem = fresh_memory(row, pmd_size);
	char *bad;

	*mem.addr = 'o';
	prove_mapping(&mem);
	bad = poison_huge_page(mem.addr);
	look_at(getpid());
	mem.addr[pmd_size / 2] = 'n';
	if (pagemap_entry(bad) & PM_PRESENT)
		fail("content: a write to another page maps the poisoned one");
	if (readable(bad))
		fail("content: the poisoned page can be read");
	return 0;
}

/* What has no pages of its own, here that of the vDSO's data, is not registered. */
static int do_register_special(struct row *row)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start = 0, end = 0;
	char line[256];
	bool found = false;
	int fd = open_uffd(UFFD_FEATURE_WP_ASYNC, UFFD_USER_MODE_ONLY);

	fail_if(!maps, "/proc/self/maps");
	while (!found && fgets(line, sizeof(line), maps))
		found = strstr(line, "[vvar]") &&
			sscanf(line, "%lx-%lx", &start, &end) == 2;
	fclose(maps);
	if (!found)
		skip("there is no [vvar]");
	return register_range(fd, (void *)start, end - start,
			      UFFDIO_REGISTER_MODE_WP);
}

/* Untouched memory of the same userfaultfd moves next to what is protected. */
static int do_move_next_to(struct row *row)
{
	size_t len = row->mem.len;
	char *to = reserve(2 * len), *other;
	int i, flags = MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;

	if (row->mem.fd >= 0) {
		flags = MAP_SHARED;
		fd = row->mem.fd;
	}
	if (mmap(to, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) != to)
		fail("setup: mmap(): %s", strerror(errno));
	other = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, fd < 0 ? 0 : len);
	row->checked = to;
	for (i = 0; i < row->mem.nr; i++)
		*sample(row, i) = 'o';
	if (other == MAP_FAILED ||
	    register_range(row->mem.uffd, to, len, UFFDIO_REGISTER_MODE_WP) ||
	    register_range(row->mem.uffd, other, len, UFFDIO_REGISTER_MODE_WP) ||
	    protect_range(row->mem.uffd, to, len, true))
		fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
	if (mremap(other, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to + len) == MAP_FAILED)
		return errno;
	return 0;
}

/*
 * There is no VMA to be had: a call that needs to split one fails.
 */

static int without_vmas(struct row *row, int (*make)(struct row *row))
{
	static char *pages[2 * 256];
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
	row->to = reserve(row->range_len);
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
	struct pollfd poll_fd = { .fd = row->mem.uffd, .events = POLLIN };
	pthread_t writer;
	int err;

	writer = start_thread(write_one, row->mem.addr + row->mem.len / 2);
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
	struct row *row;
	void (*turn)(void);	/* of the other side, in each round */
	char *page;
	uint64_t start;
	int round;	/* that has begun, and that the other side has done */
	int done;
	bool stop;
} race;

static bool goes_on(int done, int enough)
{
	uint64_t ms = now_ms() - race.start;

	return ms < RACE_MS || (done < enough && ms < MAX_RACE_MS);
}

static void *other_side(void *arg)
{
	int round = 0;

	while (!__atomic_load_n(&race.stop, __ATOMIC_ACQUIRE)) {
		if (__atomic_load_n(&race.round, __ATOMIC_ACQUIRE) == round)
			continue;
		race.turn();
		__atomic_store_n(&race.done, ++round, __ATOMIC_RELEASE);
	}
	return arg;
}

/* The other side has its turn: from now on, or from a bit earlier, each time. */
static void begin_round(int round)
{
	int wait;

	__atomic_store_n(&race.round, round, __ATOMIC_RELEASE);
	for (wait = round % 64 * 64; wait; wait--)
		__atomic_load_n(&race.done, __ATOMIC_RELAXED);
}

static void end_round(int round)
{
	uint64_t hang = now_ms() + HANG_MS;

	while (__atomic_load_n(&race.done, __ATOMIC_ACQUIRE) != round) {
		if (now_ms() > hang)
			fail("hang: the other side of round %d is not woken", round);
		sched_yield();
	}
}

static void end_race(pthread_t other)
{
	__atomic_store_n(&race.stop, true, __ATOMIC_RELEASE);
	join(other, "the other side does not end");
}

static void write_page(void)
{
	write_one(race.page);
}

/*
 * The protection of a page is lifted while another thread writes to it. Nobody
 * reads events, so a writer that goes to sleep after that sleeps for ever. The
 * page is the zero page: it is not writable when it is not protected either.
 */
static int do_unprotect_race(struct row *row)
{
	pthread_t writer;
	int round;

	race.turn = write_page;
	race.page = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fail_if(race.page == MAP_FAILED ||
		register_range(row->mem.uffd, race.page, page_size,
			       UFFDIO_REGISTER_MODE_WP), "second mapping");
	race.start = now_ms();
	writer = start_thread(other_side, NULL);
	for (round = 1; goes_on(round, RACE_ROUNDS); round++) {
		madvise(race.page, page_size, MADV_DONTNEED);
		if (__atomic_load_n(race.page, __ATOMIC_RELAXED))
			fail("content: not zero after MADV_DONTNEED");
		if (protect_range(row->mem.uffd, race.page, page_size, true))
			fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(errno));
		begin_round(round);
		if (protect_range(row->mem.uffd, race.page, page_size, false))
			fail("setup: UFFDIO_WRITEPROTECT: %s", strerror(errno));
		end_round(round);
	}
	end_race(writer);
	munmap(race.page, page_size);
	return 0;
}

static void *move_to_and_fro(void *arg)
{
	struct row *row = arg;
	int n;

	for (n = 0; !__atomic_load_n(&race.stop, __ATOMIC_ACQUIRE); n++)
		__atomic_fetch_add(&race.done,
				   try_move_pages(&row->mem, nodes[n & 1]),
				   __ATOMIC_RELAXED);
	return NULL;
}

static void read_pages(void)
{
	size_t at;

	for (at = 0; at < race.row->mem.len; at += race.row->mem.page)
		touch(race.row->mem.addr + at);
}

/*
 * Markers are read while the range is unregistered. A bit that stays behind is
 * taken for a protection when it is registered again.
 */
static int do_read_race(struct row *row)
{
	pthread_t reader;
	int round;
	size_t at;

	look_at(getpid());
	race.turn = read_pages;
	race.row = row;
	race.start = now_ms();
	reader = start_thread(other_side, NULL);
	for (round = 1; goes_on(round, RACE_ROUNDS); round++) {
		if (madvise(row->mem.addr, row->mem.len, MADV_DONTNEED) ||
		    register_all(row) ||
		    protect_range(row->mem.uffd, row->mem.addr, row->mem.len, true))
			fail("setup: UFFDIO_REGISTER: %s", strerror(errno));
		begin_round(round);
		fail_if(do_unregister(row), "UFFDIO_UNREGISTER");
		end_round(round);
		for (at = 0; at < row->mem.len; at += row->mem.page)
			if (pagemap_entry(row->mem.addr + at) & PM_UFFD_WP)
				fail("stale: round %d, a page is marked, and not registered",
				     round);
	}
	end_race(reader);
	return 0;
}

/* Pages are protected by PAGEMAP_SCAN while they are migrated. Nobody writes. */
static int do_scan_race(struct row *row)
{
	long nr_lost = 0, nr = 0;
	pthread_t mover;
	int i;

	need_two_nodes();
	arm_async(row);
	fail_if(register_all(row), "UFFDIO_REGISTER");
	race.start = now_ms();
	mover = start_thread(move_to_and_fro, row);
	while (goes_on(__atomic_load_n(&race.done, __ATOMIC_RELAXED), RACE_MOVES)) {
		if (protect_range(row->mem.uffd, row->mem.addr, row->mem.len, false) ||
		    scan_protect(row->mem.addr, row->mem.len) < 0)
			fail("setup: PAGEMAP_SCAN: %s", strerror(errno));
		for (i = 0; i < row->mem.nr; i++, nr++)
			nr_lost += scan_written(sample(row, i)) != 0;
	}
	end_race(mover);
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
#define FAILS(err)	{ [R_WHOLE] = (err), [R_ONE ... NR_RANGES - 1] = NONE }
#define SOME		{ [R_BEYOND ... NR_RANGES - 1] = NONE }
#define NO_VMAS		{ [R_WHOLE ... NR_RANGES - 1] = NONE,		\
			  [R_ONE] = ENOMEM, [R_MIDDLE] = ENOMEM,	\
			  [R_BEYOND] = ENOMEM }

/* What a call needs beyond a range */
enum needs {
	N_CGROUP	= BIT(0),	/* that is full when it is made */
	N_VMAS		= BIT(1),	/* a low vm.max_map_count */
	N_EVENT		= BIT(2),	/* of mremap(), and not only of writes */
	N_UNPOPULATED	= BIT(3),	/* protection of what is not there */
	N_ROOT		= BIT(4),
	N_KSM		= BIT(5) | N_ROOT,
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
	{ "free", do_free, UNPROTECTS, ONE_RANGE },
	{ "mremap_move", do_move, MOVES, ONE_RANGE },
	{ "mremap_grow", do_grow, MOVES, ONE_RANGE },
	{ "mremap_dontunmap", do_dontunmap, MOVES, ONE_RANGE },
	{ "mremap_duplicate", do_duplicate, KEEPS, ONE_RANGE },
	{ "mremap_shrink", do_shrink, KEEPS, ONE_RANGE },
	{ "close", do_close, ENDS, ONE_RANGE },
	{ "mremap_no_memory", do_move_no_memory, KEEPS, FAILS(ENOMEM), N_CGROUP },
	{ "mremap_no_memory_event", do_move_no_memory, KEEPS, FAILS(ENOMEM),
	  N_CGROUP | N_EVENT },
	{ "protect_no_memory", do_protect_no_memory, KEEPS, FAILS(ENOMEM), N_CGROUP },
	{ "rwprotect_no_memory", do_rwprotect_no_memory, KEEPS, FAILS(ENOMEM), N_CGROUP },
	{ "scan_no_memory", do_scan_no_memory, ENDS, ONE_RANGE, N_CGROUP },
	{ "scan_pieces", do_scan_pieces, ENDS, ONE_RANGE },
	{ "scan_many", do_scan_many, ENDS, ONE_RANGE },
	{ "scan_no_vector", do_scan_no_vector, ENDS, ONE_RANGE },
	{ "scan_dropped", do_scan_dropped, ENDS, ONE_RANGE },
	{ "scan_untouched", do_scan_untouched, ENDS, ONE_RANGE },
	{ "scan_only", do_scan_only, ENDS, ONE_RANGE },
	{ "scan_part", do_scan_part, ENDS, ONE_RANGE },
	{ "uffdio_copy", do_copy, ENDS, ONE_RANGE },
	{ "uffdio_copy_wp", do_copy_wp, PROTECTS, ONE_RANGE },
	{ "uffdio_zeropage", do_zeropage, PROTECTS, ONE_RANGE },
	{ "uffdio_poison", do_poison, KEEPS, ONE_RANGE },
	{ "guard", do_guard, KEEPS, SOME, N_UNPOPULATED },
	{ "guard_protect", do_guard_protect, PROTECTS, SOME, N_UNPOPULATED },
	{ "guard_unprotect", do_guard_unprotect, UNPROTECTS, ONE_RANGE,
	  N_UNPOPULATED },
	{ "guard_unregister", do_guard_unregister, UNPROTECTS, ONE_RANGE,
	  N_UNPOPULATED },
	{ "poisoned", do_poisoned, KEEPS, ONE_RANGE, N_ROOT },
	{ "poisoned_next_to", do_poisoned_next_to, KEEPS, ONE_RANGE, N_ROOT },
	{ "register_special", do_register_special, KEEPS, FAILS(EINVAL) },
	{ "mremap_next_to", do_move_next_to, PROTECTS, ONE_RANGE },
	{ "ksm_to_device", do_ksm_to_device, KEEPS, ONE_RANGE, N_KSM },
	{ "uffdio_move_swapped", do_move_swapped, ENDS, ONE_RANGE },
	{ "uffdio_move_held", do_move_held, KEEPS, FAILS(EBUSY) },
	{ "unregister_no_vmas", do_unregister_no_vmas, KEEPS, NO_VMAS, N_VMAS },
	{ "mprotect_no_vmas", do_mprotect_no_vmas, KEEPS, NO_VMAS, N_VMAS },
	{ "mremap_no_vmas", do_move_no_vmas, KEEPS, NO_VMAS, N_VMAS },
	{ "unregister_waited_for", do_unregister_waited_for, ENDS, ONE_RANGE },
	{ "close_waited_for", do_close_waited_for, ENDS, ONE_RANGE },
	{ "unprotect_race", do_unprotect_race, KEEPS, ONE_RANGE },
	{ "read_race", do_read_race, ENDS, ONE_RANGE },
	{ "scan_race", do_scan_race, ENDS, ONE_RANGE },
};

static enum range_id range_of(const struct row_id *id)
{
	return (const char * const *)id->of[2] - range_names;
}

/* Why there is no such row, NULL if there is one */
static const char *impossible(const struct row_id *id)
{
	const struct call *call = id->of[0];
	unsigned int flags = kind_named(id->word[1])->flags;
	enum range_id range = range_of(id);

	if (call->errors[range] == NONE)
		return "the call has no such range";
	if (call->make == do_duplicate && flags & M_PRIVATE)
		return "a private mapping cannot be duplicated";
	if ((call->make == do_dontneed || call->make == do_read_race ||
	     call->make == do_guard) && !(flags & M_FD))
		return "the pages are gone, and their protection";
	if (call->make == do_scan_race && flags & (M_THP | M_HUGETLB) &&
	    !(flags & M_PRIVATE))
		return "too few of them are migrated in time";
	if ((call->make == do_duplicate || call->make == do_dontunmap) &&
	    flags & M_HUGETLB)
		return "mremap() refuses that for hugetlb";
	if ((call->make == do_grow || call->make == do_shrink) &&
	    flags & M_HUGETLB)
		return "hugetlb cannot be grown, and is too small to be shrunk";
	if (call->make == do_rwprotect_no_memory) {
		if (flags & M_PRIVATE || !(flags & M_THP))
			return "it needs no page table";
	} else if ((call->needs & N_CGROUP || call->make == do_unprotect_race ||
		    call->make == do_scan_many) &&
		   strcmp(id->word[1], "anon")) {
		return "it brings its own memory";
	}
	if (call->make == do_free && strcmp(id->word[1], "anon"))
		return "MADV_FREE frees private anonymous pages; huge ones may be split";
	if (call->make == do_move_swapped && strcmp(id->word[1], "anon"))
		return "UFFDIO_MOVE moves private anonymous pages, and swaps in huge ones";
	if (call->make == do_zeropage && flags & M_HUGETLB)
		return "there is no UFFDIO_ZEROPAGE for hugetlb";
	if (call->needs & N_UNPOPULATED && flags & M_HUGETLB)
		return "there are no guards in hugetlb";
	if ((call->make == do_poisoned || call->make == do_poisoned_next_to) &&
	    strcmp(id->word[1], "shmem-thp"))
		return "it is about huge pages that stay when they cannot be split";
	if (call->make == do_move_held && strcmp(id->word[1], "anon-thp"))
		return "UFFDIO_MOVE splits huge pages only";
	if ((call->make == do_register_special || call->make == do_ksm_to_device) &&
	    strcmp(id->word[1], "anon"))
		return "it brings its own memory";
	if (call->make == do_scan_part && !(flags & M_HUGETLB))
		return "a part of the memory is as good as all of it";
	if (call->make == do_move_next_to && flags & (M_HUGETLB | M_THP))
		return "single pages say it";
	if ((call->make == do_move_no_vmas || call->make == do_mprotect_no_vmas) &&
	    range == R_BEYOND)
		return "the call wants a mapping all along";
	return NULL;
}

/*
 * A row
 */

static void map_and_write(struct row *row)
{
	struct memory *mem = &row->mem;
	int i;

	mem->len = row->flags & M_HUGETLB ? 4 * huge_size :
		   row->flags & M_THP ? 4 * pmd_size : 8 * page_size;
	mem->unit = mem->len / (row->flags & M_HUGETLB ? 4 : 8);
	/* So many page tables that some of them cannot be had. */
	if (row->call->make == do_move_no_memory) {
		mem->unit = pmd_size;
		mem->len = MAX_SAMPLES * pmd_size;
	}
	mem->file_len = 2 * mem->len;	/* to be grown */
	map_memory(mem, PROT_READ | PROT_WRITE);
	row->checked = mem->addr;
	row->old = 'o';
	for (i = 0; i < mem->nr; i++)
		*sample(row, i) = 'o';
	prove_mapping(mem);
}

static void choose_range(struct row *row)
{
	/* One that is protected already, unless that is what the call does. */
	size_t one = row->call->effect == PROTECTS ? 0 : row->mem.len / 2;

	row->start = 0;
	row->range_len = row->mem.len;
	switch (row->range) {
	case R_ONE:
		row->start = one;
		row->range_len = row->mem.page;
		break;
	case R_MIDDLE:
		row->start = (one ? one : row->mem.len / 4 * 3) - row->mem.page;
		row->range_len = 2 * row->mem.page;
		break;
	case R_TWO_VMAS:
		fail_if(madvise(row->mem.addr + row->mem.len / 2, row->mem.len / 2,
				MADV_DONTFORK), "MADV_DONTFORK");
		break;
	case R_BEYOND:
		row->start = row->mem.len / 2;
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
		row->start = row->mem.len / 2;
		row->range_len = -page_size;
		break;
	default:
		break;
	}
}

static void protect_middle(struct row *row)
{
	/* The middle half, unless the first pages are those that matter. */
	int skip = row->call->make == do_move_no_memory ? 0 : row->mem.nr / 4;
	int i;

	row->mem.uffd = open_uffd(UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
				  UFFD_FEATURE_PAGEFAULT_FLAG_WP |
				  (row->call->needs & N_EVENT ?
				   UFFD_FEATURE_EVENT_REMAP : 0) |
				  (row->call->needs & N_UNPOPULATED ?
				   UFFD_FEATURE_WP_UNPOPULATED : 0),
				  UFFD_USER_MODE_ONLY);
	fail_if(register_all(row), "UFFDIO_REGISTER");
	set_protection(&row->mem, row->mem.unit * skip,
		       row->mem.len - 2 * row->mem.unit * skip, true);
	for (i = 0; i < row->mem.nr; i++)
		row->want[i] = i >= skip && i < row->mem.nr - skip;
	/* Huge pages of files may be mapped by PTEs when they are protected. */
	if (row->flags & M_PRIVATE)
		prove_mapping(&row->mem);
}

static bool in_range(const struct row *row, int i)
{
	size_t at = row->mem.unit * i;

	return at >= row->start && at - row->start < row->range_len;
}

static void expect(struct row *row, int err)
{
	enum effect effect = row->call->effect;
	int i;

	for (i = 0; i < row->mem.nr && !err; i++) {
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
	struct pollfd poll_fd = { .fd = row->mem.uffd, .events = POLLIN };
	struct uffd_msg msg;
	bool reported = false;
	uint64_t until = now_ms() + HANG_MS;
	pthread_t writer = start_thread(write_one, p);

	while (pthread_tryjoin_np(writer, NULL)) {
		if (now_ms() > until)
			fail("hang: the write at %td does not return",
			     p - row->checked);
		if (row->mem.uffd < 0 || poll(&poll_fd, 1, 1) <= 0 ||
		    read(row->mem.uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (*p != row->old)
			fail("content: written before the event was resolved");
		if (msg.event != UFFD_EVENT_PAGEFAULT || reported ||
		    !(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) ||
		    msg.arg.pagefault.address / row->mem.page !=
		    (uintptr_t)p / row->mem.page)
			fail("event: wrong, or one too many, at %td",
			     p - row->checked);
		reported = true;
		protect_range(row->mem.uffd, p, row->mem.page, false);
	}
	if (*p != 'n')
		fail("content: not written at %td", p - row->checked);
	return reported;
}

static void run_row(const struct row_id *id)
{
	const struct kind *kind = kind_named(id->word[1]);
	struct row the_row = {
		.call = id->of[0], .range = range_of(id), .flags = kind->flags,
		.mem = { .kind = kind, .mode = mode_named("sync") },
	};
	struct row *row = &the_row;
	int i, err, want, nr_lost = 0, nr_spurious = 0;

	if (row->call->needs & N_CGROUP) {
		memory_max_fd = open(in_cgroup(row->call, "memory.max"), O_WRONLY);
		memory_current_fd = open(in_cgroup(row->call, "memory.current"),
					 O_RDONLY);
		fail_if(memory_max_fd < 0 || memory_current_fd < 0 ||
			!write_text("/proc/self/oom_score_adj", "-1000") ||
			!write_text(in_cgroup(row->call, "memory.swap.max"), "0") ||
			!write_text(in_cgroup(row->call, "cgroup.procs"), "0") ||
			mlockall(MCL_CURRENT), "no memory cgroup");
	}
	fail_if(!(row->call->needs & N_ROOT) &&
		(setresgid(NOBODY, NOBODY, NOBODY) ||
		 setresuid(NOBODY, NOBODY, NOBODY)), "setresuid");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Dropping privileges makes /proc/self somebody else's. */
	prctl(PR_SET_DUMPABLE, 1);

	step("map");
	map_and_write(row);
	step("protect");
	protect_middle(row);
	choose_range(row);
	want = row->call->errors[row->range];
	if (want == E_ALIGN)
		want = row->flags & M_HUGETLB ? EINVAL : 0;
	step("call");
	err = row->call->make(row);
	if (row->call->needs & N_CGROUP)
		limit_memory("max");
	if (err != want)
		fail("error: %s, not %s", err ? strerror(err) : "success",
		     want ? strerror(want) : "success");
	expect(row, err);
	step("write");
	for (i = 0; i < row->mem.nr; i++) {
		/* ENOMEM: there was more to drop than what is mapped */
		bool dropped = (row->call->make == do_dontneed ||
				row->call->make == do_free) &&
			       (!err || err == ENOMEM) && in_range(row, i) &&
			       row->flags & M_PRIVATE;
		bool reported;

		dropped |= row->zeroed && in_range(row, i);
		row->old = dropped ? 0 : 'o';
		reported = write_reported(row, sample(row, i));
		nr_lost += row->want[i] && !reported;
		nr_spurious += !row->want[i] && reported;
	}
	if (nr_lost)
		fail("lost: %d of %d writes", nr_lost, row->mem.nr);
	if (nr_spurious)
		fail("spurious: %d of %d writes", nr_spurious, row->mem.nr);
}

static char max_map_count[32];

static void set_knobs(const struct row_id *id)
{
	const struct call *call = id->of[0];

	set_memory_knobs(kind_named(id->word[1]));
	set_knob("/proc/sys/vm/max_map_count",
		 call->needs & N_VMAS ? MAX_VMAS : max_map_count);
	if ((call->needs & N_KSM) == N_KSM) {
		set_ksm_knobs(false);
		set_knob(KSM "pages_to_scan", "1");
	}
	if (call->needs & N_CGROUP)
		mkdir(in_cgroup(call, ""), 0755);
}

static void cleanup(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(calls); i++)
		if (calls[i].needs & N_CGROUP)
			rmdir(in_cgroup(&calls[i], ""));
}

static void setup(void)
{
	find_machine();
	snprintf(max_map_count, sizeof(max_map_count), "%ld",
		 read_long("/proc/sys/vm/max_map_count"));
	write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
}

static const struct test test = {
	.tables = { TABLE(calls), TABLE(memories), TABLE(range_names) },
	.seconds = 60,
	.impossible = impossible,
	.setup = setup,
	.set_knobs = set_knobs,
	.cleanup = cleanup,
	.run = run_row,
};

int main(int argc, char **argv)
{
	return run_test(&test, argc, argv);
}
